"""The router's gRPC door: one method each, from message to message.

Also where the router's long-lived objects are built, started and closed.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.router import wire
from services.router.catalog import Catalog
from services.router.edge import EdgeStore
from services.router.encoder_client import EncoderClient
from services.router.gate import WriteGate
from services.router.metrics import RouterMetrics
from services.router.qdrant import QdrantStore
from services.router.reindex import Reindexer
from services.router.search import Searcher
from services.router.settings import RouterSettings
from services.router.store import Store
from services.router.upsert import Batch, Writer
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc

_Context = Any  # grpc.aio's context; used to learn that a caller left, as errors are raised


class RouterService(pb_grpc.RouterServiceServicer):
    """The router as the server sees it (`services.shared.server.Service`).

    Args:
        settings: see there.
        registry: gets the router's metrics.
    """

    name = "router"
    grpc_name = pb.DESCRIPTOR.services_by_name["RouterService"].full_name

    def __init__(self, settings: RouterSettings, registry: CollectorRegistry) -> None:
        router_metrics = RouterMetrics(registry)
        self.metrics = router_metrics
        self._settings = settings
        self._store = _build_store(settings, router_metrics)
        self._gate = WriteGate(self._store)
        self._reindexes: set[asyncio.Task[None]] = set()
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
        self._searcher = Searcher(
            store, encoder, metrics, s.max_limit, s.max_candidates, s.max_text_chars
        )
        self._writer = Writer(store, encoder, gate, metrics, s.max_batch_points, s.max_text_chars)
        self._reindexer = Reindexer(store, encoder, gate, metrics, s.reindex_batch_points)
        await self._catalog.count()

    async def stop(self) -> None:
        for reindex in self._reindexes:
            reindex.cancel()
        await asyncio.gather(*self._reindexes, return_exceptions=True)
        await self._open.aclose()

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_RouterServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        return []

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: _Context
    ) -> pb.CreateCollectionResponse:
        sizes = wire.read_sizes(request.sizes)
        created = await self._catalog.create(request.name, request.model, sizes)
        return pb.CreateCollectionResponse(collection=wire.write_collection(created))

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: _Context
    ) -> pb.GetCollectionResponse:
        found = await self._catalog.get(request.name)
        return pb.GetCollectionResponse(collection=wire.write_collection(found))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: _Context
    ) -> pb.ListCollectionsResponse:
        listed = await self._catalog.list()
        return pb.ListCollectionsResponse(collections=map(wire.write_collection, listed))

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

    async def Upsert(
        self, request_iterator: AsyncIterator[pb.UpsertRequest], context: _Context
    ) -> AsyncIterator[pb.UpsertResponse]:
        async def batches() -> AsyncIterator[Batch]:
            async for request in request_iterator:
                yield wire.read_batch(request)

        async for acknowledged in self._writer.upsert(batches()):
            yield wire.write_acknowledged(acknowledged)

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:
        await self._writer.delete(request.collection, list(request.ids))
        return pb.DeleteResponse()

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        return wire.write_found(await self._searcher.search(wire.read_search(request)))

    async def Reindex(
        self, request: pb.ReindexRequest, context: _Context
    ) -> AsyncIterator[pb.ReindexResponse]:
        steps: asyncio.Queue[pb.ReindexResponse | None] = asyncio.Queue()
        last = pb.ReindexResponse()

        def on_progress(num_points: int, total_points: int) -> None:
            last.num_points, last.total_points = num_points, total_points
            steps.put_nowait(pb.ReindexResponse(num_points=num_points, total_points=total_points))

        # A task of its own: a generator whose caller left is not told so.
        reindex = asyncio.create_task(self._reindexer.run(wire.read_reindex(request), on_progress))
        self._reindexes.add(reindex)
        reindex.add_done_callback(self._reindexes.discard)
        reindex.add_done_callback(lambda _: steps.put_nowait(None))
        context.add_done_callback(lambda _: reindex.cancel())
        while (step := await steps.get()) is not None:
            yield step
        await reindex
        last.done = True
        yield last


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
