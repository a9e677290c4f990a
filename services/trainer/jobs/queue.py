"""The queue of jobs: starts them in turn, a bounded number at a time, and writes how they ended.

A process that was killed from outside is started again and goes on from its checkpoint. What
runs when the service ends is queued again when it starts.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path

from services.shared.blobs import Blobs
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.jobs import ENDED, Job, Jobs, State
from services.trainer.jobs.launcher import LocalLauncher
from services.trainer.jobs.lock import hold_lock
from services.trainer.jobs.spec import (
    LOCK,
    RESULT_FILE,
    TRAINING_VECTORS,
    VALIDATION_VECTORS,
    Failure,
    Result,
    Spec,
    failure_path,
    result_file_path,
    result_path,
    spec_path,
)
from services.trainer.metrics import TrainerMetrics
from services.trainer.results.download import file_pieces
from services.trainer.training.checkpoint import write_atomic

log = logging.getLogger(__name__)

# Starts of one job by one service: a process that is killed three times will be again.
_MAX_STARTS = 3
# The process of a killed service ends within about a second; a checkpoint may take longer.
_LOCK_TIMEOUT_S = 60.0


class JobQueue:
    """Runs jobs.

    Args:
        jobs: their states.
        blobs: takes what a job makes to be downloaded.
        folder: holds the jobs' folders, under their ids.
        launcher: starts their processes.
        metrics: the service's.
        max_concurrent: processes at the same time.
    """

    def __init__(
        self,
        jobs: Jobs,
        blobs: Blobs,
        folder: Path,
        launcher: LocalLauncher,
        metrics: TrainerMetrics,
        max_concurrent: int,
    ) -> None:
        self._jobs = jobs
        self._blobs = blobs
        self._folder = folder
        self._launcher = launcher
        self._metrics = metrics
        self._max_concurrent = max_concurrent
        # One token a queued job; a job that was cancelled meanwhile leaves a token over.
        self._tokens: asyncio.Queue[None] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._running: dict[str, asyncio.Task[int]] = {}

    async def start(self) -> None:
        await asyncio.to_thread(self._jobs.requeue_running)
        await asyncio.to_thread(self._remove_leavings)
        for _ in range((await self._count())["queued"]):
            self._tokens.put_nowait(None)
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._max_concurrent)]

    async def stop(self) -> None:
        """Stop all processes; their jobs go on when the service starts again."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def job_was_added(self) -> None:
        self._tokens.put_nowait(None)
        await self._count()

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and wait until its process has ended; harmless if the job has.

        Raises:
            NotFound: no such job.
        """
        if await asyncio.to_thread(self._jobs.cancel_queued, job_id):
            await asyncio.to_thread(self._append, job_id, "cancelled", "cancelled")
            await asyncio.to_thread(self._drop_vectors, job_id)
            await self._count()
        while not (job := await asyncio.to_thread(self._jobs.get, job_id)).has_ended:
            # A job that was just claimed has its process in a moment.
            if process := self._running.get(job_id):
                process.cancel()
            await asyncio.sleep(0.05)
        return job

    async def _work(self) -> None:
        while True:
            await self._tokens.get()
            job = await asyncio.to_thread(self._jobs.claim)
            if job is None:
                continue
            try:
                await self._run(job)
            except Exception:
                # A full disk, say: this job fails, the worker goes on with the next.
                log.exception("job %s could not be run", job.id)
                await asyncio.to_thread(
                    self._jobs.end, job.id, "failed", "the job's process could not be run"
                )
            await self._count()

    async def _run(self, job: Job) -> None:
        await self._count()
        begin = time.monotonic()
        state: State | None = None
        error = ""
        for _ in range(_MAX_STARTS):
            code = await self._run_process(job.id)
            state, error = await asyncio.to_thread(self._outcome, job.id, code)
            if state:
                break
            log.warning("job %s: its process ended with code %s, starting again", job.id, code)
        state = state or "failed"
        if state == "succeeded":
            await self._keep_result_file(self._folder / job.id)
        await asyncio.to_thread(self._append, job.id, state, error or state)
        await asyncio.to_thread(self._jobs.end, job.id, state, error)
        await asyncio.to_thread(self._drop_vectors, job.id)
        self._metrics.job_seconds.labels(state).observe(time.monotonic() - begin)
        log.info("job %s %s", job.id, state)

    async def _keep_result_file(self, folder: Path) -> None:
        """Store the file that the job has made to be downloaded, if any, and note its id.

        A service that is killed in between stores it once more; the first copy is never named.
        """
        path = folder / RESULT_FILE
        if path.exists() and not result_file_path(folder).exists():
            blob = await self._blobs.store(file_pieces(path))
            await asyncio.to_thread(
                self._jobs.add_file, blob.id, f"{folder.name}-{path.name}", blob.num_bytes
            )
            await asyncio.to_thread(write_atomic, result_file_path(folder), blob.id.encode())

    async def _run_process(self, job_id: str) -> int | None:
        """Return the exit code; None if the job was cancelled."""
        process = asyncio.create_task(self._launcher.run(self._folder / job_id))
        self._running[job_id] = process
        try:
            await asyncio.wait({process})
            return None if process.cancelled() else process.result()
        finally:
            del self._running[job_id]
            if not process.done():  # the service stops
                process.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await process

    def _outcome(self, job_id: str, code: int | None) -> tuple[State | None, str]:
        """Return how the job ended, from the files that its process left; None: it has not."""
        folder = self._folder / job_id
        if result := Result.read(result_path(folder)):
            if result.steps_per_second:
                self._metrics.step_seconds.labels(_method(folder)).observe(
                    1 / result.steps_per_second
                )
            return "succeeded", ""
        if code is None:
            return "cancelled", ""
        if failure := Failure.read(failure_path(folder)):
            return "failed", failure.message
        return None, f"its process ended {_MAX_STARTS} times before the end, last with code {code}"

    def _append(self, job_id: str, state: State, message: str) -> None:
        """Write the job's last event, once."""
        folder = self._folder / job_id
        with hold_lock(folder / LOCK, _LOCK_TIMEOUT_S):
            events = EventLog(folder)
            if events.last is None or events.last.status != state:
                events.append(Event(status=state, message=message))

    async def _count(self) -> dict[State, int]:
        counts = await asyncio.to_thread(self._jobs.count)
        for state, number in counts.items():
            self._metrics.jobs.labels(state).set(number)
        return counts

    def _drop_vectors(self, job_id: str) -> None:
        """Remove the vectors that a nest job learned from: large, and its caller has them."""
        for name in (TRAINING_VECTORS, VALIDATION_VECTORS):
            (self._folder / job_id / name).unlink(missing_ok=True)

    def _remove_leavings(self) -> None:
        """Remove what a killed service left: folders of jobs not acknowledged, vectors of ended."""
        states = self._jobs.states()
        for path in self._folder.iterdir():
            if path.is_dir() and path.name not in states:
                shutil.rmtree(path, ignore_errors=True)
            elif states.get(path.name) in ENDED:
                self._drop_vectors(path.name)


def _method(folder: Path) -> str:
    spec = Spec.read(spec_path(folder))
    return spec.hyperparameters.method if spec else "unknown"
