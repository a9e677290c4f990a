"""Other sizes for a collection on a Qdrant server, in place, while searches and writes go on.

Vectors are added beside those there are. From when that is announced in the collection's metadata
every write fills them; the points there were are filled page by page. What was written in between
by somebody who had not read the announcement lacks them, and is found by that. One write of the
metadata lets the new sizes count; only then do vectors of sizes that are gone go.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from services.router.rotation import Rotation
from services.router.sizes import cut
from services.router.storage.metadata import from_metadata, to_metadata
from services.router.storage.qdrant_config import (
    read_metadata,
    sparse_config,
    sparse_vectors,
    vector_diff,
    vector_name,
)
from services.router.storage.qdrant_errors import engine_errors
from services.router.storage.store import Collection, Progress, resized
from services.shared.errors import NotFound, ServiceError
from services.shared.vectors import Array

Update = Callable[[dict[str, Any]], dict[str, Any]]

_ADDED, _ADDED_TEXT = "added", "added_text_index"
_PAGE = 256
# A page that is written to at the same time is filled again; so often at most.
_MAX_TRIES = 100
# Numbers of an unchanged unit vector may differ by this much, read twice.
_SAME = 1e-6


def being_added(metadata: dict[str, Any]) -> Collection:
    """Return a collection with only what is being added to it: sizes, a text index, or nothing."""
    added = {"sizes": metadata.get(_ADDED, []), "text_index": metadata.get(_ADDED_TEXT)}
    return from_metadata(metadata | added)


@dataclass(frozen=True, slots=True, eq=False)
class _Content:
    """What added vectors are made of."""

    vector_D: Array
    text: str

    def is_as(self, other: "_Content") -> bool:
        return self.text == other.text and bool(
            np.abs(self.vector_D - other.vector_D).max() <= _SAME
        )


class Resize:
    """One change of sizes.

    Args:
        client: of the server.
        collection: as it is.
        after: as it shall be.
        rotation: finds a collection's rotation.
        update_metadata: reads what we keep with a collection, and writes it anew.
    """

    def __init__(
        self,
        client: AsyncQdrantClient,
        collection: Collection,
        after: Collection,
        rotation: Callable[[Collection], Awaitable[Rotation | None]],
        update_metadata: Callable[[str, Update], Awaitable[dict[str, Any]]],
    ) -> None:
        self._client = client
        self._name = collection.name
        self._before = collection
        present = {size.vector_name for size in collection.sizes}
        self._after = after
        self._added = replace(
            after,
            sizes=tuple(size for size in after.sizes if size.vector_name not in present),
            text_index=after.text_index if after.text_index != collection.text_index else None,
        )
        self._rotation = rotation
        self._update_metadata = update_metadata

    async def run(self, on_progress: Progress) -> Collection:
        """Add what is missing, fill it, and let the new sizes count."""
        with engine_errors(self._name):
            for size in self._added.sizes:
                await self._client.create_vector_name(
                    self._name, size.vector_name, vector_name(size)
                )
            if self._added.text_index is not None:
                await self._client.create_vector_name(
                    self._name,
                    self._added.text_index.vector_name,
                    models.SparseVectorNameConfig(sparse=models.SparseVectorConfig()),
                )
            full = self._after.sizes[-1].dim
            other = [size for size in self._after.sizes if size not in self._before.sizes]
            await self._client.update_collection(
                self._name,
                vectors_config={size.vector_name: vector_diff(size, full) for size in other},
                sparse_vectors_config=sparse_config(self._added.text_index),
            )
        await self._announce()
        await self._fill_all(on_progress)
        await self._fill_missing()
        metadata = await self._update_metadata(
            self._name,
            lambda now: to_metadata(
                resized(from_metadata(now), self._after.sizes, self._after.text_index)
            ),
        )
        await self._fill_missing()
        return from_metadata(metadata)

    async def retire(self) -> None:
        """Delete the vectors of sizes that are gone, and of changes that were cut off."""
        wanted = {size.vector_name for size in self._after.sizes}
        if self._after.text_index is not None:
            wanted.add(self._after.text_index.vector_name)
        with engine_errors(self._name):
            info = await self._client.get_collection(self._name)
            vectors = info.config.params.vectors
            present = set(vectors) if isinstance(vectors, dict) else set()
            present |= set(info.config.params.sparse_vectors or {})
            for name in sorted(present - wanted):
                await self._client.delete_vector_name(self._name, name)

    async def _find(self) -> Collection:
        with engine_errors(self._name):
            info = await self._client.get_collection(self._name)
        return from_metadata(read_metadata(info, self._name))

    async def _announce(self) -> None:
        added = to_metadata(self._added)
        announced = {_ADDED: added["sizes"], _ADDED_TEXT: added["text_index"]}
        await self._update_metadata(self._name, lambda metadata: metadata | announced)

    def _added_names(self) -> list[str]:
        sparse = self._added.text_index
        return [size.vector_name for size in self._added.sizes] + (
            [sparse.vector_name] if sparse else []
        )

    async def _fill_all(self, on_progress: Progress) -> None:
        if not self._added_names():
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
        if not self._added_names():
            return
        has_all: list[Any] = [
            models.HasVectorCondition(has_vector=name) for name in self._added_names()
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
        written: dict[Any, _Content] = {}
        for _ in range(_MAX_TRIES):
            there = await self._read(waiting)
            waiting = [
                id_
                for id_, content in there.items()
                if id_ not in written or not content.is_as(written[id_])
            ]
            if not waiting:
                return
            points = await self._added_vectors({id_: there[id_] for id_ in waiting})
            try:
                with engine_errors(self._name):
                    await self._client.update_vectors(self._name, points, wait=True)
            except NotFound:
                await self._find()  # a point was deleted, not the collection
                continue
            written.update(there)
        raise ServiceError(f"points of {self._name!r} change faster than they can be resized")

    async def _added_vectors(self, there: Mapping[Any, "_Content"]) -> list[models.PointVectors]:
        full_BD = np.stack([content.vector_D for content in there.values()])
        short = cut(full_BD, self._added.sizes, await self._rotation(self._added))
        rows: dict[str, list[Any]] = {name: some.tolist() for name, some in short.items()}
        if (text_index := self._added.text_index) is not None:
            texts = [content.text for content in there.values()]
            rows[text_index.vector_name] = await asyncio.to_thread(
                sparse_vectors, texts, text_index
            )
        return [
            models.PointVectors(id=id_, vector={name: some[row] for name, some in rows.items()})
            for row, id_ in enumerate(there)
        ]

    async def _read(self, ids: Sequence[Any]) -> dict[Any, "_Content"]:
        name = self._before.sizes[-1].vector_name
        with engine_errors(self._name):
            records = await self._client.retrieve(
                self._name,
                ids,
                with_payload=["text"] if self._added.text_index else False,
                with_vectors=[name],
            )
        vectors: list[Any] = [record.vector for record in records]
        return {
            record.id: _Content(
                np.array(vector[name], dtype=np.float32), (record.payload or {}).get("text", "")
            )
            for record, vector in zip(records, vectors, strict=True)
        }
