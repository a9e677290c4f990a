"""What jobs leave on the disk, and what of it goes when it is too much.

Checkpoints, vectors and pictures to learn from go first, those of the oldest ended jobs before
others; models and the copies of their training data stay until their version is deleted, and the
record of a job until somebody removes the folder. When that is not enough, no new job is taken.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from services.shared.errors import Overloaded
from services.trainer.data.pictures import PICTURES
from services.trainer.jobs.rows import ENDED, State
from services.trainer.jobs.runner import drop_inputs
from services.trainer.jobs.spec import CHECKPOINTS, RECORD, START, VECTORS
from services.trainer.metrics import TrainerMetrics

log = logging.getLogger(__name__)

# A folder without a job: its data is being checked, or whoever did that was killed.
_DRAFT_AGE_S = 6 * 3600.0


class FoldersFull(Overloaded):
    """The jobs' folders take all that they may; waiting alone does not help."""

    openai_code = "insufficient_quota"
    retry_after_s: int | None = None


class Retention:
    """Keeps the jobs' folders within their budget.

    Args:
        folder: holds the jobs' folders, under their ids.
        max_bytes: of all of them together.
        metrics: the service's.
    """

    def __init__(self, folder: Path, max_bytes: int, metrics: TrainerMetrics) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._num_bytes = 0

    def check_room(self) -> None:
        """Refuse a new job when the folders are full, as of the last look; FoldersFull."""
        if self._num_bytes > self._max_bytes:
            raise FoldersFull(
                f"the jobs' folders take {self._num_bytes} bytes of at most {self._max_bytes}, "
                "without anything that could go; an operator must delete versions of models, or "
                "raise MATRYOSHKA_TRAINER_MAX_FOLDERS_BYTES"
            )

    def sweep(self, states: Mapping[str, State]) -> None:
        """Look at all folders, and remove what must go.

        Args:
            states: of all jobs by id, in the order of their creation.
        """
        self._remove_leavings(states)
        sizes = {job_id: _size(self._folder / job_id) for job_id in states}
        total = sum(sizes.values())
        for job_id, state in states.items():
            if total <= self._max_bytes:
                break
            if state in ENDED and (freed := _thin(self._folder / job_id)):
                total -= freed
                log.info("%s: %s bytes of checkpoints, vectors and pictures removed", job_id, freed)
        self._num_bytes = total
        self._metrics.disk.set(total)

    def _remove_leavings(self, states: Mapping[str, State]) -> None:
        """Remove what a killed service left: folders of jobs not acknowledged, inputs of ended."""
        for path in self._folder.iterdir():
            if path.name not in states:
                if path.is_dir() and time.time() - path.stat().st_mtime > _DRAFT_AGE_S:
                    shutil.rmtree(path, ignore_errors=True)
            elif states[path.name] in ENDED:
                drop_inputs(path)


def keep_record(folder: Path) -> int:
    """Remove all of an ended job but what says what it was and what it measured.

    Returns:
        Bytes that were freed.
    """
    before = _size(folder)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in RECORD:
            path.unlink(missing_ok=True)
    return before - _size(folder)


def _thin(folder: Path) -> int:
    """Remove an ended job's checkpoints, vectors and pictures; return how many bytes that freed."""
    before = _size(folder)
    for name in (CHECKPOINTS, START, PICTURES, *VECTORS):
        shutil.rmtree(folder / name, ignore_errors=True)
    return before - _size(folder)


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; what goes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total
