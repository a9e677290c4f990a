"""What is kept beside a collection on a Qdrant server: recent queries, and a rotation.

Each is a collection of its own, without our metadata, so that nobody takes it for a user's.

Shapes: Q queries, M rows of a rotation, D full width.
"""

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from services.router.rotation import Rotation
from services.router.spread import Spread
from services.router.storage.qdrant_config import spread_params
from services.router.storage.store import MAX_NAME_CHARS, Collection, KeptQueries
from services.shared.vectors import Array

_QUERIES = "matryoshka-queries."
_ROTATION = "matryoshka-rotation-"
_PAGE = 1000
_MAX_CACHED = 64


def _beside(prefix: str, name: str) -> str:
    """Name what is kept beside a collection; the digest of a name that is too long for that.

    No collection's own name begins as the digest does, so the two are never taken for each other.
    """
    if len(prefix) + len(name) <= MAX_NAME_CHARS:
        return prefix + name
    return f"{prefix}-{hashlib.sha256(name.encode()).hexdigest()}"


class Companions:
    """Keeps them.

    Args:
        client: of the server; what it raises passes.
    """

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        # Every search needs one, and none ever changes under its id.
        self._rotations: OrderedDict[str, Rotation] = OrderedDict()

    async def keep_queries(self, collection: Collection, queries: KeptQueries) -> None:
        payloads = [{"slice": slice_} for slice_ in queries.slices]
        kept = _beside(_QUERIES, collection.name)
        await self._write(kept, queries.vectors_QD, payloads, collection.spread)

    async def kept_queries(self, name: str, full: int) -> KeptQueries:
        rows, payloads = await self._read(_beside(_QUERIES, name))
        vectors_QD = rows.reshape(-1, full)
        return KeptQueries(vectors_QD, [payload["slice"] for payload in payloads])

    async def keep_rotation(self, collection: Collection, rotation: Rotation) -> None:
        kept = _beside(f"{_ROTATION}{rotation.id}.", collection.name)
        payloads: list[dict[str, Any]] = [{}] * len(rotation.rows_MD)
        await self._write(kept, rotation.rows_MD, payloads, collection.spread)

    async def rotation(self, name: str, nesting: str) -> Rotation | None:
        """Return the rotation with this id; None, if it is ""."""
        if not nesting:
            return None
        if nesting not in self._rotations:
            rows_MD, _ = await self._read(_beside(f"{_ROTATION}{nesting}.", name))
            self._rotations[nesting] = Rotation(nesting, rows_MD)
            while len(self._rotations) > _MAX_CACHED:
                self._rotations.popitem(last=False)
        self._rotations.move_to_end(nesting)
        return self._rotations[nesting]

    async def drop(self, name: str) -> None:
        """Delete all that is kept beside a collection."""
        await self._client.delete_collection(_beside(_QUERIES, name))
        await self.drop_rotations(name, keep="")

    async def drop_rotations(self, name: str, keep: str) -> None:
        """Delete a collection's rotations but one."""
        listed = await self._client.get_collections()
        for found in listed.collections:
            nesting = found.name.removeprefix(_ROTATION).partition(".")[0]
            is_its = found.name == _beside(f"{_ROTATION}{nesting}.", name)
            if is_its and nesting != keep:
                await self._client.delete_collection(found.name)

    async def _write(
        self, kept: str, rows: Array, payloads: list[dict[str, Any]], spread: Spread
    ) -> None:
        if not await self._client.collection_exists(kept):
            await self._client.create_collection(
                kept,
                vectors_config=models.VectorParams(
                    size=rows.shape[1],
                    distance=models.Distance.DOT,  # numbers stay as they are
                    memory=models.Memory.COLD,
                ),
                # Small, so one shard; as many copies as of the collection, which needs it.
                **spread_params(Spread(1, spread.replicas)),
            )
        structs = [
            models.PointStruct(id=place, vector=row.tolist(), payload=payload)
            for place, (row, payload) in enumerate(zip(rows, payloads, strict=True))
        ]
        await self._client.upsert(kept, structs, wait=True)

    async def _read(self, kept: str) -> tuple[Array, list[dict[str, Any]]]:
        rows: list[Any] = []
        payloads: list[dict[str, Any]] = []
        offset: Any = None
        is_there = await self._client.collection_exists(kept)
        while is_there:
            records, offset = await self._client.scroll(
                kept, offset=offset, limit=_PAGE, with_vectors=True
            )
            rows.extend(record.vector for record in records)
            payloads.extend(record.payload or {} for record in records)
            is_there = offset is not None
        return np.array(rows, dtype=np.float32), payloads
