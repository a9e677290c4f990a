"""The trainer's gRPC door: files and jobs in, states and events out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.shared import files_http
from services.shared.auth import caller
from services.shared.blobs import check_id
from services.shared.errors import InvalidRequest, NotFound
from services.shared.files import File
from services.shared.files_http import FilesHttp
from services.shared.paging import Paging
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc
from services.trainer import openai
from services.trainer.jobs.events import read_events
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import CHECKPOINTS
from services.trainer.metrics import TrainerMetrics
from services.trainer.models.calls import ModelCalls
from services.trainer.openai import FineTuningHttp
from services.trainer.parts import Parts
from services.trainer.results.download import read_pieces
from services.trainer.scopes import SCOPES
from services.trainer.settings import TrainerSettings
from services.trainer.training.checkpoint import saved
from services.trainer.wire import read_request, write_checkpoint, write_event, write_job

_Context = Any  # grpc.aio's context; unused, as errors are raised

_POLL_S = 0.2  # how late a watcher sees an event
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_MAX_FILENAME = 255


class TrainerService(ModelCalls, pb_grpc.TrainerServiceServicer):
    """The trainer as the server sees it (`services.shared.server.Service`).

    Args:
        settings: see there.
        registry: gets the trainer's metrics.
        serves_files: whether `/v1/files` is answered here; else another service of the process
            does, from the same files.
    """

    name = "trainer"
    grpc_name = pb.DESCRIPTOR.services_by_name["TrainerService"].full_name
    # Each of these asks `caller()` whose files and jobs it may touch. The RPCs name folders of the
    # machine: they are for operators.
    open_to_tenants = files_http.OPEN_TO_TENANTS | openai.OPEN_TO_TENANTS
    scopes = SCOPES

    def __init__(
        self, settings: TrainerSettings, registry: CollectorRegistry, serves_files: bool = True
    ) -> None:
        trainer_metrics = TrainerMetrics(registry)
        self.metrics = trainer_metrics
        self._uploaded = trainer_metrics.uploaded
        self._settings = settings
        self._serves_files = serves_files
        if not serves_files:
            self.open_to_tenants = openai.OPEN_TO_TENANTS
        self._parts = Parts(settings, trainer_metrics)

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_TrainerServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        s, parts = self._settings, self._parts
        jobs = FineTuningHttp(parts, s.max_body_bytes).routes()
        if not self._serves_files:
            return jobs
        files = FilesHttp(lambda: parts.files, s.max_upload_s, _keep_jobs)
        return [*files.routes(), *jobs]

    async def start(self) -> None:
        await self._parts.start()
        self._registry = self._parts.registry
        self._promotions = self._parts.promotions
        self._promoter = self._parts.promoter
        self._served = self._parts.served

    async def stop(self) -> None:
        await self._parts.stop()

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
        files = self._parts.files
        blob = await files.blobs.store(_pieces(request_iterator))
        await files.add(
            File(
                id=blob.id, filename=filename, purpose="fine-tune", num_bytes=blob.num_bytes,
                created_at=time.time(),
            )
        )  # fmt: skip
        self._uploaded.inc(blob.num_bytes)
        return pb.UploadFileResponse(file_id=blob.id, num_bytes=blob.num_bytes)

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        num_bytes = 0
        files = self._parts.files
        check_id(request.file_id, "file_id")
        await files.get(request.file_id, caller().tenant)
        async for piece in read_pieces(files.blobs, request.file_id):
            num_bytes += len(piece)
            yield pb.DownloadFileResponse(data=piece)
        yield pb.DownloadFileResponse(num_bytes=num_bytes)

    async def DeleteFile(
        self, request: pb.DeleteFileRequest, context: _Context
    ) -> pb.DeleteFileResponse:
        check_id(request.file_id, "file_id")
        with contextlib.suppress(NotFound):
            await self._parts.files.hide(request.file_id, caller().tenant)
            await self._parts.forget_file(request.file_id)
        return pb.DeleteFileResponse()

    async def CreateJob(
        self, request: pb.CreateJobRequest, context: _Context
    ) -> pb.CreateJobResponse:
        job = await self._parts.intake.create(read_request(request), request.idempotency_key)
        return pb.CreateJobResponse(job=await self._write(job))

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:
        job = await asyncio.to_thread(self._parts.jobs.get, request.id)
        return pb.GetJobResponse(job=await self._write(job, with_plot=True))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:
        limit = request.limit or _DEFAULT_PAGE
        if limit > _MAX_PAGE:
            raise InvalidRequest(f"limit must be 1 to {_MAX_PAGE}, got {limit}", "limit")
        paging = Paging(limit, after=request.after)
        page = await asyncio.to_thread(self._parts.jobs.page, paging)
        written = [await self._write(job) for job in page.items]
        return pb.ListJobsResponse(jobs=written, has_more=page.has_more)

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: _Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        begin = 0
        while True:
            # The state first: a job's last event is written before its state says that it ended.
            job = await asyncio.to_thread(self._parts.jobs.get, request.id)
            events, begin = await asyncio.to_thread(read_events, self._parts.folder / job.id, begin)
            for event in events:
                if event.number > request.after:
                    yield pb.WatchJobResponse(event=write_event(event))
            if job.has_ended:
                return
            await asyncio.sleep(_POLL_S)

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: _Context
    ) -> pb.CancelJobResponse:
        job = await self._parts.queue.cancel(request.id, caller())
        return pb.CancelJobResponse(job=await self._write(job))

    async def PauseJob(self, request: pb.PauseJobRequest, context: _Context) -> pb.PauseJobResponse:
        job = await self._parts.queue.pause(request.id, caller())
        return pb.PauseJobResponse(job=await self._write(job))

    async def ResumeJob(
        self, request: pb.ResumeJobRequest, context: _Context
    ) -> pb.ResumeJobResponse:
        job = await self._parts.queue.resume(request.id, caller())
        return pb.ResumeJobResponse(job=await self._write(job))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: _Context
    ) -> pb.ListCheckpointsResponse:
        job = await asyncio.to_thread(self._parts.jobs.get, request.id)
        found = await asyncio.to_thread(saved, self._parts.folder / job.id / CHECKPOINTS)
        return pb.ListCheckpointsResponse(checkpoints=map(write_checkpoint, found))

    async def _write(self, job: Job, with_plot: bool = False) -> pb.Job:
        return await asyncio.to_thread(write_job, job, self._parts.folder / job.id, with_plot)


async def _keep_jobs(file_id: str) -> None:
    """Do nothing of a file that is deleted: jobs have copies of their own."""


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
