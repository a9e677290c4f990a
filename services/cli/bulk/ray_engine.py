"""The same steps as Ray Data tasks: parts of files are read, checked and sent on many machines.

Each part is a task with a stream of its own to the router; so many run at once as the user allows,
and each slows down with its stream: what encoder and storage accept decides. A part is noted when
all of it is acknowledged; a run that goes on sends the parts again that were under way. Files must
be at the same paths on every machine.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.data

from services.cli.bulk.bar import Bar, Totals
from services.cli.bulk.batches import Advance, Batches
from services.cli.bulk.check import Found, check_parts, find_doubles
from services.cli.bulk.engine import Job
from services.cli.bulk.journal import Journal
from services.cli.bulk.readers import Mark, can_split
from services.cli.bulk.sender import Acknowledged, Sender
from services.cli.bulk.sources import Part, Problem, Source, count_lines, cut_points
from services.shared.errors import ServiceError

# Tasks wait most of the time; reading and sending takes a twentieth of a core beside one encoder.
_TASK_CPUS = 0.25
# Ray's own default is a third of the memory; only places and counts pass through it here.
_STORE_BYTES = 128 * 2**20

_Row = dict[str, Any]


class RayEngine:
    """See `engine.Engine`.

    Args:
        job: what is to be done.
        address: a Ray cluster; None: Ray is started here, on loopback, until `close`.
    """

    def __init__(self, job: Job, address: str | None) -> None:
        self._job = job
        self._open = contextlib.ExitStack()
        if address is None:
            # Ray's sessions stay in its folder otherwise; sockets in it want a short path.
            folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            ray.init(
                _temp_dir=self._open.enter_context(folder), _node_ip_address="127.0.0.1",
                object_store_memory=_STORE_BYTES, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        self._open.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False

    def close(self) -> None:
        self._open.close()

    def cut(self, sources: Sequence[Source]) -> list[Part]:
        """Cut JSON lines at ends of lines; other files are a part each."""
        parts: list[Part] = []
        for source in sources:
            begin = 0
            for number, end in enumerate(cut_points(source, self._job.sending.part_bytes)):
                parts.append(Part(source, number, Mark(0, begin), end))
                begin = end
        # A part's first line is known by the lines before it.
        lines = {
            (row["source"], row["number"]): row["lines"]
            for row in self._run(_count_lines, [p for p in parts if can_split(p.source.path)])
        }
        known: list[Part] = []
        rows = 0
        for part in parts:
            rows = rows if part.number else 0
            known.append(replace(part, begin=Mark(rows, part.begin.offset)))
            rows += lines.get((part.source.name, part.number), 0)
        return known

    def check(self, parts: Sequence[Part], bar: Bar) -> Found:
        found: dict[tuple[str, int], Found] = {}
        for row in self._run(_Check(self._job), parts):
            some = Found(row["documents"], row["bad"], [Problem(w, r, Mark()) for w, r in
                         row["problems"]])  # fmt: skip
            some.digests = array("Q", row["digests"])
            found[row["source"], row["number"]] = some
            bar.show(sum(f.documents for f in found.values()))
        whole = Found()
        for part in parts:  # in the order of the files, whichever came first
            whole.join(found[part.source.name, part.number])
        find_doubles(parts, self._job.fields, whole)
        return whole

    def send(self, parts: Sequence[Part], journal: Journal, totals: Totals, bar: Bar) -> None:
        started_s = time.monotonic()
        places = {(part.source.name, part.number): part for part in parts}
        for row in self._run(_Send(self._job), parts):
            part = places[row["source"], row["number"]]
            mark = Mark(row["rows"], row["offset"])
            advance = Advance(part, mark, row["documents"], row["skipped"], not row["error"])
            journal.advance([advance])
            totals.note([advance], row["truncated"])
            totals.settle_s = max(totals.settle_s, row["settle_s"])
            for where, reason in row["problems"]:
                totals.keep(Problem(where, reason, Mark()))
            bar.update(totals)
            if row["error"]:
                raise ServiceError(row["error"])
        totals.seconds = time.monotonic() - started_s - totals.settle_s

    def _run(self, work: Callable[[_Row], _Row], parts: Sequence[Part]) -> Iterator[_Row]:
        """Do something with every part, some at once; yields what it gave as it comes."""
        if not parts:
            return
        rows = [_to_row(part) for part in parts]
        dataset: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
        yield from dataset.map(
            work, num_cpus=_TASK_CPUS, concurrency=self._job.sending.streams
        ).iter_rows()


def _to_row(part: Part) -> _Row:
    return {
        "source": part.source.name, "path": str(part.source.path.absolute()),
        "number": part.number, "rows": part.begin.rows, "offset": part.begin.offset,
        "end": part.end,
    }  # fmt: skip


def _to_part(row: _Row) -> Part:
    source = Source(row["source"], Path(row["path"]))
    return Part(source, row["number"], Mark(row["rows"], row["offset"]), row["end"])


def _count_lines(row: _Row) -> _Row:
    part = _to_part(row)
    return row | {"lines": count_lines(part.source, part.begin.offset, part.end)}


@dataclass(frozen=True, slots=True)
class _Check:
    """A task that checks a part."""

    job: Job

    def __call__(self, row: _Row) -> _Row:
        found = check_parts([_to_part(row)], self.job.fields)
        return row | {
            "documents": found.documents, "bad": found.bad, "digests": found.digests.tobytes(),
            "problems": [(problem.where, problem.reason) for problem in found.problems],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Send:
    """A task that sends a part, and says how far it came."""

    job: Job

    def __call__(self, row: _Row) -> _Row:
        return asyncio.run(self._send(row))

    async def _send(self, row: _Row) -> _Row:
        part, job, sending = _to_part(row), self.job, self.job.sending
        totals = Totals()
        mark = part.begin

        async def on_acknowledged(acknowledged: Acknowledged) -> None:
            nonlocal mark
            totals.note(acknowledged.batch.advances, acknowledged.truncated)
            mark = acknowledged.batch.advances[-1].mark

        batches = Batches(
            job.collection, [part], job.fields, sending.batch_documents, sending.batch_bytes,
            totals.keep,
        )  # fmt: skip
        sender = Sender(job.router, sending.window, sending.max_wait_s, on_acknowledged)
        error = ""
        try:
            await sender.send(iter(batches))
            totals.note(batches.rest, 0)
            mark = batches.rest[-1].mark if batches.rest else mark
        except (ServiceError, OSError) as failed:
            error = str(failed)
        return row | {
            "rows": mark.rows, "offset": mark.offset, "documents": totals.documents,
            "skipped": totals.skipped, "truncated": totals.truncated,
            "settle_s": sender.settle_s, "error": error,
            "problems": [(problem.where, problem.reason) for problem in totals.problems],
        }  # fmt: skip
