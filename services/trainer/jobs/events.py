"""A job's events: one JSON object a line, numbered from 1 without gaps, appended only.

One process writes at a time (whoever holds the job's lock); any number read. A line that a kill
cut short is removed by the next writer and never seen by readers.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.trainer.jobs.lock import hold_lock
from services.trainer.jobs.spec import LOCK

FILENAME = "events.jsonl"
# The process of a killed service ends within about a second; a checkpoint may take longer.
_LOCK_TIMEOUT_S = 60.0
# Many events of the longest kind; those after the last step are few.
_TAIL_BYTES = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a job."""

    number: int = 0
    """Set by the log."""
    at: float = 0.0
    """Unix time; set by the log."""
    status: str = "running"
    message: str = ""
    phase: str = ""
    """`encode`, `mine`, `train` or `evaluate`."""
    step: int = 0
    total_steps: int = 0
    loss: dict[int, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    tokens: int = 0
    """That went through a text model in training since the process began."""
    utilization: float = 0.0
    """Share of the machine's peak since the event before, 0..1; 0.0: not known."""
    steps_per_second: float = 0.0
    seconds_left: float = 0.0


class EventLog:
    """Appends events; the caller holds the job's lock."""

    def __init__(self, job_dir: Path) -> None:
        self._path = job_dir / FILENAME
        events, size = read_events(job_dir, 0)
        self._number = events[-1].number if events else 0
        self.last = events[-1] if events else None
        with self._path.open("ab") as stream:
            stream.truncate(size)

    def append(self, event: Event) -> None:
        self._number += 1
        values = asdict(event) | {"number": self._number, "at": time.time()}
        with self._path.open("ab") as stream:
            stream.write(json.dumps(values).encode() + b"\n")
        self.last = event


def append_once(job_dir: Path, event: Event) -> None:
    """Append an event in the job's own lock, unless the last one says the same."""
    with hold_lock(job_dir / LOCK, _LOCK_TIMEOUT_S):
        events = EventLog(job_dir)
        last = events.last
        if last is None or (last.status, last.message) != (event.status, event.message):
            events.append(event)


def read_events(job_dir: Path, begin: int) -> tuple[list[Event], int]:
    """Read the complete events from byte `begin` on.

    Args:
        job_dir: see `spec.py`.
        begin: 0, or a byte that this function returned; in the middle of a line, that line is
            passed over.

    Returns:
        The events, and the byte after the last of them: where to go on.
    """
    try:
        with (job_dir / FILENAME).open("rb") as stream:
            stream.seek(max(0, begin - 1))
            data = stream.read()
    except FileNotFoundError:
        return [], begin
    end = data.rfind(b"\n") + 1
    # One byte more was read: it is the end of the line before, or `begin` is inside a line.
    first = data.find(b"\n") + 1 if begin else 0
    lines = data[first:end].splitlines()
    return [_parse(line) for line in lines], max(begin, max(0, begin - 1) + end)


def read_newest(job_dir: Path, before: int | None, limit: int) -> list[Event]:
    """Read the newest events, newest first.

    Args:
        job_dir: see `spec.py`.
        before: only those of smaller numbers; None: all.
        limit: at most so many.
    """
    begin = max(0, _size(job_dir) - _TAIL_BYTES)
    while True:
        events, _ = read_events(job_dir, begin)
        wanted = [event for event in events if before is None or event.number < before]
        if begin == 0 or len(wanted) >= limit:
            return wanted[::-1][:limit]
        begin = 0


def _parse(line: bytes) -> Event:
    values = json.loads(line)
    values["loss"] = {int(dim): loss for dim, loss in values["loss"].items()}
    return Event(**values)


def last_step(job_dir: Path) -> int:
    """Return the last training step that an event tells of; 0 if there is none."""
    event = last_training(job_dir)
    return event.step if event else 0


def last_training(job_dir: Path, at_most: int | None = None) -> Event | None:
    """Return the newest event of a training step, of one up to `at_most`; None: none is near."""
    events, _ = read_events(job_dir, max(0, _size(job_dir) - _TAIL_BYTES))
    for event in reversed(events):
        if event.phase == "train" and (at_most is None or event.step <= at_most):
            return event
    return None


def _size(job_dir: Path) -> int:
    try:
        return (job_dir / FILENAME).stat().st_size
    except FileNotFoundError:
        return 0
