"""Qdrant Edge as the store: a folder, and one worker process per collection.

A write is acknowledged when the worker's engine has it in its log, which survives kill -9 of
the worker and of the router. A worker that died is started again by the next request.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.router.filters import Filter
from services.router.plan import Plan
from services.router.storage.conditions import to_conditions, to_count
from services.router.storage.edge_folder import EdgeFolder, Stored, remove
from services.router.storage.edge_process import EdgeWorker, create_shard
from services.router.storage.store import (
    Answer,
    Collection,
    KeptQueries,
    Page,
    Point,
    ScoredPoint,
    Vectors,
    clamp,
    from_payload,
    latest,
    not_found,
    point_uuid,
    taken,
    to_metadata,
    to_payload,
)
from services.shared.vectors import Array, pack

# Points in one request to a worker: searches find a gap between two of them, about 20 ms apart.
_POINTS_PER_REQUEST = 256
# A collection is indexed again when at least this share of it is new; so the cost of indexing
# grows with what was written, not with how often.
_MIN_NEW_SHARE = 0.1


@dataclass(slots=True)
class _Open:
    """A collection in use."""

    stored: Stored
    worker: EdgeWorker | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a write, and by indexing, which copies the shard."""


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
        self._max_waiting = max_waiting
        self._indexing_threshold_kb = indexing_threshold_kb
        self._start_timeout_s = start_timeout_s
        self._on_restart = on_restart
        self._collections: dict[str, _Open] = {}
        self._aliases: dict[str, str] = {}
        # Creating, dropping and aliasing, one after another.
        self._naming = asyncio.Lock()

    async def open(self) -> None:
        stored = await asyncio.to_thread(self._folder.open)
        self._collections = {item.collection.name: _Open(item) for item in stored}
        self._aliases = self._folder.read_aliases()

    async def create(self, collection: Collection) -> None:
        async with self._naming:
            if collection.name in self._collections or collection.name in self._aliases:
                raise taken(collection.name)
            shard = self._folder.begin()
            try:
                await create_shard(_json(collection), shard, self._indexing_threshold_kb)
                stored = self._folder.commit(collection, shard)
            except BaseException:
                remove(shard.parent)
                raise
            self._collections[collection.name] = _Open(stored)

    async def find(self, name: str) -> Collection:
        return self._open(self._aliases.get(name, name)).stored.collection

    async def collections(self) -> list[Collection]:
        return [self._collections[name].stored.collection for name in sorted(self._collections)]

    async def drop(self, name: str) -> None:
        async with self._naming, self._writing(name) as dropped:
            async with dropped.starting:  # a worker that opens the shard finds it to the end
                del self._collections[name]
                trash = self._folder.drop(name)
                if dropped.worker is not None:
                    await dropped.worker.stop()
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
        async with self._writing(name) as opened:
            for start in range(0, len(points), _POINTS_PER_REQUEST):
                some = points[start : start + _POINTS_PER_REQUEST]
                worker = await self._worker(opened)
                await worker.call(
                    "upsert",
                    ids=[point_uuid(point.id, point.tenant) for point in some],
                    payloads=[to_payload(point) for point in some],
                    vectors=pack(vectors_BD[start : start + _POINTS_PER_REQUEST]),
                )

    async def delete(self, name: str, ids: Sequence[str], tenant: str | None = None) -> None:
        async with self._writing(name) as opened:
            worker = await self._worker(opened)
            await worker.call("delete", ids=[point_uuid(id_, tenant) for id_ in ids])

    async def search(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        worker = await self._worker(self._open(collection.name))
        seconds, found = await worker.call(
            "search",
            stages=[asdict(stage) for stage in plan.stages],
            query=pack(query_D),
            conditions=to_conditions(condition) if condition else None,
            with_payload=with_points,
        )
        nothing = Point("", "", {})
        hits = [
            ScoredPoint(key, from_payload(payload) if payload else nothing, clamp(score))
            for key, score, payload in found
        ]
        return Answer(hits, seconds)

    async def scroll(self, name: str, after: str | None, limit: int) -> Page:
        worker = await self._worker(self._open(name))
        payloads, offset = await worker.call("scroll", after=after, limit=limit)
        return Page([from_payload(payload) for payload in payloads], offset)

    async def vectors(self, name: str, after: str | None, limit: int) -> Vectors:
        opened = self._open(name)
        worker = await self._worker(opened)
        keys, rows, offset = await worker.call("vectors", after=after, limit=limit)
        full = opened.stored.collection.full
        vectors_BD = np.frombuffer(rows, dtype="<f4").reshape(-1, full).astype(np.float32)
        return Vectors(keys, vectors_BD, offset)

    async def annotate(self, name: str, calibration: dict[str, Any] | None) -> None:
        opened = self._open(name)
        async with opened.starting:  # which shard counts is written in the same file
            if self._collections.get(name) is not opened:  # dropped while we waited
                raise not_found(name)
            stored = opened.stored
            collection = replace(stored.collection, calibration=calibration)
            opened.stored = await asyncio.to_thread(self._folder.describe, stored, collection)

    async def keep_queries(self, name: str, queries: KeptQueries) -> None:
        await asyncio.to_thread(self._folder.write_queries, self._open(name).stored, queries)

    async def kept_queries(self, name: str) -> KeptQueries:
        return await asyncio.to_thread(self._folder.read_queries, self._open(name).stored)

    async def count(self, name: str, without_text: bool = False, tenant: str | None = None) -> int:
        worker = await self._worker(self._open(name))
        num_points: int = await worker.call("count", conditions=to_count(without_text, tenant))
        return num_points

    async def settle(self, name: str) -> None:
        """Index a copy and swap: the engine would not answer a search while it indexes."""
        async with self._writing(name) as opened:
            worker = await self._worker(opened)
            num_points, num_new = await worker.call("progress")
            new_bytes = num_new * 4 * opened.stored.collection.full
            if (
                new_bytes >= self._indexing_threshold_kb * 1024
                and num_new >= _MIN_NEW_SHARE * num_points
            ):
                await worker.call("flush")
                await self._index(opened)

    async def _index(self, opened: _Open) -> None:
        old = opened.stored
        copy = await asyncio.to_thread(self._folder.copy_shard, old)
        try:
            indexer = await self._start(old.collection, copy)
            try:
                await indexer.call("optimize")
                async with opened.starting:
                    # Not `old`: meanwhile the collection may have been annotated.
                    opened.stored = self._folder.switch_shard(opened.stored, copy)
                    retired, opened.worker = opened.worker, indexer
            except BaseException:
                await indexer.stop()
                raise
        except BaseException:
            await asyncio.to_thread(remove, copy)
            raise
        if retired is not None:
            await retired.stop()  # it answers what it was asked first
        await asyncio.to_thread(remove, old.shard)

    async def close(self) -> None:
        workers = [opened.worker for opened in self._collections.values() if opened.worker]
        await asyncio.gather(*(worker.stop() for worker in workers))
        self._collections = {}
        self._folder.close()

    def _open(self, name: str) -> _Open:
        opened = self._collections.get(name)
        if opened is None:
            raise not_found(name)
        return opened

    @contextlib.asynccontextmanager
    async def _writing(self, name: str) -> AsyncIterator[_Open]:
        """Have a collection's points for oneself; searches go on."""
        opened = self._open(name)
        async with opened.writing:
            if self._collections.get(name) is not opened:  # dropped while we waited
                raise not_found(name)
            yield opened

    async def _worker(self, opened: _Open) -> EdgeWorker:
        """Return the collection's worker, starting one if there is none or it died."""
        if opened.worker is not None and opened.worker.is_alive:
            return opened.worker
        async with opened.starting:
            name = opened.stored.collection.name
            if self._collections.get(name) is not opened:  # dropped while we waited
                raise not_found(name)
            if opened.worker is not None and opened.worker.is_alive:
                return opened.worker
            if opened.worker is not None:
                self._on_restart()
                await opened.worker.stop()
            opened.worker = await self._start(opened.stored.collection, opened.stored.shard)
            return opened.worker

    async def _start(self, collection: Collection, shard: Path) -> EdgeWorker:
        return await EdgeWorker.start(
            _json(collection), shard, self._max_waiting, self._start_timeout_s
        )


def _json(collection: Collection) -> str:
    return json.dumps(to_metadata(collection))
