"""The trainer's gRPC door: files and jobs in, states and events out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.shared.blobs import Blobs, check_id
from services.shared.errors import InvalidRequest
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc
from services.trainer.jobs.create import Drafts, JobRequest, check_form
from services.trainer.jobs.events import read_events
from services.trainer.jobs.jobs import Job, Jobs
from services.trainer.jobs.launcher import LocalLauncher
from services.trainer.jobs.lock import hold_lock
from services.trainer.jobs.queue import JobQueue
from services.trainer.metrics import TrainerMetrics
from services.trainer.results.download import read_pieces
from services.trainer.settings import TrainerSettings
from services.trainer.wire import read_request, write_event, write_job

_Context = Any  # grpc.aio's context; unused, as errors are raised

_POLL_S = 0.2  # how late a watcher sees an event
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_MAX_FILENAME = 255
# Another trainer on the same folder that is just ending is waited for.
_DATA_LOCK_TIMEOUT_S = 15.0
_MAX_DRAFTS = 2  # jobs whose data is fetched and checked at once; more wait


class TrainerService(pb_grpc.TrainerServiceServicer):
    """The trainer as the server sees it (`services.shared.server.Service`).

    Args:
        settings: see there.
        registry: gets the trainer's metrics.
    """

    name = "trainer"
    grpc_name = pb.DESCRIPTOR.services_by_name["TrainerService"].full_name
    # Files and jobs belong to nobody yet: they are for operators.
    open_to_tenants: frozenset[str] = frozenset()

    def __init__(self, settings: TrainerSettings, registry: CollectorRegistry) -> None:
        trainer_metrics = TrainerMetrics(registry)
        self.metrics = trainer_metrics
        self._uploaded = trainer_metrics.uploaded
        self._settings = settings
        self._folder = settings.data_dir.absolute() / "jobs"
        self._jobs: Jobs
        self._blobs: Blobs
        self._drafts: Drafts
        self._queue: JobQueue
        self._trainer_metrics = trainer_metrics
        # Threads of their own: data may come slowly from far, and other calls go on meanwhile.
        self._drafting = ThreadPoolExecutor(_MAX_DRAFTS, "draft")
        self._open = contextlib.AsyncExitStack()

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_TrainerServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        return []

    async def start(self) -> None:
        """Open files and database and go on with the jobs of the last service.

        Raises:
            TimeoutError: another trainer works in the same folder.
        """
        settings = self._settings
        data_dir = settings.data_dir.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(data_dir / "lock", _DATA_LOCK_TIMEOUT_S)
        await asyncio.to_thread(lock.__enter__)
        self._open.push(lock)
        url = settings.database_url
        database_url = url.get_secret_value() if url else f"sqlite:///{data_dir / 'jobs.sqlite'}"
        self._jobs = await asyncio.to_thread(Jobs, database_url)
        self._open.callback(self._jobs.close)
        files_url = settings.files_url or str(data_dir / "files")
        self._blobs = await asyncio.to_thread(Blobs, files_url, settings.max_file_bytes)
        await asyncio.to_thread(self._blobs.clean)
        self._drafts = Drafts(self._jobs, self._blobs, self._folder, settings)
        self._queue = JobQueue(
            self._jobs,
            self._blobs,
            self._folder,
            LocalLauncher(settings.stop_s),
            self._trainer_metrics,
            settings.max_concurrent_jobs,
        )
        self._open.push_async_callback(self._queue.stop)
        await self._queue.start()

    async def stop(self) -> None:
        await self._open.aclose()
        self._drafting.shutdown(wait=False, cancel_futures=True)

    # The calls, in the order of the proto.

    async def UploadFile(
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: _Context
    ) -> pb.UploadFileResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "filename":
            raise InvalidRequest("the first message must carry the filename", "filename")
        filename = first.filename
        if not filename.isprintable() or not 1 <= len(filename) <= _MAX_FILENAME:
            raise InvalidRequest(
                f"filename must be 1 to {_MAX_FILENAME} printable characters", "filename"
            )
        blob = await self._blobs.store(_pieces(request_iterator))
        await asyncio.to_thread(self._jobs.add_file, blob.id, filename, blob.num_bytes)
        self._uploaded.inc(blob.num_bytes)
        return pb.UploadFileResponse(file_id=blob.id, num_bytes=blob.num_bytes)

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        num_bytes = 0
        async for piece in read_pieces(self._blobs, request.file_id):
            num_bytes += len(piece)
            yield pb.DownloadFileResponse(data=piece)
        yield pb.DownloadFileResponse(num_bytes=num_bytes)

    async def DeleteFile(
        self, request: pb.DeleteFileRequest, context: _Context
    ) -> pb.DeleteFileResponse:
        check_id(request.file_id, "file_id")
        # The name last: with it, a deletion that was cut off can be asked for again.
        await asyncio.to_thread(self._blobs.remove, request.file_id)
        await asyncio.to_thread(self._jobs.remove_file, request.file_id)
        return pb.DeleteFileResponse()

    async def CreateJob(
        self, request: pb.CreateJobRequest, context: _Context
    ) -> pb.CreateJobResponse:
        wanted, key = read_request(request), request.idempotency_key
        check_form(wanted, key)
        digest = wanted.digest()
        if key and (job := await asyncio.to_thread(self._jobs.find_by_key, key, digest)):
            return pb.CreateJobResponse(job=await self._write(job))
        await asyncio.to_thread(self._jobs.check_room, self._settings.max_queued_jobs)
        # A caller that leaves now does not leave half a job: its key finds the whole one.
        job = await asyncio.shield(asyncio.create_task(self._create(wanted, key or None, digest)))
        return pb.CreateJobResponse(job=await self._write(job))

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:
        job = await asyncio.to_thread(self._jobs.get, request.id)
        return pb.GetJobResponse(job=await self._write(job, with_plot=True))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:
        limit = request.limit or _DEFAULT_PAGE
        if limit > _MAX_PAGE:
            raise InvalidRequest(f"limit must be 1 to {_MAX_PAGE}, got {limit}", "limit")
        jobs, has_more = await asyncio.to_thread(self._jobs.page, limit, request.after)
        written = [await self._write(job) for job in jobs]
        return pb.ListJobsResponse(jobs=written, has_more=has_more)

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: _Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        begin = 0
        while True:
            # The state first: a job's last event is written before its state says that it ended.
            job = await asyncio.to_thread(self._jobs.get, request.id)
            events, begin = await asyncio.to_thread(read_events, self._folder / job.id, begin)
            for event in events:
                if event.number > request.after:
                    yield pb.WatchJobResponse(event=write_event(event))
            if job.has_ended:
                return
            await asyncio.sleep(_POLL_S)

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: _Context
    ) -> pb.CancelJobResponse:
        job = await self._queue.cancel(request.id)
        return pb.CancelJobResponse(job=await self._write(job))

    async def _create(self, wanted: JobRequest, key: str | None, digest: str) -> Job:
        loop = asyncio.get_running_loop()
        with self.metrics.stage("check"):
            draft = await loop.run_in_executor(self._drafting, self._drafts.make, wanted)
        job = await asyncio.to_thread(self._jobs.add, draft, key, digest)
        if job.id == draft.id:
            await self._queue.job_was_added()
        else:  # the same key came twice at once
            await asyncio.to_thread(self._drafts.discard, draft)
        return job

    async def _write(self, job: Job, with_plot: bool = False) -> pb.Job:
        return await asyncio.to_thread(write_job, job, self._folder / job.id, with_plot)


async def _pieces(requests: AsyncIterator[pb.UploadFileRequest]) -> AsyncIterator[bytes]:
    """Give a file's bytes, up to the message that says how many there were.

    The end of the stream does not say so: gRPC shows a call that was cut off as one that ended.
    """
    num_bytes = 0
    async for request in requests:
        part = request.WhichOneof("part")
        if part == "num_bytes":
            if request.num_bytes != num_bytes:
                raise InvalidRequest(
                    f"num_bytes says {request.num_bytes}, but {num_bytes} bytes came", "num_bytes"
                )
            return
        if part != "data":
            raise InvalidRequest(
                "messages after the first must carry data, and the last one num_bytes", "data"
            )
        num_bytes += len(request.data)
        yield request.data
    raise InvalidRequest("the last message must carry num_bytes: how many bytes came", "num_bytes")
