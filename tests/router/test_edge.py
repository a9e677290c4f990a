"""Qdrant Edge under failure: workers that die, crashes in between, indexing behind the searches."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.router.plan import Plan, Stage, exact_plan, for_fewer_hits
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage import edge_shard
from services.router.storage.edge import EdgeStore
from services.router.storage.store import TENANT, Collection, Point
from services.shared.errors import NotFound, Overloaded, Unavailable

COLLECTION = Collection("docs", "model", "space", resolve_sizes([SizeRequest(8)], 32))
PLAN = exact_plan(COLLECTION.sizes, 3)


def points(first: int, rows: int) -> list[Point]:
    return [Point(str(first + row), "text", {}) for row in range(rows)]


def vectors(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)


def worker_of(store: EdgeStore):
    return store._collections["docs"].worker


async def all_ids(store: EdgeStore) -> set[str]:
    page = await store.scroll("docs", None, 10_000)
    return {point.id for point in page.points}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    restarts: list[None] = []
    opened = EdgeStore(
        tmp_path, indexing_threshold_kb=1, max_waiting=8, on_restart=lambda: restarts.append(None)
    )
    opened.restarts = restarts
    await opened.open()
    await opened.create(COLLECTION)
    yield opened
    await opened.close()


async def test_a_killed_worker_loses_nothing_acknowledged(store):
    """Every write that returned is there after kill -9 of the worker, without a flush."""
    await store.upsert("docs", points(0, 50), vectors(50))
    await store.delete("docs", ["7"])
    os.kill(worker_of(store).pid, signal.SIGKILL)
    await worker_of(store)._has_ended.wait()
    await store.upsert("docs", points(50, 10), vectors(10))
    assert await all_ids(store) == {str(i) for i in range(60) if i != 7}
    assert len(store.restarts) == 1


async def test_a_request_in_flight_when_the_worker_dies_fails_as_retryable(store):
    """The caller is told to try again, and trying again works."""
    await store.upsert("docs", points(0, 5), vectors(5))
    os.kill(worker_of(store).pid, signal.SIGSTOP)
    searches = [
        asyncio.create_task(store.search(COLLECTION, PLAN, vectors(1)[0])) for _ in range(3)
    ]
    await asyncio.sleep(0.05)
    os.kill(worker_of(store).pid, signal.SIGKILL)
    for outcome in await asyncio.gather(*searches, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert outcome.retry_after_s
    assert len((await store.search(COLLECTION, PLAN, vectors(1)[0])).hits) == 3


async def test_fewer_hits_of_codes_are_as_sure_as_more(store):
    """A plan cut to its nearest hit keeps what it kept of ten, as `for_fewer_hits` cuts it."""
    collection = Collection(
        "coded", "model", "space", resolve_sizes([SizeRequest(32, "turbo1", 0)], 32)
    )
    await store.create(collection)
    await store.upsert("coded", points(0, 1500), vectors(1500))
    await store.settle("coded")
    queries = np.random.default_rng(1).standard_normal((150, 32)).astype(np.float32)
    of_ten = Plan((Stage(32, 10, oversampling=15.0),))

    async def keys(plan: Plan, query_D) -> list[str]:
        return [hit.key for hit in (await store.search(collection, plan, query_D)).hits]

    kept = {"ten": 0.0, "one": 0.0, "one, cut naively": 0.0}
    for query_D in queries:
        exact = await keys(exact_plan(collection.sizes, 10), query_D)
        found = {
            "ten": await keys(of_ten, query_D),
            "one": await keys(for_fewer_hits(of_ten, collection.sizes[-1], 1), query_D),
            "one, cut naively": await keys(Plan((Stage(32, 1, oversampling=15.0),)), query_D),
        }
        for name, hits in found.items():
            kept[name] += len({*exact[: len(hits)]} & {*hits}) / len(hits) / len(queries)
    assert kept["one"] >= kept["ten"] - 0.02 > 0.8
    assert kept["one, cut naively"] < kept["ten"] - 0.1, "the case must tell the two apart"


async def test_a_full_queue_refuses_at_once(store):
    """One request more than may wait is refused; those that wait are answered."""
    await store.upsert("docs", points(0, 5), vectors(5))
    os.kill(worker_of(store).pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(store.count("docs")) for _ in range(8)]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await store.count("docs")
    os.kill(worker_of(store).pid, signal.SIGCONT)
    assert await asyncio.gather(*waiting) == [5] * 8


async def test_a_caller_that_leaves_disturbs_nobody(store):
    """After a cancelled request the next answers still reach the right callers."""
    await store.upsert("docs", points(0, 5), vectors(5))
    os.kill(worker_of(store).pid, signal.SIGSTOP)
    leaving = asyncio.create_task(store.search(COLLECTION, PLAN, vectors(1)[0]))
    staying = asyncio.create_task(store.count("docs"))
    await asyncio.sleep(0.05)
    leaving.cancel()
    os.kill(worker_of(store).pid, signal.SIGCONT)
    assert await staying == 5
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_an_answer_that_is_none_fails_who_waits(store):
    """Bytes that are no frame end the worker: its callers may try again, and find another one."""
    await store.upsert("docs", points(0, 5), vectors(5))
    worker = worker_of(store)
    os.kill(worker.pid, signal.SIGSTOP)
    counting = asyncio.create_task(store.count("docs"))
    await asyncio.sleep(0.05)
    with pytest.raises(ValueError):
        worker.pipe_data_received(1, b"\1\0\0\0\xc1")
    with pytest.raises(Unavailable):
        await counting
    assert await store.count("docs") == 5
    assert len(store.restarts) == 1


def in_cache(pid: int, path: str) -> int | None:
    """KiB of a mapped file that a process has in memory; None: it maps no such file."""
    found = None
    of_file = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            of_file = line.split()[-1]
        elif line.startswith("Rss:") and of_file.endswith(path):
            found = (found or 0) + int(line.split()[1])
    return found


async def test_codes_and_graphs_lie_where_they_were_put(tmp_path: Path):
    """Pinned ones are no part of the disk's cache, cached ones are whole there from the start, cold
    ones are not; unset, codes are pinned and the graph is cached."""
    rows, dims = 3000, {"pinned": 16, "cached": 17, "cold": 18, None: 32}
    requests = [
        SizeRequest(dim, "int8", 16, index_placement=placement) for placement, dim in dims.items()
    ]
    store = EdgeStore(tmp_path, indexing_threshold_kb=1)
    await store.open()
    await store.create(Collection("docs", "model", "space", resolve_sizes(requests, 32)))
    await store.upsert("docs", points(0, rows), vectors(rows))
    await store.settle("docs")
    await store.close()
    await store.open()
    await store.count("docs")  # a fresh worker, which has searched nothing
    pid = worker_of(store).pid
    seen = {
        placement: (
            in_cache(pid, f"vector_storage-d{dim}/quantized.data"),
            in_cache(pid, f"vector_index-d{dim}/links_compressed.bin"),
        )
        for placement, dim in dims.items()
    }
    await store.close()
    assert seen["pinned"] == (None, None)
    codes, links = seen["cached"]
    assert codes >= rows * 17 // 1024
    assert links >= rows * 16 // 1024
    cold_codes, cold_links = seen["cold"]
    assert cold_codes < codes / 4
    assert cold_links < links / 4
    assert seen[None][0] is None
    assert seen[None][1] >= rows * 16 // 1024


async def test_closing_ends_the_workers(tmp_path: Path):
    """No process outlives the store."""
    store = EdgeStore(tmp_path)
    await store.open()
    await store.create(COLLECTION)
    await store.count("docs")
    pid = worker_of(store).pid
    await store.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_searches_go_on_while_a_copy_is_indexed(store):
    """The shard is indexed in another process; no search fails, and the new shard takes over."""
    await store.upsert("docs", points(0, 2000), vectors(2000))
    first = worker_of(store)
    answered = 0
    settling = asyncio.create_task(store.settle("docs"))
    while not settling.done():
        assert len((await store.search(COLLECTION, PLAN, vectors(1)[0])).hits) == 3
        answered += 1
    await settling
    assert answered > 10
    assert worker_of(store).pid != first.pid
    assert not first.is_alive
    assert await worker_of(store).call("progress") == [2000, 0]
    assert await store.count("docs") == 2000
    assert len(list((store._folder._root / "docs").glob("shard-*"))) == 1


async def test_what_is_measured_while_a_copy_is_indexed_is_kept(store):
    """The new shard takes over from the old one without forgetting what was noted meanwhile."""
    await store.upsert("docs", points(0, 2000), vectors(2000))
    first = worker_of(store)
    settling = asyncio.create_task(store.settle("docs"))
    while len(list((store._folder._root / "docs").glob("shard-*"))) < 2:
        await asyncio.sleep(0.001)
    await store.annotate("docs", "calibration", {"recall": 0.95})
    assert not settling.done()
    await settling
    assert worker_of(store).pid != first.pid
    assert (await store.find("docs")).calibration == {"recall": 0.95}
    await store.close()
    await store.open()
    assert (await store.find("docs")).calibration == {"recall": 0.95}
    assert await store.count("docs") == 2000


async def test_a_collection_dropped_while_it_is_measured_is_not_found(store):
    """What was measured has no place to go, and nothing comes back to life."""
    starting = asyncio.create_task(store.count("docs"))  # the others wait for the worker
    await asyncio.sleep(0)
    dropping = asyncio.create_task(store.drop("docs"))
    await asyncio.sleep(0)
    noting = asyncio.create_task(store.annotate("docs", "calibration", {"recall": 0.95}))
    await dropping
    assert await starting == 0
    with pytest.raises(NotFound):
        await noting
    assert [path.name for path in store._folder._root.iterdir()] == [".lock"]


OTHER_SIZES = resolve_sizes([SizeRequest(4), SizeRequest(8, "turbo2")], 32)


def shards(store: EdgeStore) -> list[Path]:
    return list((store._folder._root / "docs").glob("shard-*"))


async def being_built(store: EdgeStore):
    """Wait until a builder works on another shard, and return it."""
    async with asyncio.timeout(30):
        while (builder := store._collections["docs"].builder) is None:
            await asyncio.sleep(0.001)
    return builder


async def test_a_builder_that_is_killed_leaves_all_as_it_was(store):
    """Kill -9 while sizes change: the old ones are searched on, and another try succeeds."""
    await store.upsert("docs", points(0, 3000), vectors(3000))
    resizing = asyncio.create_task(store.resize("docs", OTHER_SIZES, None, lambda *_: None))
    os.kill((await being_built(store)).pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await resizing
    assert await store.find("docs") == COLLECTION
    assert len(shards(store)) == 1
    await store.upsert("docs", points(3000, 1), vectors(1))
    assert len((await store.search(COLLECTION, PLAN, vectors(1)[0])).hits) == 3
    changed = await store.resize("docs", OTHER_SIZES, None, lambda *_: None)
    assert changed.sizes == OTHER_SIZES
    assert await store.count("docs") == 3001
    assert len(shards(store)) == 1


@pytest.mark.parametrize("is_resize", [True, False])
async def test_a_drop_ends_what_is_being_built(store, is_resize: bool):
    """Whoever waits for it hears that the collection is gone; no process and no file stays."""
    await store.upsert("docs", points(0, 3000), vectors(3000))
    if is_resize:
        work = store.resize("docs", OTHER_SIZES, None, lambda *_: None)
        building = asyncio.create_task(work)
    else:
        building = asyncio.create_task(store.settle("docs"))
    builder = await being_built(store)
    await store.drop("docs")
    with pytest.raises(NotFound):
        await building
    assert not builder.is_alive
    with pytest.raises(ProcessLookupError):
        os.kill(builder.pid, 0)
    assert [path.name for path in store._folder._root.iterdir()] == [".lock"]


async def test_writes_go_on_while_a_copy_is_indexed(store):
    """Some are acknowledged before indexing ends, and all are there, as written, after it."""
    await store.upsert("docs", points(0, 6000), vectors(6000))
    settling = asyncio.create_task(store.settle("docs"))
    await being_built(store)
    written = 0
    while not settling.done():
        await store.upsert("docs", points(6000 + written, 1), vectors(1))
        await store.delete("docs", [str(written)])
        written += 1
        await asyncio.sleep(0.01)
    await settling
    assert written > 3
    assert await all_ids(store) == {str(i) for i in range(written, 6000 + written)}


async def test_a_few_new_points_are_not_worth_indexing(store):
    """Settling after small writes does nothing, so many small streams cost no rebuild each."""
    await store.upsert("docs", points(0, 500), vectors(500))
    await store.settle("docs")
    indexed = worker_of(store)
    await store.upsert("docs", points(500, 20), vectors(20))
    await store.settle("docs")
    assert worker_of(store) is indexed
    await store.upsert("docs", points(520, 100), vectors(100))
    await store.settle("docs")
    assert worker_of(store) is not indexed
    assert await all_ids(store) == {str(i) for i in range(620)}


async def test_everything_is_there_after_a_restart(store, tmp_path: Path):
    """Collections, points and aliases survive a close; another space is still told apart."""
    await store.upsert("docs", points(0, 300), vectors(300))
    await store.settle("docs")
    await store.set_alias("current", "docs")
    await store.close()
    await store.open()
    assert await store.find("current") == COLLECTION
    assert await store.aliases() == {"current": "docs"}
    assert await all_ids(store) == {str(i) for i in range(300)}


async def test_what_a_crash_left_half_done_is_cleaned_up(store, tmp_path: Path):
    """Collections half made or half deleted, and shards that do not count, go at the next start."""
    await store.upsert("docs", points(0, 3), vectors(3))
    await store.close()
    leftovers = [
        tmp_path / ".new-1" / "shard-1" / "segments",
        tmp_path / ".trash-1" / "shard-1",
        tmp_path / "docs" / "shard-copy" / "segments",
    ]
    for leftover in leftovers:
        leftover.mkdir(parents=True)
    (tmp_path / ".aliases.json.tmp").write_text("{")
    await store.open()
    assert [c.name for c in await store.collections()] == ["docs"]
    assert await store.count("docs") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "docs"]
    assert not leftovers[2].exists()


async def test_two_routers_cannot_use_one_folder(store, tmp_path: Path):
    """The second is refused, and told what to do."""
    with pytest.raises(Unavailable, match="another router uses"):
        await EdgeStore(tmp_path).open()


async def test_a_drop_waits_for_writes_and_later_writes_are_refused(store):
    """Writes that wait behind a drop find no collection; nothing is left on disk."""
    await store.upsert("docs", points(0, 3), vectors(3))
    writing = asyncio.create_task(store.upsert("docs", points(3, 600), vectors(600)))
    await asyncio.sleep(0)
    dropping = asyncio.create_task(store.drop("docs"))
    await asyncio.sleep(0)
    late = asyncio.create_task(store.upsert("docs", points(0, 1), vectors(1)))
    await writing
    await dropping
    with pytest.raises(NotFound):
        await late
    assert [path.name for path in store._folder._root.iterdir()] == [".lock"]


@pytest.mark.parametrize("was_running", [True, False])
async def test_a_read_that_meets_a_drop_finds_no_collection(store, was_running: bool):
    """Whenever it comes, it is answered or told that there is no such collection."""
    if was_running:
        await store.upsert("docs", points(0, 3), vectors(3))
    reading = [asyncio.create_task(store.count("docs"))]
    await asyncio.sleep(0)
    dropping = asyncio.create_task(store.drop("docs"))
    while not dropping.done() and len(reading) < 5000:
        reading.append(asyncio.create_task(store.count("docs")))
        await asyncio.sleep(0.001)
    await dropping
    answers = await asyncio.gather(*reading, return_exceptions=True)
    assert answers[0] == (3 if was_running else 0)
    assert {type(answer) for answer in answers} == {int, NotFound}


async def test_a_shard_that_cannot_be_opened_is_an_error_not_a_hang(store, tmp_path: Path):
    """Broken files are reported as unavailable; other collections are not concerned."""
    await store.create(Collection("other", "model", "space", COLLECTION.sizes))
    await store.close()
    for path in (tmp_path / "docs").glob("shard-*/*.json"):
        path.write_text("broken")
    await store.open()
    with pytest.raises(Unavailable, match="could not be opened"):
        await store.count("docs")
    assert await store.count("other") == 0


def test_a_shard_gets_the_tenants_index_when_it_is_opened(tmp_path: Path) -> None:
    """Also one from before there were tenants; and it is there again after a restart."""
    path = tmp_path / "shard"
    path.mkdir()
    edge_shard.create(str(path), COLLECTION.sizes, None, indexing_threshold_kb=1000)
    for _ in range(2):
        shard = edge_shard.Shard(str(path), COLLECTION.sizes, None)
        assert list(shard._shard.info().payload_schema) == [TENANT]
        shard.close()
