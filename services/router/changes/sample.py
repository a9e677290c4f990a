"""A collection's vectors for the trainer: a random sample of its points, and recent queries.

Spooled to disk, as a sample of wide vectors may be larger than what memory is worth.

Shapes: N documents, Q queries, D full width.
"""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from services.router.recall.recent import Recent
from services.router.storage.store import Collection, Store
from services.router.trainer_client import TrainerClient
from services.shared.errors import WrongState
from services.shared.vectors import pack

MIN_POINTS = 1000
"""Fewer say little about the others of their collection."""
# Fewer recent queries teach less than documents in their place.
_MIN_QUERIES = 400
_PAGE = 1000


class Sampler:
    """Hands samples to the trainer.

    Args:
        store: where the collections are.
        recent: queries of searches.
        trainer: takes the vectors.
        folder: for spooled vectors; made when needed.
        max_points: vectors of documents, at most.
    """

    def __init__(
        self, store: Store, recent: Recent, trainer: TrainerClient, folder: Path, max_points: int
    ) -> None:
        self._store = store
        self._recent = recent
        self._trainer = trainer
        self._folder = folder
        self._max_points = max_points

    async def check(self, collection: Collection) -> None:
        """Refuse a collection that has too few points to learn from; WrongState."""
        num_points = await self._store.count(collection.name)
        if num_points < MIN_POINTS:
            raise WrongState(
                f"collection {collection.name!r} has {num_points} points; a rotation is learned "
                f"from {MIN_POINTS} or more"
            )

    async def hand_over(
        self, collection: Collection, on_progress: Callable[[int, int], None]
    ) -> str:
        """Upload a collection's vectors; return the file's id."""
        total = min(self._max_points, await self._store.count(collection.name))
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as spool:
            num_rows, after = 0, None
            while num_rows < total:
                page = await self._store.vectors(collection.name, after, _PAGE)
                rows_BD = page.vectors_BD[: total - num_rows]
                await asyncio.to_thread(spool.write, pack(rows_BD))
                num_rows += len(rows_BD)
                on_progress(num_rows, total)
                after = page.after
                if after is None:
                    break
            spool.seek(0)
            return await self._trainer.upload(
                f"{collection.name}-documents.npy", spool, (num_rows, collection.full)
            )

    async def hand_over_queries(self, collection: Collection) -> str:
        """Upload the vectors of its recent queries; return the file's id, "" if few are known."""
        kept = await self._recent.of(collection)
        queries_QD = np.unique(kept.vectors_QD, axis=0)
        if len(queries_QD) < _MIN_QUERIES:
            return ""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as spool:
            spool.write(pack(queries_QD))
            spool.seek(0)
            return await self._trainer.upload(
                f"{collection.name}-queries.npy", spool, queries_QD.shape
            )
