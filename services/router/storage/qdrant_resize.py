"""Other sizes for a collection on a Qdrant server, in place, while searches and writes go on.

Vectors are added beside those there are. From when that is announced in the collection's metadata
every write fills them; the points there were are filled page by page. What was written in between
by somebody who had not read the announcement lacks them, and is found by that. One write of the
metadata lets the new sizes count; only then do vectors of sizes that are gone go.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from services.router.rotation import Rotation
from services.router.sizes import Size, cut
from services.router.storage.qdrant_config import (
    read_metadata,
    vector_diff,
    vector_name,
)
from services.router.storage.qdrant_errors import engine_errors
from services.router.storage.store import (
    Collection,
    Progress,
    from_metadata,
    resized,
    to_metadata,
)
from services.shared.errors import NotFound, ServiceError
from services.shared.vectors import Array

Update = Callable[[dict[str, Any]], dict[str, Any]]

_ADDED = "added"
_PAGE = 256
# A page that is written to at the same time is filled again; so often at most.
_MAX_TRIES = 100
# Numbers of an unchanged unit vector may differ by this much, read twice.
_SAME = 1e-6


def being_added(metadata: dict[str, Any]) -> Collection:
    """Return a collection with only the sizes that are being added to it, if any."""
    return from_metadata(metadata | {"sizes": metadata.get(_ADDED, [])})


class Resize:
    """One change of sizes.

    Args:
        client: of the server.
        collection: as it is.
        sizes: as they shall be.
        rotation: finds a collection's rotation.
        update_metadata: reads what we keep with a collection, and writes it anew.
    """

    def __init__(
        self,
        client: AsyncQdrantClient,
        collection: Collection,
        sizes: Sequence[Size],
        rotation: Callable[[Collection], Awaitable[Rotation | None]],
        update_metadata: Callable[[str, Update], Awaitable[dict[str, Any]]],
    ) -> None:
        self._client = client
        self._name = collection.name
        self._before = collection
        present = {size.vector_name for size in collection.sizes}
        self._added = replace(
            collection, sizes=tuple(size for size in sizes if size.vector_name not in present)
        )
        self._sizes = tuple(sizes)
        self._rotation = rotation
        self._update_metadata = update_metadata

    async def run(self, on_progress: Progress) -> Collection:
        """Add what is missing, fill it, and let the new sizes count."""
        with engine_errors(self._name):
            for size in self._added.sizes:
                await self._client.create_vector_name(
                    self._name, size.vector_name, vector_name(size)
                )
            other = [size for size in self._sizes if size not in self._before.sizes]
            await self._client.update_collection(
                self._name,
                vectors_config={size.vector_name: vector_diff(size) for size in other},
            )
        await self._announce()
        await self._fill_all(on_progress)
        await self._fill_missing()
        metadata = await self._update_metadata(
            self._name, lambda now: to_metadata(resized(from_metadata(now), self._sizes))
        )
        await self._fill_missing()
        return from_metadata(metadata)

    async def retire(self) -> None:
        """Delete the vectors of sizes that are gone, and of changes that were cut off."""
        wanted = {size.vector_name for size in self._sizes}
        with engine_errors(self._name):
            info = await self._client.get_collection(self._name)
            vectors = info.config.params.vectors
            present = set(vectors) if isinstance(vectors, dict) else set()
            for name in sorted(present - wanted):
                await self._client.delete_vector_name(self._name, name)

    async def _find(self) -> Collection:
        with engine_errors(self._name):
            info = await self._client.get_collection(self._name)
        return from_metadata(read_metadata(info, self._name))

    async def _announce(self) -> None:
        added = to_metadata(self._added)["sizes"]
        await self._update_metadata(self._name, lambda metadata: metadata | {_ADDED: added})

    async def _fill_all(self, on_progress: Progress) -> None:
        if not self._added.sizes:
            return
        with engine_errors(self._name):
            total = (await self._client.count(self._name, exact=True)).count
        done, offset = 0, None
        on_progress(done, total)
        while True:
            with engine_errors(self._name):
                records, offset = await self._client.scroll(
                    self._name, offset=offset, limit=_PAGE, with_payload=False
                )
            await self._fill([record.id for record in records])
            done += len(records)
            on_progress(done, max(done, total))
            if offset is None:
                return

    async def _fill_missing(self) -> None:
        if not self._added.sizes:
            return
        has_all: list[Any] = [
            models.HasVectorCondition(has_vector=size.vector_name) for size in self._added.sizes
        ]
        lacks = models.Filter(must_not=[models.Filter(must=has_all)])
        while True:
            with engine_errors(self._name):
                records, _ = await self._client.scroll(
                    self._name, scroll_filter=lacks, limit=_PAGE, with_payload=False
                )
            if not records:
                return
            await self._fill([record.id for record in records])

    async def _fill(self, ids: Sequence[Any]) -> None:
        """Write the added vectors of some points; of those that change meanwhile, once more."""
        waiting = list(ids)
        written: dict[Any, Array] = {}
        for _ in range(_MAX_TRIES):
            there = await self._full(waiting)
            waiting = [
                id_
                for id_, vector_D in there.items()
                if id_ not in written or np.abs(written[id_] - vector_D).max() > _SAME
            ]
            if not waiting:
                return
            vectors_BD = np.stack([there[id_] for id_ in waiting])
            short = cut(vectors_BD, self._added.sizes, await self._rotation(self._added))
            points = [
                models.PointVectors(
                    id=id_, vector={name: rows[row].tolist() for name, rows in short.items()}
                )
                for row, id_ in enumerate(waiting)
            ]
            try:
                with engine_errors(self._name):
                    await self._client.update_vectors(self._name, points, wait=True)
            except NotFound:
                await self._find()  # a point was deleted, not the collection
                continue
            written.update(there)
        raise ServiceError(f"points of {self._name!r} change faster than they can be resized")

    async def _full(self, ids: Sequence[Any]) -> dict[Any, Array]:
        name = self._before.sizes[-1].vector_name
        with engine_errors(self._name):
            records = await self._client.retrieve(
                self._name, ids, with_payload=False, with_vectors=[name]
            )
        vectors: list[Any] = [record.vector for record in records]
        return {
            record.id: np.array(vector[name], dtype=np.float32)
            for record, vector in zip(records, vectors, strict=True)
        }
