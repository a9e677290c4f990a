"""A Qdrant server on loopback, in this process: its own gRPC, collections in shards, failures.

There is no Qdrant server in the tests' environment. This one speaks the same protobufs and keeps
each shard of a collection in an in-memory collection of the client's own. What it does over the
shards is what the server does, as read in qdrant/qdrant:

- lib/collection/src/collection/query.rs: the whole query, its prefetches included, goes to every
  shard with the prefetches' limits as they are; what comes out of the root is merged by score and
  cut (`merge_intermediate_results_from_shards`). A root limit of 128 or more that is not exact is
  lowered for each shard (`modify_shard_query_for_undersampling_limits`).
- lib/collection/src/shards/local_shard/query.rs: nested stages are scored within their shard.
- lib/collection/src/collection/resharding.rs: `shard_number` tells how many shards there are now.

It has no replicas, graphs or codes: their numbers are kept and shown, and scores are exact.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from qdrant_client import AsyncQdrantClient, models
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload
from qdrant_client.grpc.collections_service_pb2_grpc import (
    CollectionsServicer,
    add_CollectionsServicer_to_server,
)
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server
from scipy.stats import poisson

UNDERSAMPLED_FROM = 128
DONE = q.UpdateResult(operation_id=1, status=q.UpdateStatus.Completed)


@dataclass
class Failure:
    """What goes wrong with a call."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    is_after: bool = False
    """The call does its work first, and only its answer is lost."""


@dataclass
class Held:
    """What the server knows of a collection beside its points."""

    shards: int
    replicas: int
    write_consistency_factor: int
    created: q.CreateCollection


@dataclass
class ShardedQdrant:
    """The server.

    Args:
        default_shards: of collections that say nothing.
    """

    default_shards: int = 1
    held: dict[str, Held] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    """{call: what goes wrong with the next ones}."""
    waiting: dict[str, asyncio.Event] = field(default_factory=dict)
    """{call: what it waits for before it does anything}."""
    calls: Counter[str] = field(default_factory=Counter)
    queries: list[models.QueryRequest] = field(default_factory=list)
    """As they came."""
    port: int = 0
    credentials: grpc.ServerCredentials | None = None
    """With which it speaks TLS; None: it does not."""
    metadata: list[tuple[str, str]] = field(default_factory=list)
    """Of the last call."""

    def __post_init__(self) -> None:
        self._shards: list[AsyncQdrantClient] = []
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen, on the same port as before, with what there was."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_CollectionsServicer_to_server(_Collections(self), self._server)
        add_PointsServicer_to_server(_Points(self), self._server)
        address = f"127.0.0.1:{self.port}"
        self.port = (
            self._server.add_insecure_port(address)
            if self.credentials is None
            else self._server.add_secure_port(address, self.credentials)
        )
        await self._server.start()

    async def kill(self) -> None:
        """Break all connections at once."""
        assert self._server is not None
        await self._server.stop(None)

    def shards(self, name: str) -> list[AsyncQdrantClient]:
        """The shards of a collection."""
        count = self.held[name].shards
        while len(self._shards) < count:
            self._shards.append(AsyncQdrantClient(":memory:"))
        return self._shards[:count]

    def shard_of(self, name: str, id_: Any) -> AsyncQdrantClient:
        shards = self.shards(name)
        return shards[zlib.crc32(str(id_).encode()) % len(shards)]

    def name(self, name: str) -> str:
        """The collection behind a name or alias; ValueError, if there is none."""
        found = self.aliases.get(name, name)
        if found not in self.held:
            raise ValueError(f"Collection {name} not found")
        return found

    async def reshard(self, name: str, shards: int) -> None:
        """Spread a collection's points over another number of shards."""
        before, points = self.shards(name), []
        info = await before[0].get_collection(name)
        for shard in before:
            points += (await shard.scroll(name, limit=10**6, with_vectors=True))[0]
            await shard.delete_collection(name)
        self.held[name].shards = shards
        for shard in self.shards(name):
            params, metadata = info.config.params, info.config.metadata
            await shard.create_collection(
                name, params.vectors, params.sparse_vectors, metadata=metadata
            )
        for record in points:
            point = models.PointStruct(id=record.id, vector=record.vector, payload=record.payload)
            await self.shard_of(name, record.id).upsert(name, [point])

    async def answer(
        self, call: str, context: grpc.aio.ServicerContext, work: Callable[[], Awaitable[Any]]
    ) -> Any:
        self.calls[call] += 1
        self.metadata = [(str(key), str(value)) for key, value in context.invocation_metadata()]
        if call in self.waiting:
            await self.waiting[call].wait()
        wrong = self.failures.get(call, [])
        failure = wrong.pop(0) if wrong else None
        if failure and not failure.is_after:
            await context.abort(failure.code, "chosen to fail")
        try:
            answer = await work()
        except KeyError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"No point with id {error} found")
        except ValueError as error:
            is_missing = "not found" in str(error) and "vector" not in str(error).lower()
            code = grpc.StatusCode.NOT_FOUND if is_missing else grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, str(error))
        if failure:
            await context.abort(failure.code, "chosen to lose the answer")
        return answer


def _answered(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    # Two names stand in both services; those of points say so.
    is_twice = method.__name__ in ("Get", "Delete") and "_Points" in method.__qualname__
    call = f"{method.__name__}_points" if is_twice else method.__name__

    async def handle(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await self.server.answer(call, context, lambda: method(self, request))

    return handle


class _Collections(CollectionsServicer):
    def __init__(self, server: ShardedQdrant) -> None:
        self.server = server

    @_answered
    async def Create(self, request: q.CreateCollection) -> q.CollectionOperationResponse:
        server, name = self.server, request.collection_name
        if name in server.held or name in server.aliases:
            raise ValueError(f"Collection {name} already exists")
        server.held[name] = Held(
            request.shard_number or server.default_shards,
            request.replication_factor or 1,
            request.write_consistency_factor or 1,
            request,
        )
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        sparse = GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config)
        for shard in server.shards(name):
            await shard.create_collection(
                name, vectors, sparse, metadata=grpc_to_payload(request.metadata) or None
            )
        return q.CollectionOperationResponse(result=True)

    @_answered
    async def Get(self, request: q.GetCollectionInfoRequest) -> q.GetCollectionInfoResponse:
        name = self.server.name(request.collection_name)
        info = await self.server.shards(name)[0].get_collection(name)
        held = self.server.held[name]
        info.config.params.shard_number = held.shards
        info.config.params.replication_factor = held.replicas
        info.config.params.write_consistency_factor = held.write_consistency_factor
        return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    @_answered
    async def List(self, request: q.ListCollectionsRequest) -> q.ListCollectionsResponse:
        names = [q.CollectionDescription(name=name) for name in self.server.held]
        return q.ListCollectionsResponse(collections=names)

    @_answered
    async def Update(self, request: q.UpdateCollection) -> q.CollectionOperationResponse:
        name = self.server.name(request.collection_name)
        diff = None
        if request.HasField("vectors_config"):
            diff = GrpcToRest.convert_vectors_config_diff(request.vectors_config)
        metadata = grpc_to_payload(request.metadata) or None
        for shard in self.server.shards(name):
            await shard.update_collection(name, vectors_config=diff, metadata=metadata)
        return q.CollectionOperationResponse(result=True)

    @_answered
    async def Delete(self, request: q.DeleteCollection) -> q.CollectionOperationResponse:
        name, is_there = request.collection_name, request.collection_name in self.server.held
        if is_there:
            for shard in self.server.shards(name):
                await shard.delete_collection(name)
            del self.server.held[name]
        return q.CollectionOperationResponse(result=is_there)

    @_answered
    async def CollectionExists(
        self, request: q.CollectionExistsRequest
    ) -> q.CollectionExistsResponse:
        exists = request.collection_name in self.server.held
        return q.CollectionExistsResponse(result=q.CollectionExists(exists=exists))

    @_answered
    async def UpdateAliases(self, request: q.ChangeAliases) -> q.CollectionOperationResponse:
        for action in request.actions:
            if action.WhichOneof("action") == "create_alias":
                alias = action.create_alias
                self.server.aliases[alias.alias_name] = alias.collection_name
            else:
                del self.server.aliases[action.delete_alias.alias_name]
        return q.CollectionOperationResponse(result=True)

    @_answered
    async def ListAliases(self, request: q.ListAliasesRequest) -> q.ListAliasesResponse:
        described = [
            q.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in self.server.aliases.items()
        ]
        return q.ListAliasesResponse(aliases=described)


class _Points(PointsServicer):
    def __init__(self, server: ShardedQdrant) -> None:
        self.server = server

    @_answered
    async def Upsert(self, request: q.UpsertPoints) -> q.PointsOperationResponse:
        name = self.server.name(request.collection_name)
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        for shard in self.server.shards(name):
            mine = [p for p in points if self.server.shard_of(name, p.id) is shard]
            if mine:
                await shard.upsert(name, mine)
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def Delete(self, request: q.DeletePoints) -> q.PointsOperationResponse:
        name = self.server.name(request.collection_name)
        selector = GrpcToRest.convert_points_selector(request.points)
        for shard in self.server.shards(name):
            await shard.delete(name, selector)
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def SetPayload(self, request: q.SetPayloadPoints) -> q.PointsOperationResponse:
        name = self.server.name(request.collection_name)
        payload = grpc_to_payload(request.payload)
        selector = GrpcToRest.convert_points_selector(request.points_selector)
        for shard in self.server.shards(name):
            await shard.set_payload(name, payload, selector)
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def UpdateVectors(self, request: q.UpdatePointVectors) -> q.PointsOperationResponse:
        name = self.server.name(request.collection_name)
        for vectors in map(GrpcToRest.convert_point_vectors, request.points):
            await self.server.shard_of(name, vectors.id).update_vectors(name, [vectors])
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def CreateFieldIndex(
        self, request: q.CreateFieldIndexCollection
    ) -> q.PointsOperationResponse:
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def CreateVectorName(self, request: q.CreateVectorNameRequest) -> Any:
        name, config = self.server.name(request.collection_name), request.dense_config
        wanted: Any = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
        if request.HasField("dense_config"):
            dense = models.DenseVectorConfig(
                size=config.size, distance=GrpcToRest.convert_distance(config.distance)
            )
            wanted = models.DenseVectorNameConfig(dense=dense)
        for shard in self.server.shards(name):
            await shard.create_vector_name(name, request.vector_name, wanted)
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def DeleteVectorName(self, request: q.DeleteVectorNameRequest) -> Any:
        name = self.server.name(request.collection_name)
        for shard in self.server.shards(name):
            await shard.delete_vector_name(name, request.vector_name)
        return q.PointsOperationResponse(result=DONE)

    @_answered
    async def Get(self, request: q.GetPoints) -> q.GetResponse:
        name = self.server.name(request.collection_name)
        ids = [GrpcToRest.convert_point_id(id_) for id_ in request.ids]
        records: list[models.Record] = []
        for shard in self.server.shards(name):
            records += await shard.retrieve(
                name, ids, GrpcToRest.convert_with_payload_selector(request.with_payload),
                GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )  # fmt: skip
        return q.GetResponse(result=map(_to_grpc, records))

    @_answered
    async def Count(self, request: q.CountPoints) -> q.CountResponse:
        name = self.server.name(request.collection_name)
        wanted = GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        counts = [(await shard.count(name, wanted)).count for shard in self.server.shards(name)]
        return q.CountResponse(result=q.CountResult(count=sum(counts)))

    @_answered
    async def Scroll(self, request: q.ScrollPoints) -> q.ScrollResponse:
        name, limit = self.server.name(request.collection_name), request.limit
        wanted = GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        after = GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None
        vectors = False
        if request.HasField("with_vectors"):
            vectors = GrpcToRest.convert_with_vectors_selector(request.with_vectors)
        records: list[models.Record] = []
        for shard in self.server.shards(name):
            page, _ = await shard.scroll(
                name, wanted, limit + 1, offset=after, with_vectors=vectors,
                with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            )  # fmt: skip
            records += page
        records.sort(key=lambda record: str(record.id).rjust(20))
        more = records[limit:]
        return q.ScrollResponse(
            result=map(_to_grpc, records[:limit]),
            next_page_offset=RestToGrpc.convert_extended_point_id(more[0].id) if more else None,
        )

    @_answered
    async def Query(self, request: q.QueryPoints) -> q.QueryResponse:
        name = self.server.name(request.collection_name)
        wanted = GrpcToRest.convert_query_points(request)
        self.server.queries.append(wanted)
        shards = self.server.shards(name)
        limit = _shard_limit(wanted, len(shards))
        found: list[models.ScoredPoint] = []
        for shard in shards:
            answer = await shard.query_points(
                name, wanted.query, wanted.using, wanted.prefetch, wanted.filter, limit=limit,
                with_payload=wanted.with_payload,
            )  # fmt: skip
            found += answer.points
        found.sort(key=lambda point: (-point.score, str(point.id)))
        merged = found[: wanted.limit]
        return q.QueryResponse(result=map(RestToGrpc.convert_scored_point, merged))


def _to_grpc(record: models.Record) -> q.RetrievedPoint:
    record.payload = record.payload or {}
    return RestToGrpc.convert_record(record)


def _shard_limit(wanted: models.QueryRequest, shards: int) -> int:
    is_exact = wanted.params is not None and bool(wanted.params.exact)
    assert wanted.limit is not None
    if shards == 1 or is_exact or wanted.limit < UNDERSAMPLED_FROM:
        return wanted.limit
    quantile = poisson.ppf(0.999 ** (1 / shards), 1.2 * wanted.limit / shards)
    return min(wanted.limit, int(quantile))
