"""What a rotation is learned from: the collection's recent queries, if there are enough."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from services.router.changes.sample import Sampler
from services.router.recall.recent import Recent
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.qdrant import QdrantStore
from services.router.storage.store import Collection
from services.router.trainer_client import TrainerClient

DIM = 8


class Uploads(TrainerClient):
    """A trainer that keeps what it is given."""

    def __init__(self) -> None:
        self.given: dict[str, np.ndarray] = {}

    async def upload(self, filename: str, rows: BinaryIO, shape: tuple[int, int]) -> str:
        self.given[filename] = np.frombuffer(rows.read(), dtype="<f4").reshape(shape)
        return filename


@pytest.mark.parametrize(("num_queries", "times"), [(400, 2), (399, 3)])
async def test_recent_queries_are_handed_over_if_they_are_enough(
    tmp_path: Path, num_queries: int, times: int
) -> None:
    """Each once, however often it was asked; of too few, documents teach more."""
    store = QdrantStore(AsyncQdrantClient(":memory:"))
    sizes = resolve_sizes([SizeRequest(4)], DIM)
    collection = await store.create(Collection("docs", "m", "space", sizes))
    recent, trainer = Recent(store, 2000, 4, 60.0), Uploads()
    asked_QD = np.random.default_rng(0).standard_normal((num_queries, DIM)).astype(np.float32)
    for query_D in np.tile(asked_QD, (times, 1)):
        recent.observe(collection, query_D, "")
    sampler = Sampler(store, recent, trainer, tmp_path / "spool", 1000)
    file_id = await sampler.hand_over_queries(collection)
    if num_queries < 400:
        assert (file_id, trainer.given) == ("", {})
    else:
        (given_QD,) = trainer.given.values()
        assert np.array_equal(given_QD, np.unique(asked_QD, axis=0))
    await store.close()
