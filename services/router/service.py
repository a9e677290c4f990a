"""The router's gRPC door: one method each, from message to message."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.router import rpcs_http, tenants, wire
from services.router.catalog import Description
from services.router.changes.change import read_change
from services.router.changes.running import Progress
from services.router.console import console_pages
from services.router.hybrid.hybrid_wire import read_text_index
from services.router.metrics import RouterMetrics
from services.router.parts import Parts
from services.router.recall.calibration_plot import plot
from services.router.recall.calibration_wire import (
    read_calibrate,
    write_calibration,
    write_lost,
    write_watched,
)
from services.router.recall.evaluate_wire import read_evaluate, write_evaluation
from services.router.rpcs_http import RpcsHttp
from services.router.scopes import RPCS_OPEN_TO_TENANTS, SCOPES
from services.router.settings import RouterSettings
from services.router.upsert import Batch
from services.router.vector_stores import files_http as store_files_http
from services.router.vector_stores import recall_http, stores_http
from services.router.vector_stores.files_http import VectorStoreFilesHttp
from services.router.vector_stores.recall_http import VectorStoreRecallHttp
from services.router.vector_stores.stores_http import VectorStoresHttp
from services.shared import files_http
from services.shared.auth import caller
from services.shared.errors import NotFound
from services.shared.files_http import FilesHttp
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc

_Context = Any  # grpc.aio's context; used to learn that a caller left, as errors are raised
log = logging.getLogger(__name__)

_M = TypeVar("_M")
_PROGRESS_S = 0.2
"""Between two messages of one step."""


class RouterService(pb_grpc.RouterServiceServicer):
    """The router as the server sees it (`services.shared.server.Service`).

    Args:
        settings: see there.
        registry: gets the router's metrics.
        own_grpc: where its gRPC is, for calls from within; None: where the settings say.
    """

    name = "router"
    grpc_name = pb.DESCRIPTOR.services_by_name["RouterService"].full_name
    # Each of these asks `caller()` whose points, files and stores it may touch.
    open_to_tenants = frozenset(
        {
            *RPCS_OPEN_TO_TENANTS, *rpcs_http.OPEN_TO_TENANTS,
            *files_http.OPEN_TO_TENANTS, *stores_http.OPEN_TO_TENANTS,
            *store_files_http.OPEN_TO_TENANTS, *recall_http.OPEN_TO_TENANTS,
        }
    )  # fmt: skip
    scopes = SCOPES

    def __init__(
        self,
        settings: RouterSettings,
        registry: CollectorRegistry,
        own_grpc: str | None = None,
    ) -> None:
        router_metrics = RouterMetrics(registry)
        self.metrics = router_metrics
        self._settings = settings
        self._parts = Parts(settings, router_metrics)
        self._rpcs = RpcsHttp(settings, own_grpc or f"{settings.host}:{settings.grpc_port}")
        self._long_work: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._rpcs.start()
        await self._parts.start()

    async def stop(self) -> None:
        await self._rpcs.stop()
        for task in self._long_work:
            task.cancel()
        await asyncio.gather(*self._long_work, return_exceptions=True)
        await self._parts.stop()

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_RouterServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        s, retrieval = self._settings, self._parts.retrieval
        files = FilesHttp(lambda: retrieval.files, s.max_upload_s, retrieval.forget_file)
        stores = VectorStoresHttp(retrieval, s.max_body_bytes)
        store_files = VectorStoreFilesHttp(retrieval, s.max_body_bytes)
        recall = VectorStoreRecallHttp(lambda: self._parts.store_recall, s.max_body_bytes)
        return [
            *console_pages(),
            *files.routes(),
            *stores.routes(),
            *store_files.routes(),
            *recall.routes(),
            *self._rpcs.routes(),
        ]

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: _Context
    ) -> pb.CreateCollectionResponse:
        sizes = wire.read_sizes(request.sizes)
        by_words = read_text_index(request.text_index) if request.HasField("text_index") else None
        created = await self._parts.catalog.create(
            request.name,
            request.model,
            sizes,
            text_index=by_words,
            spread=wire.read_spread(request),
        )
        return pb.CreateCollectionResponse(collection=wire.write_collection(created))

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: _Context
    ) -> pb.GetCollectionResponse:
        found = await self._parts.catalog.get(request.name, caller().tenant)
        return pb.GetCollectionResponse(collection=await self._write_collection(found))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: _Context
    ) -> pb.ListCollectionsResponse:
        listed = await self._parts.catalog.list(caller().tenant)
        return pb.ListCollectionsResponse(
            collections=[await self._write_collection(one) for one in listed]
        )

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: _Context
    ) -> pb.DeleteCollectionResponse:
        await self._parts.catalog.delete(request.name)
        return pb.DeleteCollectionResponse()

    async def SetCollectionAlias(
        self, request: pb.SetCollectionAliasRequest, context: _Context
    ) -> pb.SetCollectionAliasResponse:
        await self._parts.catalog.set_alias(request.alias, request.collection)
        return pb.SetCollectionAliasResponse()

    async def ResizeCollection(
        self, request: pb.ResizeCollectionRequest, context: _Context
    ) -> AsyncIterator[pb.ResizeCollectionResponse]:
        by_words = read_text_index(request.text_index) if request.HasField("text_index") else None
        sizes = wire.read_sizes(request.sizes)
        wanted = await self._parts.sizes.resize(request.name, sizes, by_words)
        running = await self._parts.changes.begin(*wanted)
        async for _ in _seldom(running.follow()):
            yield pb.ResizeCollectionResponse(change=wire.write_change(running))
        changed = await self._parts.catalog.get(request.name, caller().tenant)
        yield pb.ResizeCollectionResponse(collection=await self._write_collection(changed))

    async def NestCollection(
        self, request: pb.NestCollectionRequest, context: _Context
    ) -> AsyncIterator[pb.NestCollectionResponse]:
        calibrated = wire.read_calibrated(request)
        wanted = await self._parts.sizes.nest(
            request.name, wire.read_sizes(request.sizes), calibrated
        )
        running = await self._parts.changes.begin(*wanted)
        async for _ in _seldom(running.follow()):
            yield pb.NestCollectionResponse(change=wire.write_change(running))
        changed = await self._parts.catalog.get(request.name, caller().tenant)
        yield pb.NestCollectionResponse(
            collection=await self._write_collection(changed),
            quality=map(wire.write_quality, running.quality),
        )

    async def CancelChange(
        self, request: pb.CancelChangeRequest, context: _Context
    ) -> pb.CancelChangeResponse:
        await self._parts.changes.cancel(request.name)
        return pb.CancelChangeResponse()

    async def Upsert(
        self, request_iterator: AsyncIterator[pb.UpsertRequest], context: _Context
    ) -> AsyncIterator[pb.UpsertResponse]:
        async def batches() -> AsyncIterator[Batch]:
            async for request in request_iterator:
                yield wire.read_batch(request)

        async for acknowledged in self._parts.writer.upsert(batches(), caller().tenant):
            yield wire.write_acknowledged(acknowledged)

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:
        await self._parts.writer.delete(request.collection, list(request.ids), caller().tenant)
        return pb.DeleteResponse()

    async def SetAttributes(
        self, request: pb.SetAttributesRequest, context: _Context
    ) -> pb.SetAttributesResponse:
        attributes = wire.read_attributes(request.attributes.items())
        unknown = await self._parts.writer.set_attributes(
            request.collection, list(request.ids), attributes, caller().tenant
        )
        return pb.SetAttributesResponse(unknown_ids=unknown)

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        search = wire.read_search(request, caller().tenant)
        return wire.write_found(await self._parts.searcher.search(search), search.tenant)

    async def Calibrate(
        self, request: pb.CalibrateRequest, context: _Context
    ) -> AsyncIterator[pb.CalibrateResponse]:
        full = (await self._parts.store.find(request.collection)).full
        wanted = read_calibrate(request, full)
        steps: asyncio.Queue[pb.CalibrateResponse | None] = asyncio.Queue()
        last_s, last_step = 0.0, ""

        def on_progress(step: str, done: int, total: int) -> None:
            nonlocal last_s, last_step
            now = time.monotonic()
            if step != last_step or done == total or now - last_s >= _PROGRESS_S:
                last_s, last_step = now, step
                steps.put_nowait(pb.CalibrateResponse(step=step, done=done, total=total))

        async def run() -> None:
            calibration = await self._parts.calibrator.run(wanted, on_progress)
            steps.put_nowait(pb.CalibrateResponse(calibration=write_calibration(calibration)))

        async for step in self._follow(run(), steps, context):
            yield step

    async def GetRecall(
        self, request: pb.GetRecallRequest, context: _Context
    ) -> pb.GetRecallResponse:
        tenant = caller().tenant
        collection = await tenants.find(self._parts.store, request.collection, tenant)
        seen = tenants.own_slices(self._parts.shadow.seen(collection), tenant)
        history_of = request.history_of if request.HasField("history_of") else None
        return pb.GetRecallResponse(
            slices=[write_watched(name, known, name == history_of) for name, known in seen.items()],
            since=int(self._parts.shadow.since),
        )

    async def ListLostSearches(
        self, request: pb.ListLostSearchesRequest, context: _Context
    ) -> pb.ListLostSearchesResponse:
        collection = await self._parts.store.find(request.collection)
        slice_ = request.slice if request.HasField("slice") else None
        lost = self._parts.lost.of(collection.name, slice_)
        return pb.ListLostSearchesResponse(searches=map(write_lost, lost))

    async def GetCalibration(
        self, request: pb.GetCalibrationRequest, context: _Context
    ) -> pb.GetCalibrationResponse:
        collection = await self._parts.store.find(request.collection)
        calibration = self._parts.promises.calibration(collection)
        if calibration is None:
            raise NotFound(f"collection {collection.name!r} is not calibrated; run Calibrate")
        png = b""
        if request.with_plot:
            png = await asyncio.to_thread(plot, calibration, collection.name)
        return pb.GetCalibrationResponse(calibration=write_calibration(calibration, png))

    async def Evaluate(
        self, request: pb.EvaluateRequest, context: _Context
    ) -> AsyncIterator[pb.EvaluateResponse]:
        steps: asyncio.Queue[pb.EvaluateResponse | None] = asyncio.Queue()
        queries, contenders, limit = read_evaluate(request)
        last_s = 0.0

        def on_progress(done: int, total: int) -> None:
            nonlocal last_s
            now = time.monotonic()
            if done == total or now - last_s >= _PROGRESS_S:
                last_s = now
                steps.put_nowait(pb.EvaluateResponse(done=done, total=total))

        async def run() -> None:
            evaluation = await self._parts.evaluator.run(queries, contenders, limit, on_progress)
            steps.put_nowait(pb.EvaluateResponse(evaluation=write_evaluation(evaluation)))

        async for step in self._follow(run(), steps, context):
            yield step

    async def MigrateCollection(
        self, request: pb.MigrateCollectionRequest, context: _Context
    ) -> AsyncIterator[pb.MigrateCollectionResponse]:
        running = await self._parts.migrations.begin(
            wire.read_migrate(request), self._parts.changes
        )
        await self._parts.catalog.count()
        async for _ in _seldom(running.follow()):
            yield pb.MigrateCollectionResponse(change=wire.write_change(running))
        built = await self._parts.catalog.get(request.target, caller().tenant)
        yield pb.MigrateCollectionResponse(collection=await self._write_collection(built))

    async def CutOver(self, request: pb.CutOverRequest, context: _Context) -> pb.CutOverResponse:
        await self._parts.migrations.cut_over(request.name)
        return pb.CutOverResponse()

    async def RollBack(self, request: pb.RollBackRequest, context: _Context) -> pb.RollBackResponse:
        await self._parts.migrations.roll_back(request.name)
        return pb.RollBackResponse()

    async def FinishMigration(
        self, request: pb.FinishMigrationRequest, context: _Context
    ) -> pb.FinishMigrationResponse:
        await self._parts.migrations.finish(request.name)
        return pb.FinishMigrationResponse()

    async def _write_collection(self, found: Description) -> pb.Collection:
        if caller().tenant is not None:
            return wire.write_collection(found)
        change = read_change(found.collection)
        agreements = None
        if change is not None and change.is_waiting:
            agreements = await asyncio.to_thread(self._parts.agreements.of, change.id)
        running = self._parts.changes.running(found.collection.name)
        return wire.write_collection(found, running, agreements)

    async def _follow(
        self, work: Coroutine[Any, Any, None], steps: "asyncio.Queue[_M | None]", context: _Context
    ) -> AsyncIterator[_M]:
        """Give what long work puts into `steps` until it ends; it ends with its caller."""
        # A task of its own: a generator whose caller left is not told so.
        task = asyncio.create_task(work)
        self._long_work.add(task)
        task.add_done_callback(self._long_work.discard)
        task.add_done_callback(lambda _: steps.put_nowait(None))
        context.add_done_callback(lambda _: task.cancel())
        while (step := await steps.get()) is not None:
            yield step
        await task


async def _seldom(steps: AsyncIterator[Progress]) -> AsyncIterator[Progress]:
    """Give the first of each step, its last, and of the others one now and then."""
    last_s, last_step = 0.0, ""
    async for step in steps:
        now = time.monotonic()
        if step.step != last_step or step.done == step.total or now - last_s >= _PROGRESS_S:
            last_s, last_step = now, step.step
            yield step
