"""Recent queries of each collection, as vectors: what a calibration measures with.

A bounded number is kept with the collection in its storage, and written there now and then, so
that a restart loses a minute's worth. Slices share the room: a new query takes the place of a
random one of the largest slice, so that small tenants are not crowded out and old queries fade.
No text is kept. Of several routers over one server each keeps its own, and the last one writes.

Shapes: Q queries, D full width.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from services.router.storage.store import Collection, KeptQueries, Store, not_found
from services.shared.errors import NotFound, ServiceError
from services.shared.vectors import Array

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Reservoir:
    """The queries of one collection."""

    vectors: list[Array] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    places: dict[str, list[int]] = field(default_factory=dict)
    """Of each slice."""
    is_loaded: bool = False
    """Whether what was kept before this process is in it."""
    is_new: bool = False
    """Whether something is not yet written."""

    def add(self, query_D: Array, slice_: str, room: int) -> None:
        if len(self.vectors) < room:
            self.places.setdefault(slice_, []).append(len(self.vectors))
            self.vectors.append(query_D)
            self.slices.append(slice_)
            return
        largest = max(self.places, key=lambda name: len(self.places[name]))
        places = self.places[largest]
        place = places.pop(random.randrange(len(places)))
        if not places:
            del self.places[largest]
        self.places.setdefault(slice_, []).append(place)
        self.vectors[place], self.slices[place] = query_D, slice_


class Recent:
    """Keeps recent queries.

    Args:
        store: keeps them with their collections.
        max_queries: of one collection; 0 keeps none.
        max_collections: that queries are held of in memory, the last searched ones.
        flush_s: between two times that new ones are written.
    """

    def __init__(
        self, store: Store, max_queries: int, max_collections: int, flush_s: float
    ) -> None:
        self._store = store
        self._max_queries = max_queries
        self._max_collections = max_collections
        self._flush_s = flush_s
        # By name and space: a collection may be dropped and made again for another model.
        self._reservoirs: OrderedDict[tuple[str, str], _Reservoir] = OrderedDict()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write now and then."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what is new, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    def observe(self, collection: Collection, query_D: Array, slice_: str) -> None:
        """Take note of a search's query."""
        if not self._max_queries:
            return
        reservoir = self._of(collection)
        self._reservoirs.move_to_end((collection.name, collection.space_id))
        reservoir.add(query_D, slice_, self._max_queries)
        reservoir.is_new = True

    async def of(self, collection: Collection) -> KeptQueries:
        """Return a collection's recent queries, those from before a restart too."""
        reservoir = self._of(collection)
        await self._load(collection.name, reservoir)
        vectors_QD = np.array(reservoir.vectors, dtype=np.float32).reshape(-1, collection.full)
        return KeptQueries(vectors_QD, list(reservoir.slices))

    async def inherit(self, collection: Collection, queries: KeptQueries) -> None:
        """Let a collection that has no queries begin with those of another, in its own space."""
        if (await self.of(collection)).slices:
            return
        for query_D, slice_ in zip(queries.vectors_QD, queries.slices, strict=True):
            self.observe(collection, query_D, slice_)

    def _of(self, collection: Collection) -> _Reservoir:
        return self._reservoirs.setdefault((collection.name, collection.space_id), _Reservoir())

    async def _load(self, name: str, reservoir: _Reservoir) -> None:
        if reservoir.is_loaded:
            return
        kept = await self._store.kept_queries(name)
        if not reservoir.is_loaded:  # nobody else has meanwhile
            reservoir.is_loaded = True
            room = self._max_queries - len(reservoir.vectors)
            for vector_D, slice_ in list(zip(kept.vectors_QD, kept.slices, strict=True))[:room]:
                reservoir.add(vector_D, slice_, self._max_queries)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            for (name, space_id), reservoir in list(self._reservoirs.items()):
                if reservoir.is_new:
                    await self._write(name, space_id, reservoir)
            while len(self._reservoirs) > self._max_collections:
                self._reservoirs.popitem(last=False)

    async def _write(self, name: str, space_id: str, reservoir: _Reservoir) -> None:
        try:
            collection = await self._store.find(name)
            if collection.space_id != space_id:
                raise not_found(name)  # the one that was asked is gone
            kept = await self.of(collection)
            reservoir.is_new = False
            await self._store.keep_queries(name, kept)
        except NotFound:
            self._reservoirs.pop((name, space_id), None)
        except ServiceError as error:
            reservoir.is_new = True
            log.warning("recent queries of %s could not be kept: %s", name, error.message)
