"""Qdrant Edge as the store: a folder, and one worker process per collection.

A write is acknowledged when the worker's engine has it in its log, which survives kill -9 of
the worker and of the router. A worker that died is started again by the next request.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from services.router.attributes import Attributes
from services.router.filters import Filter
from services.router.hybrid.text_index import TextIndex
from services.router.plan import Plan, Stage
from services.router.rotation import Rotation
from services.router.sizes import Size
from services.router.spread import WHOLE, check_whole
from services.router.storage import edge_rebuild
from services.router.storage.conditions import to_conditions, to_count
from services.router.storage.edge_folder import EdgeFolder, remove
from services.router.storage.edge_open import OpenCollection, WorkerOptions, worker_metadata
from services.router.storage.edge_process import create_shard
from services.router.storage.edge_rebuild import POINTS_PER_REQUEST
from services.router.storage.store import (
    Answer,
    Collection,
    KeptQueries,
    Note,
    Page,
    Point,
    Progress,
    ScoredPoint,
    TermPage,
    Vectors,
    attributes_payload,
    clamp,
    from_payload,
    latest,
    not_found,
    point_uuid,
    taken,
    to_payload,
)
from services.shared.vectors import Array, pack

# A collection is indexed again when at least this share of it is new; so the cost of indexing
# grows with what was written, not with how often.
_MIN_NEW_SHARE = 0.1
# What a worker makes the stage of again; `asdict`, which copies deeply, takes 20 times as long.
_fields_of = attrgetter(*(field.name for field in fields(Stage)))


class EdgeStore:
    """Collections in a folder.

    Args:
        root: the folder; this process must be the only router that uses it.
        max_waiting: requests that may wait at one worker.
        indexing_threshold_kb: full-size vectors, in KiB, that make indexing worth while.
        start_timeout_s: longest wait for a worker to open its shard.
        on_restart: called when a worker that had died is started again.
    """

    def __init__(
        self,
        root: Path,
        max_waiting: int = 256,
        indexing_threshold_kb: int = 10_000,
        start_timeout_s: float = 120.0,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = EdgeFolder(root.absolute())
        self._options = WorkerOptions(max_waiting, start_timeout_s, on_restart)
        self._indexing_threshold_kb = indexing_threshold_kb
        self._collections: dict[str, OpenCollection] = {}
        self._aliases: dict[str, str] = {}
        # Creating, dropping and aliasing, one after another.
        self._naming = asyncio.Lock()

    def check_free(self) -> None:
        """See whether another router has the folder open; Unavailable: so it is."""
        self._folder.check_free()

    async def open(self) -> None:
        stored = await asyncio.to_thread(self._folder.open)
        self._collections = {
            item.collection.name: OpenCollection(item, self._options) for item in stored
        }
        self._aliases = self._folder.read_aliases()

    async def create(self, collection: Collection) -> Collection:
        check_whole(collection.spread)
        collection = replace(collection, spread=WHOLE)
        async with self._naming:
            if collection.name in self._collections or collection.name in self._aliases:
                raise taken(collection.name)
            shard = self._folder.begin()
            try:
                metadata = worker_metadata(collection)
                await create_shard(metadata, shard, self._indexing_threshold_kb)
                stored = self._folder.commit(collection, shard)
            except BaseException:
                remove(shard.parent)
                raise
            self._collections[collection.name] = OpenCollection(stored, self._options)
            return collection

    async def find(self, name: str) -> Collection:
        return self._open(self._aliases.get(name, name)).collection

    async def collections(self) -> list[Collection]:
        return [self._collections[name].collection for name in sorted(self._collections)]

    async def drop(self, name: str) -> None:
        async with self._naming:
            dropped = self._open(name)
            async with dropped.writes, dropped.starting:
                del self._collections[name]
                dropped.is_dropped = True
                # Before the folder goes: what they still write would make it anew.
                if dropped.builder is not None:
                    await dropped.builder.kill()
                if dropped.worker is not None:
                    await dropped.worker.stop()
                trash = self._folder.drop(name)
            await asyncio.to_thread(remove, trash)

    async def aliases(self) -> dict[str, str]:
        return dict(self._aliases)

    async def set_alias(self, alias: str, name: str) -> None:
        async with self._naming:
            collection = await self.find(name)
            if alias in self._collections:
                raise taken(alias)
            aliases = {**self._aliases, alias: collection.name}
            self._folder.write_aliases(aliases)
            self._aliases = aliases

    async def upsert(self, name: str, points: Sequence[Point], vectors_BD: Array) -> None:
        points, vectors_BD = latest(points, vectors_BD)
        keys = [point_uuid(point.id, point.tenant) for point in points]
        opened = self._open(name)
        async with opened.writing() as worker:
            opened.touch(keys)
            for start in range(0, len(points), POINTS_PER_REQUEST):
                some = slice(start, start + POINTS_PER_REQUEST)
                await worker.call(
                    "upsert",
                    ids=keys[some],
                    payloads=[to_payload(point) for point in points[some]],
                    vectors=pack(vectors_BD[some]),
                )

    async def delete(self, name: str, ids: Sequence[str], tenant: str | None = None) -> None:
        keys = [point_uuid(id_, tenant) for id_ in ids]
        opened = self._open(name)
        async with opened.writing() as worker:
            opened.touch(keys)
            await worker.call("delete", ids=keys)

    async def set_attributes(
        self, name: str, ids: Sequence[str], attributes: Attributes, tenant: str | None = None
    ) -> list[str]:
        keys = {point_uuid(id_, tenant): id_ for id_ in ids}
        opened = self._open(name)
        async with opened.writing() as worker:
            opened.touch(list(keys))
            payload = attributes_payload(attributes)
            there = set(await worker.call("set_payload", ids=list(keys), payload=payload))
        return [id_ for key, id_ in keys.items() if key not in there]

    async def search(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        opened = self._open(collection.name)
        worker = await opened.running()
        if opened.collection.sizes != collection.sizes:
            raise not_found(collection.name)  # not as it was found: it was resized since
        seconds, found = await worker.call(
            "search",
            stages=[_fields_of(stage) for stage in plan.stages],
            query=pack(query_D),
            conditions=to_conditions(condition) if condition else None,
            with_payload=with_points,
        )
        return Answer(_hits(found, clamp), seconds)

    async def search_text(
        self,
        collection: Collection,
        weights: Mapping[int, float],
        limit: int,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        worker = await self._open(collection.name).running()
        seconds, found = await worker.call(
            "search_text",
            terms=list(weights),
            weights=list(weights.values()),
            limit=limit,
            conditions=to_conditions(condition) if condition else None,
            with_payload=with_points,
        )
        return Answer(_hits(found, float), seconds)

    async def terms(
        self, collection: Collection, after: str | None, limit: int, tenant: str | None
    ) -> TermPage:
        worker = await self._open(collection.name).running()
        conditions = to_count(without_text=False, tenant=tenant)
        num_points, terms, counts, offset = await worker.call(
            "terms", after=after, limit=limit, conditions=conditions
        )
        return TermPage(num_points, dict(zip(terms, counts, strict=True)), offset)

    async def scroll(
        self, name: str, after: str | None, limit: int, with_vectors: bool = False
    ) -> Page:
        opened = self._open(name)
        worker = await opened.running()
        if not with_vectors:
            payloads, offset = await worker.call("scroll", after=after, limit=limit)
            return Page([from_payload(payload) for payload in payloads], offset)
        _, payloads, rows, offset = await worker.call("page", after=after, limit=limit)
        return _page(payloads, rows, opened.collection.full, offset)

    async def read(self, name: str, keys: Sequence[str]) -> Page:
        opened = self._open(name)
        worker = await opened.running()
        _, payloads, rows = await worker.call("points", ids=list(keys))
        return _page(payloads, rows, opened.collection.full, None)

    async def vectors(self, name: str, after: str | None, limit: int) -> Vectors:
        opened = self._open(name)
        worker = await opened.running()
        keys, rows, offset = await worker.call("vectors", after=after, limit=limit)
        return Vectors(keys, _vectors(rows, opened.collection.full), offset)

    async def annotate(self, name: str, note: Note, value: dict[str, Any] | None) -> None:
        # To its end, even if the caller leaves: two at the file would disturb each other.
        await asyncio.shield(asyncio.create_task(self._annotate(name, note, value)))

    async def _annotate(self, name: str, note: Note, value: dict[str, Any] | None) -> None:
        opened = self._open(name)
        async with opened.starting:  # which shard counts is written in the same file
            opened.check_there()
            stored = opened.stored
            notes: dict[str, Any] = {note: value}
            collection = replace(stored.collection, **notes)
            opened.stored = await asyncio.to_thread(self._folder.describe, stored, collection)

    async def keep_queries(self, name: str, queries: KeptQueries) -> None:
        await asyncio.to_thread(self._folder.write_queries, self._open(name).stored, queries)

    async def kept_queries(self, name: str) -> KeptQueries:
        return await asyncio.to_thread(self._folder.read_queries, self._open(name).stored)

    async def count(self, name: str, without_text: bool = False, tenant: str | None = None) -> int:
        worker = await self._open(name).running()
        num_points: int = await worker.call("count", conditions=to_count(without_text, tenant))
        return num_points

    async def settle(self, name: str) -> None:
        opened = self._open(name)
        async with opened.rebuilding:
            worker = await opened.running()
            num_points, num_new = await worker.call("progress")
            new_bytes = num_new * 4 * opened.collection.full
            if (
                new_bytes >= self._indexing_threshold_kb * 1024
                and num_new >= _MIN_NEW_SHARE * num_points
            ):
                await edge_rebuild.index(self._folder, opened)

    async def resize(
        self,
        name: str,
        sizes: Sequence[Size],
        rotation: Rotation | None,
        on_progress: Progress,
        text_index: TextIndex | None = None,
    ) -> Collection:
        opened = self._open(name)
        async with opened.rebuilding:
            await edge_rebuild.resize(
                self._folder, opened, sizes, rotation, self._indexing_threshold_kb, on_progress,
                text_index,
            )  # fmt: skip
            return opened.collection

    async def rotation(self, collection: Collection) -> Rotation | None:
        stored = self._open(collection.name).stored
        return await asyncio.to_thread(self._folder.read_rotation, stored)

    async def close(self) -> None:
        workers = [opened.worker for opened in self._collections.values() if opened.worker]
        await asyncio.gather(*(worker.stop() for worker in workers))
        self._collections = {}
        self._folder.close()

    def _open(self, name: str) -> OpenCollection:
        opened = self._collections.get(name)
        if opened is None:
            raise not_found(name)
        return opened


def _hits(
    found: list[tuple[str, float, dict[str, Any] | None]], to_score: Callable[[float], float]
) -> list[ScoredPoint]:
    nothing = Point("", "", {})
    return [
        ScoredPoint(key, from_payload(payload) if payload else nothing, to_score(score))
        for key, score, payload in found
    ]


def _page(payloads: list[dict[str, Any]], rows: bytes, full: int, after: str | None) -> Page:
    points = [from_payload(payload) for payload in payloads]
    return Page(points, after, _vectors(rows, full))


def _vectors(rows: bytes, full: int) -> Array:
    return np.frombuffer(rows, dtype="<f4").reshape(-1, full).astype(np.float32)
