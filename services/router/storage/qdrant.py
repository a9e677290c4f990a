"""A Qdrant server as the store. The `qdrant` files alone know `qdrant_client`.

The router keeps nothing of its own: what a collection is lies in the collection's metadata, and
`find` asks for it each time, so that several routers may share one server.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from services.router.attributes import Attributes
from services.router.filters import Filter, OfTenant
from services.router.hybrid.text_index import TextIndex
from services.router.plan import Plan
from services.router.rotation import Rotation
from services.router.sizes import Size, cut
from services.router.storage.conditions import to_count
from services.router.storage.metadata import from_metadata, to_metadata
from services.router.storage.qdrant_companions import Companions
from services.router.storage.qdrant_config import (
    METADATA_KEY,
    read_collection,
    read_metadata,
    sparse_config,
    sparse_vectors,
    spread_params,
    vector_params,
)
from services.router.storage.qdrant_errors import engine_errors
from services.router.storage.qdrant_indexes import index_attributes, index_tenants
from services.router.storage.qdrant_query import hits, text_query, to_filter, to_page
from services.router.storage.qdrant_resize import Resize, Update, being_added
from services.router.storage.qdrant_retry import Retry, channel_options
from services.router.storage.qdrant_search import QdrantSearch
from services.router.storage.store import (
    Answer,
    Collection,
    KeptQueries,
    Note,
    Page,
    Point,
    Progress,
    TermPage,
    Vectors,
    attributes_payload,
    clamp,
    latest,
    not_found,
    point_uuid,
    resized,
    taken,
    to_payload,
)
from services.shared.errors import NotFound, ServiceError
from services.shared.vectors import Array, normalize

_SETTLE_POLL_S = 0.2


class QdrantStore:
    """Collections on a Qdrant server, or in memory under tests.

    Args:
        client: owned from here on; closed by `close`.
        timeout_s: longest wait for one answer of the server.
        settle_timeout_s: longest wait for the server's own indexing after a stream of writes.
        retire_s: from when a size is gone until its vectors are.
        retry: of calls that are safe to repeat; None: none is.
    """

    def __init__(
        self,
        client: AsyncQdrantClient,
        timeout_s: int = 60,
        settle_timeout_s: float = 60.0,
        retire_s: float = 10.0,
        retry: Retry | None = None,
    ) -> None:
        retry = retry or Retry(0.0, timeout_s)
        retry.guard(client)
        self._client = client
        self._search = QdrantSearch(client, timeout_s, retry)
        self._companions = Companions(client)
        self._noting = asyncio.Lock()
        self._settle_timeout_s = settle_timeout_s
        self._retire_s = retire_s

    @classmethod
    def connect(
        cls,
        url: str,
        grpc_port: int,
        api_key: str | None,
        timeout_s: int,
        retry: Retry | None = None,
        ca: bytes | None = None,
    ) -> "QdrantStore":
        """Build a store over gRPC, with TLS for https://; nothing is sent before `open`."""
        return cls(
            AsyncQdrantClient(
                url=url,
                grpc_port=grpc_port,
                prefer_grpc=True,
                api_key=api_key,
                timeout=timeout_s,
                grpc_options=channel_options(ca),
                # It would ask over HTTP while building, and only to log a warning.
                check_compatibility=False,
            ),
            timeout_s,
            retry=retry,
        )

    async def open(self) -> None:
        with engine_errors():
            await self._client.get_collections()

    async def create(self, collection: Collection) -> Collection:
        if await self._is_taken(collection.name):
            raise taken(collection.name)
        with engine_errors():
            await self._client.create_collection(
                collection.name,
                vectors_config={
                    size.vector_name: vector_params(size, collection.full)
                    for size in collection.sizes
                },
                sparse_vectors_config=sparse_config(collection.text_index),
                metadata={METADATA_KEY: to_metadata(collection)},
                **spread_params(collection.spread),
            )
            await index_tenants(self._client, collection.name)
        return await self.find(collection.name)

    async def _is_taken(self, name: str) -> bool:
        with engine_errors():
            collections = await self._client.get_collections()
        return name in {c.name for c in collections.collections} or name in await self.aliases()

    async def find(self, name: str) -> Collection:
        # The server follows aliases here; the real name is in the metadata. One round trip.
        with engine_errors(name):
            info = await self._client.get_collection(name)
        return read_collection(info, name)

    async def collections(self) -> list[Collection]:
        with engine_errors():
            names = sorted(c.name for c in (await self._client.get_collections()).collections)
        found = await asyncio.gather(*map(self.find, names), return_exceptions=True)
        failed = [r for r in found if isinstance(r, BaseException) and not isinstance(r, NotFound)]
        if failed:
            raise failed[0]
        return [collection for collection in found if isinstance(collection, Collection)]

    async def drop(self, name: str) -> None:
        await self.find(name)
        with engine_errors(name):
            await self._client.delete_collection(name)
            await self._companions.drop(name)

    async def aliases(self) -> dict[str, str]:
        with engine_errors():
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
        with engine_errors(name):
            await self._client.update_collection_aliases(operations)

    async def upsert(self, name: str, points: Sequence[Point], vectors_BD: Array) -> None:
        with engine_errors(name):
            info = await self._client.get_collection(name)
        metadata = read_metadata(info, name)
        points, vectors_BD = latest(points, vectors_BD)
        rows: dict[str, Any] = {}
        # Sizes that are being added are written already, so that none is missing in the end.
        for stage in (from_metadata(metadata), being_added(metadata)):
            short = cut(vectors_BD, stage.sizes, await self.rotation(stage))
            rows |= {name: vectors_BM.tolist() for name, vectors_BM in short.items()}
            if (text_index := stage.text_index) is not None:
                texts = [point.text for point in points]
                rows[text_index.vector_name] = await asyncio.to_thread(
                    sparse_vectors, texts, text_index
                )
        structs = [
            models.PointStruct(
                id=point_uuid(point.id, point.tenant),
                vector={vector_name: vectors[row] for vector_name, vectors in rows.items()},
                payload=to_payload(point),
            )
            for row, point in enumerate(points)
        ]
        with engine_errors(name):
            await self._client.upsert(name, structs, wait=True)
            await index_attributes(self._client, name, info, [s.payload or {} for s in structs])

    async def delete(self, name: str, ids: Sequence[str], tenant: str | None = None) -> None:
        points = models.PointIdsList(points=[point_uuid(id_, tenant) for id_ in ids])
        with engine_errors(name):
            await self._client.delete(name, points, wait=True)

    async def set_attributes(
        self, name: str, ids: Sequence[str], attributes: Attributes, tenant: str | None = None
    ) -> list[str]:
        keys = {point_uuid(id_, tenant): id_ for id_ in ids}
        # By a condition: a point that is deleted meanwhile would be an error by its id.
        wanted = models.Filter(must=[models.HasIdCondition(has_id=list(keys))])
        payload = attributes_payload(attributes)
        with engine_errors(name):
            info = await self._client.get_collection(name)
            records = await self._client.retrieve(
                name, list(keys), with_payload=False, with_vectors=False
            )
            await self._client.set_payload(name, payload, points=wanted, wait=True)
            await index_attributes(self._client, name, info, [payload])
        there = {str(record.id) for record in records}
        return [id_ for key, id_ in keys.items() if key not in there]

    async def search(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        rotation = await self.rotation(collection)
        start = time.perf_counter()
        try:
            with engine_errors(collection.name):
                found = await self._search.run(
                    collection, plan, query_D, rotation, condition, with_points
                )
        except ServiceError as error:
            if (await self.find(collection.name)).sizes != collection.sizes:
                raise not_found(collection.name) from error  # not as it was found: resized since
            raise
        return Answer(hits(found, clamp), time.perf_counter() - start)

    async def search_text(
        self,
        collection: Collection,
        weights: Mapping[int, float],
        limit: int,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        assert collection.text_index is not None
        query = text_query(collection.text_index, weights, condition)
        start = time.perf_counter()
        with engine_errors(collection.name):
            response = await self._client.query_points(
                collection.name, limit=limit, with_payload=with_points, **query
            )
        return Answer(hits(response.points, float), time.perf_counter() - start)

    async def terms(
        self, collection: Collection, after: str | None, limit: int, tenant: str | None
    ) -> TermPage:
        assert collection.text_index is not None
        name = collection.text_index.vector_name
        with engine_errors(collection.name):
            records, offset = await self._client.scroll(
                collection.name, offset=after, limit=limit, with_payload=False,
                scroll_filter=to_filter(None if tenant is None else OfTenant(tenant)),
                with_vectors=[name],
            )  # fmt: skip
        vectors: list[Any] = [record.vector for record in records]
        texts = [vector[name] for vector in vectors if name in (vector or {})]
        counts = Counter(term for text in texts for term in text.indices)
        return TermPage(len(records), counts, None if offset is None else str(offset))

    async def scroll(
        self, name: str, after: str | None, limit: int, with_vectors: bool = False
    ) -> Page:
        full = (await self.find(name)).sizes[-1].vector_name
        with engine_errors(name):
            records, offset = await self._client.scroll(
                name, offset=after, limit=limit, with_payload=True,
                with_vectors=[full] if with_vectors else False,
            )  # fmt: skip
        page = to_page(records, full if with_vectors else None)
        return replace(page, after=None if offset is None else str(offset))

    async def read(self, name: str, keys: Sequence[str]) -> Page:
        full = (await self.find(name)).sizes[-1].vector_name
        with engine_errors(name):
            records = await self._client.retrieve(
                name, list(keys), with_payload=True, with_vectors=[full]
            )
        return to_page(records, full)

    async def vectors(self, name: str, after: str | None, limit: int) -> Vectors:
        collection = await self.find(name)
        full = collection.sizes[-1].vector_name
        with engine_errors(name):
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

    async def annotate(self, name: str, note: Note, value: dict[str, Any] | None) -> None:
        await self._update_metadata(name, lambda metadata: metadata | {note: value})

    async def _update_metadata(self, name: str, update: Update) -> dict[str, Any]:
        """Read what we keep with a collection and write it anew, one after another."""
        async with self._noting:
            with engine_errors(name):
                info = await self._client.get_collection(name)
                metadata = update(read_metadata(info, name))
                await self._client.update_collection(name, metadata={METADATA_KEY: metadata})
            return metadata

    async def resize(
        self,
        name: str,
        sizes: Sequence[Size],
        rotation: Rotation | None,
        on_progress: Progress,
        text_index: TextIndex | None = None,
    ) -> Collection:
        collection = await self.find(name)
        if rotation is not None:
            with engine_errors(name):
                await self._companions.keep_rotation(collection, rotation)
        after = resized(collection, sizes, text_index)
        resize = Resize(self._client, collection, after, self.rotation, self._update_metadata)
        changed = await resize.run(on_progress)
        await self.settle(name)
        await asyncio.sleep(self._retire_s)  # searches that began before may still look there
        await resize.retire()
        with engine_errors(name):
            await self._companions.drop_rotations(collection.name, keep=changed.nesting)
        return await self.find(name)

    async def rotation(self, collection: Collection) -> Rotation | None:
        with engine_errors(collection.name):
            return await self._companions.rotation(collection.name, collection.nesting)

    async def keep_queries(self, name: str, queries: KeptQueries) -> None:
        collection = await self.find(name)
        with engine_errors(name):
            await self._companions.keep_queries(collection, queries)

    async def kept_queries(self, name: str) -> KeptQueries:
        collection = await self.find(name)
        with engine_errors(name):
            return await self._companions.kept_queries(collection.name, collection.full)

    async def count(self, name: str, without_text: bool = False, tenant: str | None = None) -> int:
        conditions = to_count(without_text, tenant)
        wanted = models.Filter.model_validate(conditions) if conditions else None
        with engine_errors(name):
            counted = await self._client.count(name, count_filter=wanted, exact=True)
        return counted.count

    async def settle(self, name: str) -> None:
        # The server indexes by itself, and searches are right before it has: waiting only makes
        # the first ones fast, so running out of time is no error.
        try:
            async with asyncio.timeout(self._settle_timeout_s):
                with engine_errors(name):
                    while not await self._is_indexed(name):  # noqa: ASYNC110 (a server's state)
                        await asyncio.sleep(_SETTLE_POLL_S)
        except TimeoutError:
            return

    async def _is_indexed(self, name: str) -> bool:
        info = await self._client.get_collection(name)
        return info.status != models.CollectionStatus.YELLOW

    async def close(self) -> None:
        await self._client.close()
