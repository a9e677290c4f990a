"""Several routers over one database put each file into its store once, or take it over."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from qdrant_client import AsyncQdrantClient

from services.router.storage.qdrant import QdrantStore
from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.files import StoreFiles
from services.router.vector_stores.rows import Attachment
from services.router.vector_stores.stores import VectorStore, VectorStores
from services.router.vector_stores.work import StoreWork
from services.shared.database import Database
from services.shared.errors import Unavailable
from services.shared.pb import encoder_pb2
from tests.router.conftest import Encoder, Running, running
from tests.router.test_tenants_http import served

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
LEASE_S = 1.0


@dataclass
class Router:
    """One of them, over HTTP."""

    running: Running
    client: httpx.AsyncClient

    def kill(self) -> None:
        """End its work as the kernel would: it lets go of nothing, and says nothing any more."""
        ingester = self.running.service._parts.retrieval._ingester
        ingester._work.release = lambda number: None
        for worker in ingester._workers:
            worker.cancel()


@dataclass
class World:
    """A database, a storage and an encoder, and routers over them."""

    encoder: Encoder
    address: str
    folder: object
    stack: contextlib.AsyncExitStack

    async def start(self, name: str) -> Router:
        shared = {
            "database_url": f"sqlite:///{self.folder}/shared.sqlite",
            "files_url": str(self.folder / "files"),
            "ingest_lease_s": LEASE_S,
            "encoder_batch_texts": 2,
            "upsert_read_ahead": 1,
        }
        folder = self.folder / name
        router = await self.stack.enter_async_context(
            running((self.encoder, self.address), folder, **shared)
        )
        url = await self.stack.enter_async_context(served(router, folder))
        client = httpx.AsyncClient(base_url=f"{url}/v1", timeout=60)
        return Router(router, await self.stack.enter_async_context(client))

    def owners(self) -> list[str | None]:
        with contextlib.closing(sqlite3.connect(self.folder / "shared.sqlite")) as database:
            return [row[0] for row in database.execute("SELECT owner FROM vector_store_files")]

    def documents(self) -> list[str]:
        """All texts that were encoded, except queries."""
        is_document = encoder_pb2.ROLE_DOCUMENT
        sent = [request for request in self.encoder.embeds if request.role == is_document]
        return [text for request in sent for text in request.texts]


@pytest.fixture
async def world(encoder, tmp_path, monkeypatch) -> AsyncIterator[World]:
    client = AsyncQdrantClient(":memory:")

    async def leave_open() -> None:
        """Routers that end close what is theirs alone."""

    close = client.close
    monkeypatch.setattr(client, "close", leave_open)
    monkeypatch.setattr("services.router.parts._build_store", lambda *_: QdrantStore(client))
    async with contextlib.AsyncExitStack() as stack:
        yield World(encoder[0], encoder[1], tmp_path, stack)
        encoder[0].may_answer.set()
    await close()


async def make_store(router: Router) -> str:
    return f"/vector_stores/{(await router.client.post('/vector_stores', json={})).json()['id']}"


async def put(router: Router, store: str, text: str) -> str:
    upload = {"file": ("a.txt", text.encode()), "purpose": (None, "assistants")}
    file_id = (await router.client.post("/files", files=upload)).json()["id"]
    attached = {"file_id": file_id, "chunking_strategy": STATIC}
    answer = await router.client.post(f"{store}/files", json=attached)
    assert answer.status_code == 200, answer.text
    return file_id


async def until(happens, wait_s: float = 30.0) -> None:
    async with asyncio.timeout(wait_s):
        while not await happens():
            await asyncio.sleep(0.02)


async def is_completed(router: Router, store: str) -> bool:
    return (await router.client.get(store)).json()["status"] == "completed"


async def points(router: Router, store: str) -> list[str]:
    name = store.rpartition("/")[2]
    page = await router.running.service._parts.store.scroll(name, None, 10_000)
    return sorted(point.text for point in page.points)


def long_text(name: str, words: int = 300) -> str:
    return " ".join(f"{name}{number}" for number in range(words))


async def test_each_file_is_encoded_and_written_once(world: World) -> None:
    """Both routers work, side by side, and neither does again what the other does."""
    first, second = await world.start("first"), await world.start("second")
    store = await make_store(first)
    world.encoder.may_answer.clear()
    for number in range(6):
        await put((first, second)[number % 2], store, long_text(f"{'abcdef'[number]}"))

    async def both_work() -> bool:
        return len(set(world.owners()) - {None}) == 2

    await until(both_work)
    await asyncio.sleep(1.5 * LEASE_S)  # they say again and again that they are at it
    world.encoder.may_answer.set()
    await until(lambda: is_completed(second, store))
    texts = await points(first, store)
    assert len(texts) > 30
    assert sorted(world.documents()) == texts

    async def all_are_let_go() -> bool:
        return world.owners() == [None] * 6

    await until(all_are_let_go)


async def test_what_a_killed_router_was_at_is_gone_on_with(world: World) -> None:
    """Not while it lives, and then after the lease; each chunk is there once."""
    first = await world.start("first")
    store = await make_store(first)
    world.encoder.may_answer.clear()
    await put(first, store, long_text("word"))
    while not world.encoder.embeds:
        await asyncio.sleep(0.01)
    second = await world.start("second")
    (owner,) = world.owners()
    await asyncio.sleep(2 * LEASE_S)
    assert world.owners() == [owner]
    assert len(world.documents()) == 2, "the second waits"
    first.kill()
    world.encoder.may_answer.set()
    await until(lambda: is_completed(second, store))
    texts = await points(second, store)
    assert len(texts) == len(set(texts)) > 5
    assert set(world.documents()) == set(texts)


async def test_what_one_is_at_is_taken_out_by_another(world: World) -> None:
    """It is gone for callers at once; its chunks follow, and who was at it stops in the middle."""
    first = await world.start("first")
    store = await make_store(first)
    world.encoder.may_answer.clear()
    file_id = await put(first, store, long_text("word", 8000))
    while not world.encoder.embeds:
        await asyncio.sleep(0.01)
    second = await world.start("second")
    deleted = await second.client.delete(f"{store}/files/{file_id}")
    assert deleted.status_code == 200
    for router in (first, second):
        assert (await router.client.get(f"{store}/files")).json()["data"] == []
    world.encoder.may_answer.set()

    async def is_clean() -> bool:
        return world.owners() == [] and await points(second, store) == []

    await until(is_clean)
    assert len(world.documents()) < 20
    await asyncio.sleep(0.2)
    assert await is_clean()


@pytest.fixture
def database(tmp_path) -> Database:
    opened = Database(f"sqlite:///{tmp_path}/shared.sqlite")
    opened.open()
    yield opened
    opened.close()


def test_who_was_slow_finds_out_before_it_writes_on(database: Database) -> None:
    """A file that another router has taken is no longer its own to note anything of."""
    (number,) = (
        file.number
        for file in StoreFiles(database).attach("vs", [Attachment("f", {}, Chunking(100, 0))])
    )
    slow, other = StoreWork(database, "slow", -1.0), StoreWork(database, "other", 60.0)
    file = slow.take(number)
    assert file is not None
    assert other.pending(()) is None
    assert other.take(number) is None
    assert slow.set_points(file, 3)
    assert slow.beat([number]).keys() == {number}
    late = StoreWork(database, "late", -1.0)  # to it every lease is over
    taken = late.take(number)
    assert taken is not None
    assert taken.num_points == 3
    assert not slow.set_points(file, 5)
    assert slow.beat([number]) == {}
    slow.complete(file, 5, 5)
    slow.fail(file, "server_error", "x")
    slow.release(number)
    slow.remove(number)
    assert late.beat([number])[number].state == "in_progress"
    late.complete(taken, 4, 4)
    late.release(number)
    assert other.pending(()) is None


def test_a_store_that_another_router_creates_is_left_alone(database: Database) -> None:
    """One of a router's own, from before its end, is given up; and who is too late is told."""
    stores = VectorStores(database)
    stores.add(VectorStore(id="vs_1", collection="vs_1", model="m", metadata={}), "one")
    stores.give_up("other")
    assert [store.id for store in stores.in_state("creating")] == ["vs_1"]
    stores.give_up("one")
    assert [store.id for store in stores.in_state("deleting")] == ["vs_1"]
    with pytest.raises(Unavailable, match="could not be created in time"):
        stores.open("vs_1", "m", 8, 100)
