"""A Qdrant server as the store. The only file that knows `qdrant_client`.

The router keeps nothing of its own: what a collection is lies in the collection's metadata, and
`find` asks for it each time, so that several routers may share one server.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.router.filters import Filter
from services.router.plan import Plan, Stage, oversampling
from services.router.sizes import Size, cut
from services.router.storage.conditions import to_conditions, to_count
from services.router.storage.store import (
    TENANT,
    Answer,
    Collection,
    KeptQueries,
    Page,
    Point,
    ScoredPoint,
    Vectors,
    clamp,
    from_metadata,
    from_payload,
    is_plain_rescoring,
    latest,
    not_found,
    point_uuid,
    taken,
    to_metadata,
    to_payload,
)
from services.shared.errors import NotFound, Overloaded, ServiceError, Unavailable, peer_errors
from services.shared.vectors import Array, normalize

_METADATA_KEY = "matryoshka"
_QUERIES_PREFIX = "matryoshka-queries."
_QUERIES_PAGE = 1000
_SETTLE_POLL_S = 0.2


class QdrantStore:
    """Collections on a Qdrant server, or in memory under tests.

    Args:
        client: owned from here on; closed by `close`.
        settle_timeout_s: longest wait for the server's own indexing after a stream of writes.
    """

    def __init__(self, client: AsyncQdrantClient, settle_timeout_s: float = 60.0) -> None:
        self._client = client
        self._settle_timeout_s = settle_timeout_s

    @classmethod
    def connect(
        cls, url: str, grpc_port: int, api_key: str | None, timeout_s: int
    ) -> "QdrantStore":
        """Build a store over gRPC; nothing is sent before `open`."""
        return cls(
            AsyncQdrantClient(
                url=url,
                grpc_port=grpc_port,
                prefer_grpc=True,
                api_key=api_key,
                timeout=timeout_s,
                # It would ask over HTTP while building, and only to log a warning.
                check_compatibility=False,
            )
        )

    async def open(self) -> None:
        with _engine_errors():
            await self._client.get_collections()

    async def create(self, collection: Collection) -> None:
        if await self._is_taken(collection.name):
            raise taken(collection.name)
        with _engine_errors():
            await self._client.create_collection(
                collection.name,
                vectors_config={
                    size.vector_name: _vector_params(size) for size in collection.sizes
                },
                metadata={_METADATA_KEY: to_metadata(collection)},
            )
            index = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            await self._client.create_payload_index(collection.name, TENANT, index, wait=True)

    async def _is_taken(self, name: str) -> bool:
        with _engine_errors():
            collections = await self._client.get_collections()
        return name in {c.name for c in collections.collections} or name in await self.aliases()

    async def find(self, name: str) -> Collection:
        # The server follows aliases here; the real name is in the metadata. One round trip.
        with _engine_errors(name):
            info = await self._client.get_collection(name)
        metadata = (info.config.metadata or {}).get(_METADATA_KEY)
        if metadata is None:
            raise not_found(name)  # somebody else's collection on the same server
        return from_metadata(metadata)

    async def collections(self) -> list[Collection]:
        with _engine_errors():
            names = sorted(c.name for c in (await self._client.get_collections()).collections)
        found = await asyncio.gather(*map(self.find, names), return_exceptions=True)
        failed = [r for r in found if isinstance(r, BaseException) and not isinstance(r, NotFound)]
        if failed:
            raise failed[0]
        return [collection for collection in found if isinstance(collection, Collection)]

    async def drop(self, name: str) -> None:
        await self.find(name)
        with _engine_errors(name):
            await self._client.delete_collection(name)
            await self._client.delete_collection(_QUERIES_PREFIX + name)

    async def aliases(self) -> dict[str, str]:
        with _engine_errors():
            listed = await self._client.get_aliases()
        return {alias.alias_name: alias.collection_name for alias in listed.aliases}

    async def set_alias(self, alias: str, name: str) -> None:
        name = (await self.find(name)).name
        present = await self.aliases()
        if alias not in present and await self._is_taken(alias):
            raise taken(alias)
        operations: list[Any] = [
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
            )
        ]
        if alias in present:  # both in one call are atomic
            operations.insert(
                0,
                models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            )
        with _engine_errors(name):
            await self._client.update_collection_aliases(operations)

    async def upsert(self, name: str, points: Sequence[Point], vectors_BD: Array) -> None:
        collection = await self.find(name)
        points, vectors_BD = latest(points, vectors_BD)
        rows = {
            vector_name: vectors_BM.tolist()
            for vector_name, vectors_BM in cut(vectors_BD, collection.sizes).items()
        }
        structs = [
            models.PointStruct(
                id=point_uuid(point.id, point.tenant),
                vector={vector_name: vectors[row] for vector_name, vectors in rows.items()},
                payload=to_payload(point),
            )
            for row, point in enumerate(points)
        ]
        with _engine_errors(name):
            await self._client.upsert(name, structs, wait=True)

    async def delete(self, name: str, ids: Sequence[str], tenant: str | None = None) -> None:
        points = models.PointIdsList(points=[point_uuid(id_, tenant) for id_ in ids])
        with _engine_errors(name):
            await self._client.delete(name, points, wait=True)

    async def search(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        query = _nested_query(collection, plan, query_D, condition)
        start = time.perf_counter()
        with _engine_errors(collection.name):
            response = await self._client.query_points(
                collection.name, limit=plan.limit, with_payload=with_points, **query
            )
        seconds = time.perf_counter() - start
        nothing = Point("", "", {})
        hits = [
            ScoredPoint(
                str(hit.id), from_payload(hit.payload) if hit.payload else nothing, clamp(hit.score)
            )
            for hit in response.points
        ]
        return Answer(hits, seconds)

    async def scroll(self, name: str, after: str | None, limit: int) -> Page:
        with _engine_errors(name):
            records, offset = await self._client.scroll(
                name, offset=after, limit=limit, with_payload=True, with_vectors=False
            )
        points = [from_payload(record.payload) for record in records if record.payload]
        return Page(points, None if offset is None else str(offset))

    async def vectors(self, name: str, after: str | None, limit: int) -> Vectors:
        collection = await self.find(name)
        full = collection.sizes[-1].vector_name
        with _engine_errors(name):
            records, offset = await self._client.scroll(
                name, offset=after, limit=limit, with_payload=False, with_vectors=[full]
            )
        rows: list[Any] = [record.vector[full] for record in records]  # type: ignore[index,call-overload]
        vectors_BD = np.array(rows, dtype=np.float32).reshape(-1, collection.full)
        # A server keeps cosine vectors at unit length; its twin in memory keeps what it got.
        return Vectors(
            [str(record.id) for record in records],
            normalize(vectors_BD),
            None if offset is None else str(offset),
        )

    async def annotate(self, name: str, calibration: dict[str, Any] | None) -> None:
        collection = replace(await self.find(name), calibration=calibration)
        with _engine_errors(name):
            await self._client.update_collection(
                name, metadata={_METADATA_KEY: to_metadata(collection)}
            )

    async def keep_queries(self, name: str, queries: KeptQueries) -> None:
        # A collection of its own, without our metadata, so that nobody takes it for a user's.
        kept, full = _QUERIES_PREFIX + name, queries.vectors_QD.shape[1]
        with _engine_errors(name):
            if not await self._client.collection_exists(kept):
                await self._client.create_collection(
                    kept,
                    vectors_config=models.VectorParams(
                        size=full, distance=models.Distance.DOT, memory=models.Memory.COLD
                    ),
                )
            structs = [
                models.PointStruct(id=place, vector=vector_D.tolist(), payload={"slice": slice_})
                for place, (vector_D, slice_) in enumerate(
                    zip(queries.vectors_QD, queries.slices, strict=True)
                )
            ]
            await self._client.upsert(kept, structs, wait=True)

    async def kept_queries(self, name: str) -> KeptQueries:
        collection = await self.find(name)
        kept = _QUERIES_PREFIX + collection.name
        rows: list[Any] = []
        slices: list[str] = []
        offset: Any = None
        with _engine_errors(name):
            is_there = await self._client.collection_exists(kept)
            while is_there:
                records, offset = await self._client.scroll(
                    kept, offset=offset, limit=_QUERIES_PAGE, with_vectors=True
                )
                rows.extend(record.vector for record in records)
                slices.extend((record.payload or {})["slice"] for record in records)
                is_there = offset is not None
        vectors_QD = np.array(rows, dtype=np.float32).reshape(-1, collection.full)
        return KeptQueries(vectors_QD, slices)

    async def count(self, name: str, without_text: bool = False, tenant: str | None = None) -> int:
        conditions = to_count(without_text, tenant)
        wanted = models.Filter.model_validate(conditions) if conditions else None
        with _engine_errors(name):
            counted = await self._client.count(name, count_filter=wanted, exact=True)
        return counted.count

    async def settle(self, name: str) -> None:
        # The server indexes by itself, and searches are right before it has: waiting only makes
        # the first ones fast, so running out of time is no error.
        try:
            async with asyncio.timeout(self._settle_timeout_s):
                with _engine_errors(name):
                    while not await self._is_indexed(name):  # noqa: ASYNC110 (a server's state)
                        await asyncio.sleep(_SETTLE_POLL_S)
        except TimeoutError:
            return

    async def _is_indexed(self, name: str) -> bool:
        info = await self._client.get_collection(name)
        return info.status != models.CollectionStatus.YELLOW

    async def close(self) -> None:
        await self._client.close()


def _vector_params(size: Size) -> models.VectorParams:
    return models.VectorParams(
        size=size.dim,
        distance=models.Distance.COSINE,
        hnsw_config=models.HnswConfigDiff(m=size.hnsw_m),
        quantization_config=_quantization(size),
        memory=models.Memory.COLD if size.placement == "cold" else models.Memory.CACHED,
    )


def _quantization(size: Size) -> models.QuantizationConfig | None:
    memory = models.Memory.PINNED
    match size.quantization:
        case "none":
            return None
        case "int8":
            return models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, memory=memory)
            )
        case "binary":
            return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(memory=memory))
        case turbo:
            bits = models.TurboQuantBitSize
            wanted = {"turbo4": bits.BITS4, "turbo2": bits.BITS2, "turbo1": bits.BITS1}[turbo]
            return models.TurboQuantization(
                turbo=models.TurboQuantQuantizationConfig(bits=wanted, memory=memory)
            )


def _nested_query(
    collection: Collection, plan: Plan, query_D: Array, condition: Filter | None
) -> dict[str, Any]:
    """Return arguments of `query_points`: each stage around the one before it."""
    sizes = {size.dim: size for size in collection.sizes}
    vectors = cut(query_D[None], collection.sizes)
    query_filter = models.Filter.model_validate(to_conditions(condition)) if condition else None
    inner: list[models.Prefetch] = []
    for stage in plan.stages[:-1]:
        size = sizes[stage.dim]
        inner = [
            models.Prefetch(
                query=vectors[size.vector_name][0].tolist(),
                using=size.vector_name,
                params=_search_params(stage, size, is_first=not inner),
                limit=stage.candidates,
                # What the first stage hands on is filtered already.
                filter=None if inner else query_filter,
                prefetch=inner or None,
            )
        ]
    size = sizes[plan.stages[-1].dim]
    return {
        "query": vectors[size.vector_name][0].tolist(),
        "using": size.vector_name,
        "search_params": _search_params(plan.stages[-1], size, is_first=not inner),
        "query_filter": None if inner else query_filter,
        "prefetch": inner or None,
    }


def _search_params(stage: Stage, size: Size, is_first: bool) -> models.SearchParams:
    times = oversampling(stage, size)
    return models.SearchParams(
        hnsw_ef=stage.ef or None,
        exact=stage.exact or is_plain_rescoring(stage, size, is_first),
        quantization=models.QuantizationSearchParams(
            ignore=stage.ignore_quantization,
            rescore=times > 0,
            oversampling=times if times > 1 else None,
        ),
    )


@contextmanager
def _engine_errors(name: str = "") -> Iterator[None]:
    """Turn what the client raises into our errors."""
    try:
        with peer_errors("Qdrant server"):
            yield
    except NotFound as error:
        raise not_found(name) from error
    except ResourceExhaustedResponse as error:
        raise Overloaded("the Qdrant server is overloaded; try again shortly") from error
    except (UnexpectedResponse, ResponseHandlingException) as error:
        raise Unavailable("the Qdrant server cannot be reached or is not ready") from error
    except ValueError as error:
        # The in-memory twin's only kind of error.
        if name and f"{name} not found" in str(error):
            raise not_found(name) from error
        raise
    except ServiceError as error:
        if isinstance(error.__cause__, grpc.aio.AioRpcError) and type(error) is ServiceError:
            raise Unavailable("the Qdrant server failed; see its log") from error
        raise
