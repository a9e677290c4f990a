"""Runs one job from its claim to its end: the process, its lease, its restarts, what it made.

A process that was killed is started again; one that found the disk full waits until there is
room. Whatever stops it, its job's folder says how far it came.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from services.shared.errors import ServiceError
from services.shared.files import Files
from services.trainer.jobs.events import Event, append_once
from services.trainer.jobs.launcher import Launcher
from services.trainer.jobs.leases import Leases
from services.trainer.jobs.progress import Progress
from services.trainer.jobs.result_files import store_results
from services.trainer.jobs.rows import Job, State
from services.trainer.jobs.searches import Searches
from services.trainer.jobs.spec import (
    CHECKPOINTS,
    FOUND,
    LEASE,
    RESERVE,
    TRAINING_VECTORS,
    VALIDATION_VECTORS,
    Failure,
    Result,
    Spec,
    failure_path,
    result_path,
    spec_path,
)
from services.trainer.metrics import TrainerMetrics
from services.trainer.training.checkpoint import Seen
from services.trainer.training.disk import is_disk_full
from services.trainer.training.interrupt import DISK_FULL

log = logging.getLogger(__name__)

# Starts of one job by one service: a process that is killed three times will be again.
_MAX_STARTS = 3
_LOOK_S = 0.5
_RESERVE_BYTES = 2**15
_DISK_LOOKS = 360  # of a job that waits for room: every 10 s of an hour


class LeaseLost(Exception):
    """The job is another service's now, or may be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended, or that it is paused."""

    state: State
    error: str = ""
    code: str = ""
    param: str = ""
    """The request's field that it failed by, where there is one."""


class Runner:
    """Runs jobs, each for itself.

    Args:
        leases: this service's.
        files: takes what a job makes to be downloaded.
        folder: holds the jobs' folders, under their ids.
        searches: made for them before.
        launcher: starts their processes.
        metrics: the service's.
        lease_s: how long a job is this service's after it said so.
        disk_wait_s: longest that a job waits for room on a full disk.
    """

    def __init__(
        self,
        leases: Leases,
        files: Files,
        folder: Path,
        searches: Searches,
        launcher: Launcher,
        metrics: TrainerMetrics,
        lease_s: float,
        disk_wait_s: float,
    ) -> None:
        self._leases = leases
        self._files = files
        self._folder = folder
        self._searches = searches
        self._launcher = launcher
        self._metrics = metrics
        self._lease_s = lease_s
        self._disk_wait_s = disk_wait_s
        self._looks: dict[str, asyncio.Event] = {}

    def look(self, job_id: str) -> None:
        """Look now at what a job's owner wants of it, if it runs here."""
        if look := self._looks.get(job_id):
            look.set()

    async def forget(self, job_id: str) -> None:
        """Remove what is not needed of a job that has ended."""
        await asyncio.to_thread(_drop_unneeded, self._folder / job_id)
        await self._launcher.forget(job_id)

    async def run(self, job: Job) -> None:
        """Run a claimed job until it has ended or is paused; cancelling this queues it again."""
        begin = time.monotonic()
        self._looks[job.id] = asyncio.Event()
        working = asyncio.create_task(self._work(job))
        try:
            wish = job.wish or await self._watch(job.id, working)
            if wish:
                await _stop(working)
            outcome = await self._outcome(job, wish, None if working.cancelled() else working)
            await self._end(job, outcome, time.monotonic() - begin)
        except LeaseLost:
            log.warning("job %s is another service's now", job.id)
        except asyncio.CancelledError:
            await _stop(working)
            await asyncio.to_thread(self._leases.release, job.id)
            raise
        finally:
            await _stop(working)
            del self._looks[job.id]

    async def _watch(self, job_id: str, working: "asyncio.Task[Outcome]") -> State | None:
        """Keep the lease until the work is done; return what the owner wants instead, if so.

        Raises:
            LeaseLost: the process has been stopped.
        """
        renewed = time.monotonic()
        checkpoints = Seen(self._folder / job_id / CHECKPOINTS)
        progress = await asyncio.to_thread(Progress, self._folder / job_id, self._metrics)
        while not working.done():
            look = self._looks[job_id]
            waiting = asyncio.create_task(look.wait())
            await asyncio.wait(
                {working, waiting},
                timeout=min(_LOOK_S, self._lease_s / 6),
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting.cancel()
            look.clear()
            try:
                job = await asyncio.to_thread(self._renew, job_id)
            except Exception as error:  # the database is away: it may be back in time
                log.warning("job %s: its lease could not be renewed: %s", job_id, brief(error))
                if time.monotonic() - renewed < self._lease_s / 2:
                    continue
                job = None
            if job is None:
                await _stop(working)
                raise LeaseLost
            renewed = time.monotonic()
            for saved in await asyncio.to_thread(checkpoints.new):
                self._metrics.checkpoint_seconds.observe(saved.seconds)
                self._metrics.checkpoint_size.observe(saved.num_bytes)
            await asyncio.to_thread(progress.look)
            if job.wish:
                return job.wish
        await asyncio.to_thread(progress.show_quality)
        return None

    def _renew(self, job_id: str) -> Job | None:
        """Keep the lease, and let the process know; None: it is lost."""
        job = self._leases.renew(job_id)
        if job is not None:
            with contextlib.suppress(OSError):
                (self._folder / job_id / LEASE).touch()
        return job

    async def _work(self, job: Job) -> Outcome:
        """Run the job's process, again and again if it must be."""
        folder = self._folder / job.id
        starts = code = 0
        full_since: float | None = None
        while starts < _MAX_STARTS:
            if found := await asyncio.to_thread(_read_outcome, folder):
                return found
            try:
                await asyncio.to_thread(_prepare, folder)
                await self._searches.run(job, folder)
                code = await self._launcher.run(folder)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                code = DISK_FULL
            if code != DISK_FULL:
                starts += 1
                if code:
                    log.warning("job %s: its process ended with code %s", job.id, code)
                continue
            full_since = full_since or time.monotonic()
            if time.monotonic() - full_since > self._disk_wait_s:
                return Outcome("failed", "the disk with the jobs' folders is full", "disk_full")
            await self._wait_for_room(job.id)
        if found := await asyncio.to_thread(_read_outcome, folder):
            return found
        message = f"its process ended {_MAX_STARTS} times before the end, last with code {code}"
        return Outcome("failed", message, "killed")

    async def _wait_for_room(self, job_id: str) -> None:
        log.warning("job %s waits: the disk with its folder is full", job_id)
        with contextlib.suppress(OSError):
            await asyncio.to_thread((self._folder / job_id / RESERVE).unlink, missing_ok=True)
            message = "the disk is full; the job goes on when there is room"
            await asyncio.to_thread(append_once, self._folder / job_id, Event(message=message))
        await asyncio.sleep(self._disk_wait_s / _DISK_LOOKS)

    async def _outcome(
        self, job: Job, wish: State | None, working: "asyncio.Task[Outcome] | None"
    ) -> Outcome:
        if found := await asyncio.to_thread(_read_outcome, self._folder / job.id):
            return found
        if working is None and wish is not None:
            return Outcome(wish)
        assert working is not None
        try:
            return working.result()
        except ServiceError as error:
            return Outcome("failed", error.message, "not_started", error.param or "")
        except Exception:
            log.exception("job %s could not be run", job.id)
            message = "the job's process could not be run"
            return Outcome("failed", message, "internal_error")

    async def _end(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """Write how it ended: files, last event, state, in this order."""
        folder = self._folder / job.id
        stored: tuple[str, ...] = ()
        if outcome.state == "succeeded":
            stored = await store_results(self._files, job, folder)
        if await asyncio.to_thread(self._leases.renew, job.id) is None:
            raise LeaseLost
        event = Event(status=outcome.state, message=outcome.error or outcome.state)
        await asyncio.to_thread(append_once, folder, event)
        ended = (job.id, outcome.state, outcome.error, outcome.code, outcome.param, stored)
        if not await asyncio.to_thread(self._leases.end, *ended):
            raise LeaseLost
        log.info("job %s %s", job.id, outcome.state)
        if outcome.state == "paused":
            return
        await self.forget(job.id)
        self._metrics.job_seconds.labels(outcome.state).observe(seconds)
        if outcome.state == "failed":
            self._metrics.failures.labels(outcome.code).inc()
        if rate := await asyncio.to_thread(_steps_per_second, folder):
            method = await asyncio.to_thread(_method, folder)
            self._metrics.step_seconds.labels(method).observe(1 / rate)


def brief(error: Exception) -> str:
    """Name an error in one line, for a log that would else hold its traceback every second."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _prepare(folder: Path) -> None:
    """Say that the job is held, and keep a little room, so that on a full disk it can say so."""
    (folder / LEASE).touch()
    with contextlib.suppress(OSError):
        (folder / RESERVE).write_bytes(bytes(_RESERVE_BYTES))


def _drop_unneeded(folder: Path) -> None:
    drop_inputs(folder)
    (folder / RESERVE).unlink(missing_ok=True)


def drop_inputs(folder: Path) -> None:
    """Remove what a job learned from and others have: vectors to nest, texts of a collection."""
    shutil.rmtree(folder / FOUND, ignore_errors=True)
    for name in (TRAINING_VECTORS, VALIDATION_VECTORS):
        (folder / name).unlink(missing_ok=True)


def _read_outcome(folder: Path) -> Outcome | None:
    """Return how the job ended, from the files that its process left; None: it has not."""
    if result_path(folder).exists():
        return Outcome("succeeded")
    if failure := Failure.read(failure_path(folder)):
        return Outcome("failed", failure.message, failure.code, failure.param or "")
    return None


def _steps_per_second(folder: Path) -> float:
    result = Result.read(result_path(folder))
    return result.steps_per_second if result else 0.0


def _method(folder: Path) -> str:
    spec = Spec.read(spec_path(folder))
    return spec.hyperparameters.method if spec else "unknown"


async def _stop(working: "asyncio.Task[Outcome]") -> None:
    working.cancel()
    await asyncio.wait({working})
