"""The door to the queue, for both wires: a request in, a queued job out, or a refusal."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from services.shared.errors import InvalidRequest
from services.shared.files import Files
from services.shared.folder import BASE_MODEL, DEFAULT_MODEL
from services.shared.trace import outgoing
from services.trainer.data.sources import is_upload
from services.trainer.jobs.create import Drafts, JobRequest, check_form
from services.trainer.jobs.jobs import Jobs
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.rows import Job
from services.trainer.jobs.searches import Searches
from services.trainer.jobs.spec import MODEL
from services.trainer.metrics import TrainerMetrics

_PURPOSE = "fine-tune"
_MAX_DRAFTS = 2  # jobs whose data is fetched and checked at once; others wait


class Intake:
    """Takes jobs in.

    Args:
        jobs: takes what is queued.
        drafts: makes the folders.
        files: those that were uploaded.
        searches: say whether a collection to mine in is there.
        retention: says whether there is room for one more folder.
        folder: holds the jobs' folders, under their ids.
        metrics: the service's.
        max_queued: jobs waiting.
        on_queued: told of each new job.
    """

    def __init__(
        self,
        jobs: Jobs,
        drafts: Drafts,
        files: Files,
        searches: Searches,
        retention: Retention,
        folder: Path,
        metrics: TrainerMetrics,
        max_queued: int,
        on_queued: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._drafts = drafts
        self._files = files
        self._searches = searches
        self._retention = retention
        self._folder = folder
        self._metrics = metrics
        self._max_queued = max_queued
        self._on_queued = on_queued
        # Threads of their own: data may come slowly from far, and other calls go on meanwhile.
        self._drafting = ThreadPoolExecutor(_MAX_DRAFTS, "draft")

    def close(self) -> None:
        """Begin no more checks."""
        self._drafting.shutdown(wait=False, cancel_futures=True)

    async def create(self, wanted: JobRequest, key: str) -> Job:
        """Check everything and queue a job; the same key gives the same job.

        Raises:
            InvalidRequest: it cannot work; the message names the field.
            NotFound: no such file, or it is another tenant's.
            Unavailable: it wants to mine in a collection, and the router cannot be reached.
            AlreadyExists: the key was used with another request.
            Overloaded: too many wait, or the folders are full.
        """
        check_form(wanted, key)
        if key and wanted.tenant is not None:
            key = f"{wanted.tenant}/{key}"
        digest = wanted.digest()
        if key and (job := await asyncio.to_thread(self._jobs.find_by_key, key, digest)):
            return job
        await asyncio.to_thread(self._jobs.check_room, self._max_queued)
        self._retention.check_room()
        for param in ("training_file", "validation_file"):
            reference = getattr(wanted, param)
            # Paths and addresses are the operator's; to a tenant they are no files.
            if reference and (is_upload(reference) or wanted.tenant is not None):
                await self._check_file(reference, wanted.tenant, param)
        if wanted.mining and wanted.mining.collection:
            await self._searches.check(wanted.mining, wanted.tenant)
        found = await asyncio.to_thread(self._find_models, wanted)
        # A caller that leaves now does not leave half a job: its key finds the whole one.
        return await asyncio.shield(asyncio.create_task(self._create(found, key or None, digest)))

    async def _create(self, wanted: JobRequest, key: str | None, digest: str) -> Job:
        parent = dict(outgoing()).get("traceparent", "")
        with self._metrics.stage("check"):
            loop = asyncio.get_running_loop()
            draft = await loop.run_in_executor(self._drafting, self._drafts.make, wanted, parent)
        job = await asyncio.to_thread(self._jobs.add, draft, key, digest)
        if job.id == draft.id:
            self._on_queued()
        else:  # the same key came twice at once
            await asyncio.to_thread(self._drafts.discard, draft)
        return job

    async def _check_file(self, file_id: str, tenant: str | None, param: str) -> None:
        file = await self._files.get(file_id, tenant, param)
        if file.purpose != _PURPOSE:
            raise InvalidRequest(
                f"{param} must be a file that was uploaded with the purpose {_PURPOSE!r}", param
            )

    def _find_models(self, wanted: JobRequest) -> JobRequest:
        """Put folders in the place of models that jobs have made."""
        teacher = wanted.hyperparameters.teacher
        return replace(
            wanted,
            base_dir=self._find_model(wanted.base_model, wanted.tenant, "base_model"),
            teacher=self._find_model(teacher, wanted.tenant, "hyperparameters.teacher"),
        )

    def _find_model(self, source: str, tenant: str | None, param: str) -> str:
        if source and (job := self._jobs.find_model(source, tenant)):
            folder = self._folder / job.id / MODEL
            if not folder.exists():
                raise InvalidRequest(f"{param} must be there; {source!r} was deleted", param)
            return str(folder)
        if tenant is not None and source not in ("", DEFAULT_MODEL, BASE_MODEL):
            raise InvalidRequest(
                f"{param} must be {DEFAULT_MODEL!r}, {BASE_MODEL!r}, or the id of a model that a "
                "job of yours has made",
                param,
            )
        return source
