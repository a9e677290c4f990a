"""A migration killed before every write that it makes, one after another, and gone on with.

The storage is Qdrant in memory: what a router that died had written is there, and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from qdrant_client import AsyncQdrantClient

from services.router.changes.agreements import Agreements
from services.router.changes.change import read_change
from services.router.changes.changes import Changes
from services.router.changes.migrate import Migrate, Migrator
from services.router.changes.migrations import MigrateWork
from services.router.encoder_client import EncoderClient
from services.router.gate import WriteGate
from services.router.metrics import RouterMetrics
from services.router.mirror import Mirror
from services.router.recall.calibrate import Calibrator
from services.router.recall.queries import Queries
from services.router.recall.recent import Recent
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.spread import DEFAULT_SPREAD
from services.router.storage.qdrant import QdrantStore
from services.router.storage.store import Collection, Point
from services.router.translate import Translator
from services.shared.database import Database
from services.shared.errors import NotFound
from tests.router.conftest import Encoder, encode

IDS = {f"p{row}" for row in range(7)}
LEASE_S = 0.04


class Killed(Exception):
    """The router is no more."""


class MortalStore(QdrantStore):
    """Writes so many times, and never again."""

    def __init__(self, client: AsyncQdrantClient, writes: int) -> None:
        super().__init__(client, retire_s=0)
        self.writes = writes

    def _write(self) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise Killed

    async def create(self, *given: Any) -> Any:
        self._write()
        return await super().create(*given)

    async def upsert(self, *given: Any) -> None:
        self._write()
        await super().upsert(*given)

    async def annotate(self, *given: Any) -> None:
        self._write()
        await super().annotate(*given)

    async def set_alias(self, *given: Any) -> None:
        self._write()
        await super().set_alias(*given)


class Life:
    """What of a router migrates, from one start to its end."""

    def __init__(self, store: MortalStore, encoder: EncoderClient, database: Database) -> None:
        self.store = store
        metrics = RouterMetrics(CollectorRegistry())
        translator, recent = Translator(encoder), Recent(store, 10, 4, 60.0)
        migrator = Migrator(
            store, encoder, translator, recent, WriteGate(store), metrics, 3, DEFAULT_SPREAD
        )
        calibrator = Calibrator(store, Queries(store, encoder, recent, 100, 100), 1000, 100, 100)
        self.work = MigrateWork(store, calibrator, migrator, Agreements(database, 10))
        self.mirror = Mirror(store, translator)
        self.changes = Changes(store, {"migrate": self.work}, metrics, LEASE_S, 10.0)

    async def fill(self) -> None:
        """Begin the migration, or let it be gone on with, until it waits for somebody's word."""
        wanted = Migrate("current", "new", "wide", alias="current", holds=True, keeps_source=True)
        try:
            await self.store.find("new")
            self.changes.start()
            async with asyncio.timeout(20):
                while (await self._change()).step != "ready":
                    await asyncio.sleep(0.005)
        except NotFound:
            running = await self.work.begin(wanted, self.changes)
            async for _ in running.follow():
                pass

    async def _change(self) -> Any:
        change = read_change(await self.store.find("new"))
        assert change is not None
        assert not change.error
        return change

    async def write(self, id_: str) -> None:
        """Write a point by the alias, as a caller would between two steps."""
        found, points = await self.store.find("current"), [Point(id_, f"text of {id_}", {})]
        vectors_BD = encode(found.model, points[0].text, found.full)[None]
        mirrored = await self.mirror.translate(found, points, vectors_BD)
        await self.store.upsert(found.name, points, vectors_BD)
        if mirrored is not None:
            await self.mirror.upsert(points, mirrored)

    async def cut_over(self) -> None:
        await self.work.cut_over("new")

    async def roll_back(self) -> None:
        await self.work.roll_back("new")

    async def finish(self) -> None:
        await self.work.finish("new")


STEPS: list[Callable[[Life], Awaitable[None]]] = [
    Life.fill, Life.cut_over, Life.roll_back, Life.cut_over, Life.finish
]  # fmt: skip


@asynccontextmanager
async def filled() -> AsyncIterator[AsyncQdrantClient]:
    """A collection behind an alias."""
    client = AsyncQdrantClient(":memory:")
    store = QdrantStore(client)
    sizes = resolve_sizes([SizeRequest(8)], 32)
    await store.create(Collection("old", "small", "space-small", sizes))
    points = [Point(id_, f"text of {id_}", {}) for id_ in sorted(IDS)]
    vectors_BD = np.stack([encode("small", point.text, 32) for point in points])
    await store.upsert("old", points, vectors_BD)
    await store.set_alias("current", "old")
    yield client
    await store.close()


async def check_whole(store: QdrantStore, ids: set[str], name: str = "current") -> str:
    """See that what a name finds is whole and of one space; return the collection's own."""
    found = await store.find(name)
    page = await store.scroll(found.name, None, 100, with_vectors=True)
    assert page.vectors_BD is not None
    assert {point.id for point in page.points} == ids
    for point, vector_D in zip(page.points, page.vectors_BD, strict=True):
        np.testing.assert_allclose(vector_D, encode(found.model, point.text, found.full), atol=2e-6)
    return found.name


@pytest.fixture
def database(tmp_path: Path) -> Any:
    opened = Database(f"sqlite:///{tmp_path}/router.db")
    opened.open()
    yield opened
    opened.close()


async def test_it_can_be_killed_before_any_write(
    encoder: tuple[Encoder, str], database: Database
) -> None:
    """The next router goes on, or does again what its caller asks for again: there is a whole
    collection behind the alias at every such moment, and what is written then is lost in none."""
    client = EncoderClient(encoder[1])
    num_kills = 0
    while True:
        async with filled() as storage:
            life = Life(MortalStore(storage, num_kills), client, database)
            ids, killed_at = IDS, None
            for step in STEPS:
                try:
                    await step(life)
                except Killed:
                    assert killed_at is None
                    killed_at = step
                    await life.changes.stop()
                    await check_whole(life.store, ids)
                    life = Life(MortalStore(storage, 1000), client, database)
                    await life.write("late")
                    ids = IDS | {"late"}
                    await step(life)
                await check_whole(life.store, ids)
            await life.changes.stop()
            assert await check_whole(life.store, ids) == "new"
            for name in ("old", "new"):
                collection = await life.store.find(name)
                assert (collection.change, collection.mirror) == (None, None)
            if killed_at is not Life.finish:  # in its middle the two have parted
                await check_whole(life.store, ids, "old")
        if killed_at is None:
            break
        num_kills += 1
    assert num_kills > 20
    await client.close()
