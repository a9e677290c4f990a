"""A Qdrant server that fails, loses answers, is killed and comes back, over real connections."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.router.plan import default_plan
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.spread import Spread
from services.router.storage.qdrant import QdrantStore
from services.router.storage.qdrant_retry import Retry
from services.router.storage.store import Collection, Point, point_uuid
from services.shared.errors import InvalidRequest, ServiceError, TookTooLong, Unavailable
from services.shared.pb import router_pb2 as pb
from services.shared.vectors import Array
from tests.router.conftest import Encoder, running
from tests.router.sharded_qdrant import Failure, ShardedQdrant

SIZES = resolve_sizes([SizeRequest(8)], 32)
PLAN = default_plan(SIZES, 3, 100)
POINTS = [Point(f"doc/{row}", "text", {}) for row in range(20)]
VECTORS: Array = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)


@pytest.fixture
async def server() -> AsyncIterator[ShardedQdrant]:
    server = ShardedQdrant()
    await server.start()
    yield server
    await server.kill()


Connect = Callable[..., QdrantStore]


@pytest.fixture
def retries() -> Counter[str]:
    """{call: how often one was repeated}."""
    return Counter()


@pytest.fixture
async def connect(server: ShardedQdrant, retries: Counter[str]) -> AsyncIterator[Connect]:
    """Makes stores on that server."""
    stores = []

    def connected(port: int = 0, longest_s: float = 30.0, timeout_s: int = 30) -> QdrantStore:
        retry = Retry(longest_s, timeout_s, lambda call: retries.update([call]))
        url = "http://127.0.0.1:1"
        store = QdrantStore.connect(url, port or server.port, None, timeout_s, retry)
        stores.append(store)
        return store

    yield connected
    for store in stores:
        await store.close()


async def filled(store: QdrantStore, shards: int = 1) -> Collection:
    collection = Collection("docs", "model", "space", SIZES, spread=Spread(shards, 1))
    collection = await store.create(collection)
    await store.upsert("docs", POINTS, VECTORS)
    return collection


class Proxy:
    """Passes bytes on to a server; killed, it breaks every connection as a dead process does."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._ends: list[asyncio.StreamWriter] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        self._server.close()
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _on_connection(self, near: asyncio.StreamReader, near_end: Any) -> None:
        far, far_end = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends += [near_end, far_end]
        await asyncio.gather(_pass_on(near, far_end), _pass_on(far, near_end))


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while some := await source.read(65536):
            sink.write(some)
            await sink.drain()
    sink.close()


SAFE: dict[str, tuple[str, Callable[[QdrantStore, Collection], Awaitable[Any]]]] = {
    "find": ("Get", lambda store, _: store.find("docs")),
    "list": ("List", lambda store, _: store.collections()),
    "aliases": ("ListAliases", lambda store, _: store.aliases()),
    "search": ("Query", lambda store, c: store.search(c, PLAN, VECTORS[0])),
    "scroll": ("Scroll", lambda store, _: store.scroll("docs", None, 7)),
    "read": ("Get_points", lambda store, _: store.read("docs", [point_uuid("doc/1")])),
    "count": ("Count", lambda store, _: store.count("docs")),
    "upsert": ("Upsert", lambda store, _: store.upsert("docs", POINTS, VECTORS)),
    "delete": ("Delete_points", lambda store, _: store.delete("docs", ["doc/3"])),
}


def comparable(result: Any) -> Any:
    return getattr(result, "hits", result if not hasattr(result, "points") else result.points)


@pytest.mark.parametrize("is_after", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize(("name", "shards"), [("search", 1), *((name, 3) for name in SAFE)])
async def test_what_is_safe_to_repeat_is_repeated(
    connect: Connect,
    server: ShardedQdrant,
    retries: Counter[str],
    name: str,
    shards: int,
    is_after: bool,
) -> None:
    """Until it succeeds, with the result that it has without failures; each time is counted."""
    store = connect()
    collection = await filled(store, shards)
    call, work = SAFE[name]
    expected = comparable(await work(store, collection))
    count = await store.count("docs")
    server.failures[call] = [Failure(is_after=is_after) for _ in range(3)]
    assert comparable(await work(store, collection)) == expected
    assert server.failures[call] == []
    assert retries.total() == 3
    assert await store.count("docs") == count


async def test_what_is_not_safe_to_repeat_is_done_once(
    connect: Connect, server: ShardedQdrant, retries: Counter[str]
) -> None:
    """Done twice it could take a name that is another's by then, or write over what is newer."""
    store = connect()
    await filled(store)
    other = Collection("other", "model", "space", SIZES)
    for call, work in (
        ("Create", store.create(other)),
        ("Delete", store.drop("docs")),
        ("UpdateAliases", store.set_alias("alias", "docs")),
        ("Update", store.annotate("docs", "change", {"a": 1})),
    ):
        before = server.calls[call]
        server.failures[call] = [Failure()]
        with pytest.raises(Unavailable):
            await work
        assert server.calls[call] == before + 1, call
    assert not retries


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INTERNAL, Unavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TookTooLong),
    ],
)
async def test_other_failures_are_not_repeated(
    connect: Connect, server: ShardedQdrant, code: grpc.StatusCode, error: type[ServiceError]
) -> None:
    """The server was there and said what is wrong."""
    store = connect()
    await filled(store)
    server.failures["Count"] = [Failure(code)]
    with pytest.raises(error):
        await store.count("docs")
    assert server.calls["Count"] == 1


async def test_a_server_that_stays_away_ends_the_call(
    connect: Connect, server: ShardedQdrant, retries: Counter[str]
) -> None:
    """After its time, with a bounded number of attempts, further and further apart."""
    store = connect(longest_s=1.0)
    await filled(store)
    server.failures["Count"] = [Failure() for _ in range(1000)]
    with pytest.raises(Unavailable):
        await store.count("docs")
    # Waits of at least 0.025, 0.05, 0.1, 0.2 and 0.4 s fit into it, and no more.
    assert 2 <= server.calls["Count"] <= 6
    assert retries == {"count": server.calls["Count"] - 1}


async def test_nothing_is_repeated_where_that_is_turned_off(
    connect: Connect, server: ShardedQdrant
) -> None:
    """A time of 0 is one attempt."""
    store = connect(longest_s=0)
    await filled(store)
    server.failures["Count"] = [Failure()]
    with pytest.raises(Unavailable):
        await store.count("docs")
    assert server.calls["Count"] == 1


async def test_all_attempts_together_end_with_the_time_of_one_call() -> None:
    """A server that first fails, and then does not answer, does not hold its caller for ever."""
    attempts = 0

    async def call() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)
        await asyncio.Event().wait()

    async with asyncio.timeout(60) as patience:
        with pytest.raises(TimeoutError):
            await Retry(longest_s=50, timeout_s=0.5).run("count", call)
    assert not patience.expired()
    assert attempts == 3


@pytest.mark.parametrize("is_process", [False, True], ids=["server", "connection"])
@pytest.mark.parametrize("call", ["Upsert", "Query"])
async def test_a_server_that_is_killed_in_the_middle_of_a_call_is_waited_for(
    connect: Connect, server: ShardedQdrant, retries: Counter[str], call: str, is_process: bool
) -> None:
    """Killed while it works and started again, with nobody there in between: the caller sees an
    answer that came late."""
    proxy = Proxy(server.port)
    await proxy.start()
    dies: Any = proxy if is_process else server
    store = connect(dies.port)
    collection = await filled(store)
    server.waiting[call] = asyncio.Event()
    name = "upsert" if call == "Upsert" else "search"
    before = server.calls[call]
    working = asyncio.create_task(SAFE[name][1](store, collection))  # type: ignore[arg-type]
    while server.calls[call] == before:
        await asyncio.sleep(0.01)
    await dies.kill()
    server.waiting.pop(call).set()
    while not retries:
        assert not working.done()
        await asyncio.sleep(0.01)
    await dies.start()
    answer = await working
    if call == "Query":
        assert answer.hits[0].point.id == "doc/0"
    assert await store.count("docs") == len(POINTS)
    await proxy.kill()


async def test_writes_and_searches_go_on_over_several_deaths(
    connect: Connect, server: ShardedQdrant, retries: Counter[str]
) -> None:
    """None fails, and what was acknowledged is there."""
    proxy = Proxy(server.port)
    await proxy.start()
    store = connect(proxy.port)
    collection = await filled(store, shards=3)
    acknowledged: list[str] = []
    searched = 0

    async def write() -> None:
        for number in range(60):
            point = Point(f"new/{number}", "text", {})
            await store.upsert("docs", [point], VECTORS[:1])
            acknowledged.append(point.id)

    async def search() -> None:
        nonlocal searched
        while len(acknowledged) < 60:
            assert len((await store.search(collection, PLAN, VECTORS[0])).hits) == 3
            searched += 1

    async def die() -> None:
        for _ in range(3):
            await asyncio.sleep(0.1)
            await proxy.kill()
            await asyncio.sleep(0.1)
            await proxy.start()

    await asyncio.gather(write(), search(), die())
    assert retries["upsert"] + retries["get_collection"] > 0
    assert searched > 3
    there = {point.id for point in (await store.scroll("docs", None, 1000)).points}
    assert there >= set(acknowledged)
    await proxy.kill()


async def test_a_caller_whose_deadline_passes_is_not_worked_for(
    encoder: tuple[Encoder, str], tmp_path: Path, server: ShardedQdrant
) -> None:
    """Repetitions end with the call that they are for; each is in the metrics."""
    at = {"qdrant_url": "http://127.0.0.1:1", "qdrant_grpc_port": server.port}
    async with running(encoder, tmp_path, qdrant_retry_s=50, **at) as router:
        await router.stub.CreateCollection(pb.CreateCollectionRequest(name="docs", model="small"))
        server.failures["Get"] = [Failure() for _ in range(1000)]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"), timeout=0.5)
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(0.1)
        calls = server.calls["Get"]
        await asyncio.sleep(1.5)  # longer than any pause between two attempts
        assert server.calls["Get"] == calls
        assert retried(router.registry, "get_collection") >= 2
        server.failures.clear()


def retried(registry: CollectorRegistry, call: str) -> float:
    return registry.get_sample_value("matryoshka_router_storage_retries_total", {"call": call}) or 0
