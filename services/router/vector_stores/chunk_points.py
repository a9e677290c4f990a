"""A file's chunks as points of its store's collection: their ids, their attributes, their batches.

A point's id is its file and the chunk's number: a chunk written twice overwrites itself, and what a
file has left behind can be told from how many chunks there may be.
"""

import asyncio
from collections.abc import AsyncIterator

from services.router.storage.store import Point
from services.router.upsert import Batch
from services.router.vector_stores.attributes import to_point
from services.router.vector_stores.rows import StoreFile
from services.router.vector_stores.work import StoreWork


def point_id(file_id: str, number: int) -> str:
    """Return the id of a chunk's point."""
    return f"{file_id}:{number}"


def file_of(id_: str) -> str:
    """Return the file that a point is a chunk of."""
    return id_.partition(":")[0]


class LostWork(Exception):
    """Another router works on a file now, or somebody has asked for something else."""


class ChunkPoints:
    """Turns the chunks of a file into batches of points, and counts them.

    Args:
        file: as it stands when the work begins.
        collection: where they go.
        work: told how many there may be, before they are written.
        batch: points of one batch.
    """

    def __init__(self, file: StoreFile, collection: str, work: StoreWork, batch: int) -> None:
        self._file = file
        self._collection = collection
        self._work = work
        self._batch = batch
        self._attributes = to_point(file.attributes)
        self.num_points = 0
        self.text_bytes = 0

    async def batches(self, read: AsyncIterator[list[str]]) -> AsyncIterator[Batch]:
        """Give the batches; LostWork: there must be none any more."""
        waiting: list[str] = []
        async for chunks in read:
            waiting += chunks
            while len(waiting) >= self._batch:
                yield await self._next(waiting[: self._batch])
                waiting = waiting[self._batch :]
        if waiting:
            yield await self._next(waiting)

    async def _next(self, chunks: list[str]) -> Batch:
        points = [
            Point(point_id(self._file.file_id, self.num_points + offset), chunk, self._attributes)
            for offset, chunk in enumerate(chunks)
        ]
        self.num_points += len(points)
        self.text_bytes += sum(len(chunk.encode()) for chunk in chunks)
        if not await asyncio.to_thread(self._work.set_points, self._file, self.num_points):
            raise LostWork
        return Batch(self._collection, points)
