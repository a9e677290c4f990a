"""The queue of jobs: starts them in turn, a bounded number at a time, and writes how they ended.

A process that was killed from outside is started again and goes on from its checkpoint. What
runs when the service ends is queued again, for the next service or for one beside it.
"""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from services.shared.auth import Principal
from services.shared.errors import WrongState
from services.trainer.jobs.events import Event, append_once
from services.trainer.jobs.jobs import Jobs
from services.trainer.jobs.leases import Leases
from services.trainer.jobs.rows import Job, Wish
from services.trainer.jobs.runner import Runner, brief
from services.trainer.metrics import TrainerMetrics

log = logging.getLogger(__name__)

# How late a job that another service has queued, paused, cancelled or left is seen.
_LOOK_S = 1.0
_WISH_LOOK_S = 0.05


class JobQueue:
    """Runs jobs.

    Args:
        jobs: what their owners want.
        leases: which of them are this service's.
        runner: runs one of them.
        folder: holds the jobs' folders, under their ids.
        metrics: the service's.
        max_concurrent: jobs at the same time.
    """

    def __init__(
        self,
        jobs: Jobs,
        leases: Leases,
        runner: Runner,
        folder: Path,
        metrics: TrainerMetrics,
        max_concurrent: int,
    ) -> None:
        self._jobs = jobs
        self._leases = leases
        self._runner = runner
        self._folder = folder
        self._metrics = metrics
        self._max_concurrent = max_concurrent
        self._news = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._dispatching: asyncio.Task[None]

    async def start(self) -> None:
        self._dispatching = asyncio.create_task(self._dispatch_for_ever())

    async def stop(self) -> None:
        """Stop all processes; their jobs go on at another service, or when this one is back."""
        self._dispatching.cancel()
        await asyncio.gather(self._dispatching, return_exceptions=True)
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def kick(self) -> None:
        """Look now: there is something new."""
        self._news.set()

    async def cancel(self, job_id: str, caller: Principal) -> Job:
        """Cancel a job and wait until its process has ended; harmless if the job has.

        Raises:
            NotFound: no such job.
        """
        return await self._wish(job_id, "cancelled", caller)

    async def pause(self, job_id: str, caller: Principal) -> Job:
        """Pause a job and wait until its process has saved a checkpoint and ended.

        Raises:
            NotFound: no such job.
            WrongState: it has ended.
        """
        job = await self._wish(job_id, "paused", caller)
        if job.has_ended:
            raise WrongState(
                f"only a job that waits or runs can be paused; it has {job.state}", "id"
            )
        return job

    async def resume(self, job_id: str, caller: Principal) -> Job:
        """Queue a paused job again; harmless if it waits or runs.

        Raises:
            NotFound: no such job.
            WrongState: it has ended.
        """
        before = await asyncio.to_thread(self._jobs.get, job_id, caller.tenant)
        job = await asyncio.to_thread(self._jobs.resume, job_id, caller.tenant)
        if before.state == "paused" and job.state == "queued":
            again = Event(status="queued", message="queued again")
            await asyncio.to_thread(append_once, self._folder / job_id, again)
        self.kick()
        return job

    async def _wish(self, job_id: str, wish: Wish, caller: Principal) -> Job:
        before = await asyncio.to_thread(self._jobs.get, job_id, caller.tenant)
        job = await asyncio.to_thread(self._jobs.wish, job_id, wish, caller.tenant)
        if job.state == wish and before.state != wish:
            event = Event(status=wish, message=wish)
            await asyncio.to_thread(append_once, self._folder / job_id, event)
            if job.has_ended:
                await self._runner.forget(job_id)
        while job.state == "running":
            self._runner.look(job_id)
            await asyncio.sleep(_WISH_LOOK_S)
            job = await asyncio.to_thread(self._jobs.get, job_id, caller.tenant)
        await self._count()
        return job

    async def _dispatch_for_ever(self) -> None:
        while True:
            try:
                await self._dispatch()
            except Exception as error:  # the database is away, or its disk is full
                log.error("looking for jobs failed: %s", brief(error))
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _LOOK_S)

    async def _dispatch(self) -> None:
        while len(self._running) < self._max_concurrent:
            job = await asyncio.to_thread(self._leases.claim, tuple(self._running))
            if job is None:
                break
            if job.queued_at is not None:
                self._metrics.queue_seconds.observe(max(0.0, time.time() - job.queued_at))
            task = asyncio.create_task(self._run(job))
            self._running[job.id] = task
        await self._count()

    async def _run(self, job: Job) -> None:
        try:
            await self._runner.run(job)
        except Exception as error:
            # Its lease runs out, or is taken up again: nothing is lost.
            log.error("job %s could not be run now: %s", job.id, brief(error))
            await asyncio.sleep(_LOOK_S)
        finally:
            del self._running[job.id]
            self.kick()

    async def _count(self) -> None:
        for state, number in (await asyncio.to_thread(self._jobs.count)).items():
            self._metrics.jobs.labels(state).set(number)
