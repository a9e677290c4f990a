"""The router's gRPC door: one method each, from message to message.

Also where the router's long-lived objects are built, started and closed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.router import tenants, wire
from services.router.catalog import Catalog, Description
from services.router.changes.changes import Changes
from services.router.changes.running import Progress
from services.router.changes.sample import Sampler
from services.router.encoder_client import EncoderClient
from services.router.gate import WriteGate
from services.router.metrics import RouterMetrics
from services.router.recall import calibrate
from services.router.recall.calibrate import Calibrator
from services.router.recall.calibration_plot import plot
from services.router.recall.calibration_wire import (
    read_calibrate,
    read_calibrated,
    write_calibration,
    write_watched,
)
from services.router.recall.evaluate import Evaluator
from services.router.recall.evaluate_wire import read_evaluate, write_evaluation
from services.router.recall.promise import Promises
from services.router.recall.queries import Queries
from services.router.recall.recent import Recent
from services.router.recall.shadow import Live, Shadow
from services.router.reindex import Reindexer
from services.router.search import Searcher
from services.router.settings import RouterSettings
from services.router.storage.edge import EdgeStore
from services.router.storage.qdrant import QdrantStore
from services.router.storage.store import Collection, Store
from services.router.trainer_client import TrainerClient
from services.router.upsert import Batch, Writer
from services.router.vector_stores import files_http as store_files_http
from services.router.vector_stores import stores_http
from services.router.vector_stores.files_http import VectorStoreFilesHttp
from services.router.vector_stores.retrieval import Retrieval
from services.router.vector_stores.stores_http import VectorStoresHttp
from services.shared import files_http
from services.shared.auth import caller
from services.shared.errors import NotFound, ServiceError
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
    """

    name = "router"
    grpc_name = pb.DESCRIPTOR.services_by_name["RouterService"].full_name
    # Each of these asks `caller()` whose points, files and stores it may touch.
    open_to_tenants = frozenset(
        {
            "GetCollection", "ListCollections", "Upsert", "Delete", "Search", "GetRecall",
            *files_http.OPEN_TO_TENANTS, *stores_http.OPEN_TO_TENANTS,
            *store_files_http.OPEN_TO_TENANTS,
        }
    )  # fmt: skip

    def __init__(self, settings: RouterSettings, registry: CollectorRegistry) -> None:
        router_metrics = RouterMetrics(registry)
        self.metrics = router_metrics
        self._settings = settings
        self._store = _build_store(settings, router_metrics)
        self._gate = WriteGate(self._store)
        self._long_work: set[asyncio.Task[None]] = set()
        self._retrieval = Retrieval(settings, router_metrics)
        self._open = AsyncExitStack()

    async def start(self) -> None:
        # grpc.aio wants its channels built on the loop that uses them.
        s = self._settings
        encoder = EncoderClient(
            s.encoder_address,
            s.encoder_api_key.get_secret_value() if s.encoder_api_key else None,
            s.encoder_timeout_s,
            s.encoder_batch_texts,
            s.encoder_concurrency,
            s.max_message_bytes,
            s.encoder_max_wait_s,
        )
        self._open.push_async_callback(encoder.close)
        store, gate, metrics = self._store, self._gate, self.metrics
        await store.open()
        self._open.push_async_callback(store.close)
        self._catalog = Catalog(store, encoder, gate, metrics)
        self._promises = Promises(s.max_candidates)
        self._searcher = Searcher(
            store, encoder, metrics, self._promises, s.max_limit, s.max_text_chars, self._on_live
        )
        self._recent = Recent(store, s.recent_queries, s.recent_collections, s.recent_flush_s)
        self._shadow = Shadow(
            store, metrics, s.shadow_share, s.shadow_max_busy, s.shadow_queue, s.shadow_slices,
            self._on_alarm,
        )  # fmt: skip
        for watcher in (self._recent, self._shadow):
            watcher.start()
            self._open.push_async_callback(watcher.stop)
        queries = Queries(store, encoder, self._recent, s.calibrate_queries)
        longest = min(s.calibrate_candidates, s.max_candidates)
        self._calibrator = Calibrator(store, queries, s.calibrate_points, longest, s.max_limit)
        self._evaluator = Evaluator(self._searcher, s.evaluate_queries)
        self._writer = Writer(
            store, encoder, gate, metrics, s.max_batch_points, s.max_text_chars, s.upsert_read_ahead
        )
        trainer = TrainerClient(
            s.trainer_address,
            s.trainer_api_key.get_secret_value() if s.trainer_api_key else None,
            s.trainer_timeout_s,
            s.max_message_bytes,
        )
        self._open.push_async_callback(trainer.close)
        spool = s.data_dir / "samples"
        sampler = Sampler(store, self._recent, trainer, spool, s.nest_points)
        self._changes = Changes(
            store, self._calibrator, sampler, trainer, metrics, s.change_lease_s
        )
        self._changes.start()
        self._open.push_async_callback(self._changes.stop)
        self._reindexer = Reindexer(store, encoder, gate, metrics, s.reindex_batch_points)
        await self._catalog.count()
        self._open.push_async_callback(self._retrieval.stop)
        await self._retrieval.start(self._catalog, encoder, self._writer, self._searcher)

    async def stop(self) -> None:
        for task in self._long_work:
            task.cancel()
        await asyncio.gather(*self._long_work, return_exceptions=True)
        await self._open.aclose()

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_RouterServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        s, retrieval = self._settings, self._retrieval
        files = FilesHttp(lambda: retrieval.files, s.max_upload_s, retrieval.forget_file)
        stores = VectorStoresHttp(retrieval, s.max_body_bytes)
        store_files = VectorStoreFilesHttp(retrieval, s.max_body_bytes)
        return [*files.routes(), *stores.routes(), *store_files.routes()]

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: _Context
    ) -> pb.CreateCollectionResponse:
        sizes = wire.read_sizes(request.sizes)
        created = await self._catalog.create(request.name, request.model, sizes)
        return pb.CreateCollectionResponse(collection=wire.write_collection(created))

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: _Context
    ) -> pb.GetCollectionResponse:
        found = await self._catalog.get(request.name, caller().tenant)
        return pb.GetCollectionResponse(collection=self._write_collection(found))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: _Context
    ) -> pb.ListCollectionsResponse:
        listed = await self._catalog.list(caller().tenant)
        return pb.ListCollectionsResponse(collections=map(self._write_collection, listed))

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: _Context
    ) -> pb.DeleteCollectionResponse:
        await self._catalog.delete(request.name)
        return pb.DeleteCollectionResponse()

    async def SetCollectionAlias(
        self, request: pb.SetCollectionAliasRequest, context: _Context
    ) -> pb.SetCollectionAliasResponse:
        await self._catalog.set_alias(request.alias, request.collection)
        return pb.SetCollectionAliasResponse()

    async def ResizeCollection(
        self, request: pb.ResizeCollectionRequest, context: _Context
    ) -> AsyncIterator[pb.ResizeCollectionResponse]:
        running = await self._changes.resize(request.name, wire.read_sizes(request.sizes))
        async for _ in _seldom(running.follow()):
            yield pb.ResizeCollectionResponse(change=wire.write_change(running))
        changed = await self._catalog.get(request.name, caller().tenant)
        yield pb.ResizeCollectionResponse(collection=self._write_collection(changed))

    async def NestCollection(
        self, request: pb.NestCollectionRequest, context: _Context
    ) -> AsyncIterator[pb.NestCollectionResponse]:
        calibrated = read_calibrated(request)
        running = await self._changes.nest(request.name, wire.read_sizes(request.sizes), calibrated)
        async for _ in _seldom(running.follow()):
            yield pb.NestCollectionResponse(change=wire.write_change(running))
        changed = await self._catalog.get(request.name, caller().tenant)
        yield pb.NestCollectionResponse(
            collection=self._write_collection(changed),
            quality=map(wire.write_quality, running.quality),
        )

    async def CancelChange(
        self, request: pb.CancelChangeRequest, context: _Context
    ) -> pb.CancelChangeResponse:
        await self._changes.cancel(request.name)
        return pb.CancelChangeResponse()

    async def Upsert(
        self, request_iterator: AsyncIterator[pb.UpsertRequest], context: _Context
    ) -> AsyncIterator[pb.UpsertResponse]:
        async def batches() -> AsyncIterator[Batch]:
            async for request in request_iterator:
                yield wire.read_batch(request)

        async for acknowledged in self._writer.upsert(batches(), caller().tenant):
            yield wire.write_acknowledged(acknowledged)

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:
        await self._writer.delete(request.collection, list(request.ids), caller().tenant)
        return pb.DeleteResponse()

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        search = wire.read_search(request, caller().tenant)
        return wire.write_found(await self._searcher.search(search))

    async def Calibrate(
        self, request: pb.CalibrateRequest, context: _Context
    ) -> AsyncIterator[pb.CalibrateResponse]:
        full = (await self._store.find(request.collection)).full
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
            calibration = await self._calibrator.run(wanted, on_progress)
            steps.put_nowait(pb.CalibrateResponse(calibration=write_calibration(calibration)))

        async for step in self._follow(run(), steps, context):
            yield step

    async def GetRecall(
        self, request: pb.GetRecallRequest, context: _Context
    ) -> pb.GetRecallResponse:
        tenant = caller().tenant
        collection = await tenants.find(self._store, request.collection, tenant)
        seen = self._shadow.seen(collection).items()
        named = [(tenants.from_slice(slice_, tenant), watched) for slice_, watched in seen]
        return pb.GetRecallResponse(
            slices=[write_watched(name, watched) for name, watched in named if name is not None]
        )

    async def GetCalibration(
        self, request: pb.GetCalibrationRequest, context: _Context
    ) -> pb.GetCalibrationResponse:
        collection = await self._store.find(request.collection)
        calibration = self._promises.calibration(collection)
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
            evaluation = await self._evaluator.run(queries, contenders, limit, on_progress)
            steps.put_nowait(pb.EvaluateResponse(evaluation=write_evaluation(evaluation)))

        async for step in self._follow(run(), steps, context):
            yield step

    async def Reindex(
        self, request: pb.ReindexRequest, context: _Context
    ) -> AsyncIterator[pb.ReindexResponse]:
        steps: asyncio.Queue[pb.ReindexResponse | None] = asyncio.Queue()
        last = pb.ReindexResponse()

        def on_progress(num_points: int, total_points: int) -> None:
            last.num_points, last.total_points = num_points, total_points
            steps.put_nowait(pb.ReindexResponse(num_points=num_points, total_points=total_points))

        run = self._reindexer.run(wire.read_reindex(request), on_progress)
        async for step in self._follow(run, steps, context):
            yield step
        last.done = True
        yield last

    def _write_collection(self, found: Description) -> pb.Collection:
        is_operator = caller().tenant is None
        running = self._changes.running(found.collection.name) if is_operator else None
        return wire.write_collection(found, running)

    def _on_live(self, live: Live) -> None:
        """Take note of a search that was answered."""
        self._recent.observe(live.collection, live.query_D, live.slice)
        self._shadow.offer(live)

    def _on_alarm(self, collection: Collection) -> None:
        """Calibrate again, if that is wanted, as it was done before."""
        calibration = self._promises.calibration(collection)
        if not self._settings.recalibrate or calibration is None:
            return
        wanted = calibrate.Calibrate(
            collection.name, calibration.limit, calibration.target, calibration.objective,
            calibration.confidence,
        )  # fmt: skip
        task = asyncio.create_task(self._recalibrate(wanted))
        self._long_work.add(task)
        task.add_done_callback(self._long_work.discard)

    async def _recalibrate(self, wanted: calibrate.Calibrate) -> None:
        try:
            await self._calibrator.run(wanted, lambda *_: None)
        except ServiceError as error:
            log.warning("%s could not be calibrated again: %s", wanted.collection, error.message)

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


def _build_store(settings: RouterSettings, metrics: RouterMetrics) -> Store:
    if settings.qdrant_url is None:
        return EdgeStore(
            settings.data_dir / "collections",
            settings.edge_queue,
            settings.edge_indexing_threshold_kb,
            settings.edge_start_timeout_s,
            metrics.worker_restarts.inc,
        )
    api_key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return QdrantStore.connect(
        settings.qdrant_url, settings.qdrant_grpc_port, api_key, settings.qdrant_timeout_s
    )
