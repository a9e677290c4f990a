"""What every engine behind the router does alike: Edge in a folder; Qdrant in memory, in shards
behind its own gRPC, and, where there is one, served."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient

from services.router import filters
from services.router.plan import Plan, Stage, default_plan, exact_plan
from services.router.rotation import Rotation
from services.router.sizes import BITS, Quantization, SizeRequest, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.qdrant import QdrantStore
from services.router.storage.store import Collection, KeptQueries, Point, Store
from services.shared.errors import AlreadyExists, NotFound
from services.shared.vectors import Array, truncate
from tests.router.sharded_qdrant import ShardedQdrant

FULL = 32
CODES: list[Quantization] = [quantization for quantization in BITS if quantization != "none"]

# The in-memory twin always searches exactly and says so once; that is what we want of it here.
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def random_vectors(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, FULL)).astype(np.float32)


def make_points(rows: int) -> list[Point]:
    return [
        Point(f"doc/{row}", f"text {row}", {"row": row, "even": row % 2 == 0, "lang": "en"})
        for row in range(rows)
    ]


def make_collection(name: str, *requests: SizeRequest, space_id: str = "space-1") -> Collection:
    requests = requests or (SizeRequest(8), SizeRequest(16))
    return Collection(name, "model-1", space_id, resolve_sizes(requests, FULL))


def in_memory() -> AsyncQdrantClient:
    """A client whose calls give way to others, as those to a server do."""
    client = AsyncQdrantClient(":memory:")
    for method in (
        "scroll",
        "retrieve",
        "update_vectors",
        "upsert",
        "delete",
        "set_payload",
        "query_points",
    ):
        setattr(client, method, giving_way(getattr(client, method)))
    return client


def giving_way(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def given(*arguments: object, **options: object) -> Any:
        await asyncio.sleep(0.002)
        return await call(*arguments, **options)

    return given


async def reopened(store: Store) -> Store:
    """The same storage, seen by a store that knows nothing of before."""
    if isinstance(store, QdrantStore):
        return QdrantStore(store._client, retire_s=0)
    await store.close()
    await store.open()
    return store


@pytest.fixture(params=["edge", "memory", "sharded", "server"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = os.environ.get("QDRANT_URL")
    opened: Store
    if request.param == "edge":
        # Everything is indexed at once, so that graphs and codes take part.
        opened = EdgeStore(tmp_path / "collections", indexing_threshold_kb=1)
    elif request.param == "memory":
        opened = QdrantStore(in_memory(), retire_s=0)
    elif request.param == "sharded":
        sharded = ShardedQdrant(default_shards=3)
        await sharded.start()
        opened = QdrantStore.connect("http://127.0.0.1:1", sharded.port, None, 30)
        opened._retire_s = 0
    elif url is None:
        pytest.skip("QDRANT_URL is not set: no Qdrant server to test against")
    else:
        port = int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
        opened = QdrantStore.connect(url, port, os.environ.get("QDRANT_API_KEY"), 30)
    await opened.open()
    yield opened
    if request.param == "server":
        for collection in await opened.collections():
            if collection.name.startswith("contract-"):
                await opened.drop(collection.name)
    await opened.close()
    if request.param == "sharded":
        await sharded.kill()


@pytest.fixture
def name() -> str:
    return f"contract-{uuid.uuid4().hex[:8]}"


async def test_a_collection_is_created_found_listed_and_dropped(store: Store, name: str) -> None:
    """What was said at creation comes back by name and in the list, until the drop."""
    collection = make_collection(
        name,
        SizeRequest(4, "turbo1", 0, "cached"),
        SizeRequest(8, "int8", 8),
        SizeRequest(16, "binary", placement="cold", index_placement="cold"),
        SizeRequest(24, "turbo2", index_placement="pinned"),
        SizeRequest(FULL, "turbo4", 4),
    )
    assert await store.create(collection) == collection
    assert await store.find(name) == collection
    assert (await store.find(name)).calibration is None
    assert collection in await store.collections()
    with pytest.raises(AlreadyExists):
        await store.create(collection)
    await store.drop(name)
    assert collection not in await store.collections()
    with pytest.raises(NotFound):
        await store.find(name)
    with pytest.raises(NotFound):
        await store.drop(name)


async def test_an_alias_finds_its_collection_and_moves_at_once(store: Store, name: str) -> None:
    """An alias finds the collection itself, moves to another, and blocks its name for others."""
    first, second = make_collection(f"{name}-1"), make_collection(f"{name}-2")
    await store.create(first)
    await store.create(second)
    await store.set_alias(f"{name}-alias", first.name)
    assert await store.find(f"{name}-alias") == first
    await store.set_alias(f"{name}-alias", second.name)
    assert await store.find(f"{name}-alias") == second
    assert (await store.aliases())[f"{name}-alias"] == second.name
    with pytest.raises(AlreadyExists):
        await store.create(make_collection(f"{name}-alias"))
    with pytest.raises(AlreadyExists):
        await store.set_alias(first.name, second.name)
    with pytest.raises(NotFound):
        await store.set_alias("contract-other", f"{name}-missing")


async def test_a_point_comes_back_as_it_was_written(store: Store, name: str) -> None:
    """Ids of any characters, texts and attributes of each type survive storage unchanged."""
    collection = make_collection(name)
    collection = await store.create(collection)
    attributes = {
        "s": "x", "empty": "", "i": 1, "big": 2**63 - 1, "f": 1.0, "t": True, "n": False,
        "a-b_1": -0.5,
    }  # fmt: skip
    points = [Point("a/b c?#ü\n" + "x" * 500, "text ü", attributes), Point("1", "", {})]
    vectors_BD = random_vectors(2)
    await store.upsert(name, points, vectors_BD)
    hits = (await store.search(collection, exact_plan(collection.sizes, 1), vectors_BD[0])).hits
    assert hits[0].point == points[0]
    assert {key: type(value) for key, value in hits[0].point.attributes.items()} == {
        key: type(value) for key, value in attributes.items()
    }
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert hits[0].score <= 1.0


async def test_the_same_id_again_replaces_the_point(store: Store, name: str) -> None:
    """An upsert is idempotent; within one batch the last point of an id wins."""
    collection = make_collection(name)
    collection = await store.create(collection)
    vectors_BD = random_vectors(3)
    await store.upsert(name, make_points(2), vectors_BD[:2])
    await store.upsert(name, make_points(2), vectors_BD[:2])
    assert await store.count(name) == 2
    twice = [Point("doc/0", "older", {"a": 1}), Point("doc/0", "newer", {"b": 2})]
    await store.upsert(name, twice, vectors_BD[1:])
    assert await store.count(name) == 2
    [hit] = (await store.search(collection, exact_plan(collection.sizes, 1), vectors_BD[2])).hits
    assert hit.point == twice[1]


async def test_deleted_points_are_gone_and_unknown_ids_harmless(store: Store, name: str) -> None:
    """A delete removes exactly the points named."""
    await store.create(make_collection(name))
    await store.upsert(name, make_points(5), random_vectors(5))
    await store.delete(name, ["doc/1", "doc/3", "unknown"])
    page = await store.scroll(name, None, 10)
    assert {point.id for point in page.points} == {"doc/0", "doc/2", "doc/4"}


async def test_attributes_are_replaced_and_nothing_else(store: Store, name: str) -> None:
    """Of the points named, whole; unknown ids are told and make no point."""
    collection = make_collection(name)
    await store.create(collection)
    vectors_BD = random_vectors(5)
    await store.upsert(name, make_points(5), vectors_BD)
    await store.settle(name)
    wanted = ["doc/1", "unknown", "doc/3", "doc/1"]
    assert await store.set_attributes(name, wanted, {"row": "one", "f": 1.0}) == ["unknown"]
    assert await store.set_attributes(name, ["unknown"], {}) == ["unknown"]
    assert await store.set_attributes(name, ["doc/4"], {}) == []
    store = await reopened(store)
    page = await store.scroll(name, None, 10, with_vectors=True)
    expected = {point.id: point for point in make_points(5)}
    for id_, attributes in (("doc/1", {"row": "one", "f": 1.0}), ("doc/4", {})):
        expected[id_] = replace(expected[id_], attributes=attributes)
    expected["doc/3"] = replace(expected["doc/3"], attributes=expected["doc/1"].attributes)
    assert {point.id: point for point in page.points} == expected
    assert page.vectors_BD is not None
    rows = [int(point.id.removeprefix("doc/")) for point in page.points]
    np.testing.assert_allclose(page.vectors_BD, truncate(vectors_BD, FULL)[rows], atol=1e-6)
    # Found by what they have now, and no longer by what they had.
    for condition, ids in (
        (filters.Equals("row", "one"), {"doc/1", "doc/3"}),
        (filters.Equals("even", True), {"doc/0", "doc/2"}),
    ):
        plan = exact_plan(collection.sizes, 5)
        hits = (await store.search(collection, plan, vectors_BD[0], condition)).hits
        assert {hit.point.id for hit in hits} == ids


async def test_scrolling_sees_every_point_once(store: Store, name: str) -> None:
    """Pages add up to the collection, whatever the page size."""
    await store.create(make_collection(name))
    points = make_points(25)
    await store.upsert(name, points, random_vectors(25))
    for limit in (7, 25, 100):
        seen: list[Point] = []
        after = None
        while True:
            page = await store.scroll(name, after, limit)
            assert len(page.points) <= limit
            seen += page.points
            if (after := page.after) is None:
                break
        assert sorted(seen, key=lambda p: p.id) == sorted(points, key=lambda p: p.id)


async def test_points_without_a_text_are_counted(store: Store, name: str) -> None:
    """The count tells points that cannot be encoded again."""
    await store.create(make_collection(name))
    points = [*make_points(3), Point("bare", "", {})]
    await store.upsert(name, points, random_vectors(4))
    assert await store.count(name) == 4
    assert await store.count(name, without_text=True) == 1


@pytest.mark.parametrize("dims", [(FULL,), (8, FULL), (8, 16, FULL), (8, 16)])
async def test_a_plan_over_all_candidates_equals_numpy(
    store: Store, name: str, dims: tuple[int, ...]
) -> None:
    """Stages that hand on every point give numpy's ranking and cosines at the last size."""
    collection = make_collection(name)
    collection = await store.create(collection)
    points, vectors_BD, query_D = make_points(80), random_vectors(80), random_vectors(1, 9)[0]
    await store.upsert(name, points, vectors_BD)
    await store.settle(name)
    plan = Plan(
        (
            *(Stage(dim, 80, exact=place == 0) for place, dim in enumerate(dims[:-1])),
            Stage(dims[-1], 10, exact=len(dims) == 1),
        )
    )
    hits = (await store.search(collection, plan, query_D)).hits
    cosines = truncate(vectors_BD, dims[-1]) @ truncate(query_D[None], dims[-1])[0]
    order = np.argsort(-cosines)[:10]
    assert [hit.point for hit in hits] == [points[row] for row in order]
    # float32 sums in another order.
    np.testing.assert_allclose([hit.score for hit in hits], cosines[order], atol=1e-5)


async def test_a_shortlist_bounds_what_the_rerank_can_find(store: Store, name: str) -> None:
    """Nested stages give numpy's rerank of numpy's shortlist, not a search of everything."""
    collection = make_collection(name)
    collection = await store.create(collection)
    points, vectors_BD, query_D = make_points(80), random_vectors(80), random_vectors(1, 9)[0]
    await store.upsert(name, points, vectors_BD)
    plan = Plan((Stage(8, 12, exact=True), Stage(FULL, 5)))
    hits = (await store.search(collection, plan, query_D)).hits
    short = truncate(vectors_BD, 8) @ truncate(query_D[None], 8)[0]
    full = truncate(vectors_BD, FULL) @ truncate(query_D[None], FULL)[0]
    shortlist = np.argsort(-short)[:12]
    expected = shortlist[np.argsort(-full[shortlist])][:5]
    assert [hit.point for hit in hits] == [points[row] for row in expected]
    assert set(expected) != set(np.argsort(-full)[:5]), "the case must tell the two apart"


@pytest.mark.parametrize("quantization", CODES)
async def test_quantised_sizes_find_a_point_by_itself(
    store: Store, name: str, quantization: Quantization
) -> None:
    """With codes on every size a stored vector is still its own nearest point."""
    collection = make_collection(
        name, SizeRequest(8, quantization), SizeRequest(FULL, quantization)
    )
    collection = await store.create(collection)
    vectors_BD = random_vectors(300)
    await store.upsert(name, make_points(300), vectors_BD)
    await store.settle(name)
    plain = default_plan(collection.sizes, 5, 1000)
    ignoring = Plan(
        (Stage(8, 100, ignore_quantization=True), Stage(FULL, 5, ignore_quantization=True))
    )
    oversampled = Plan((Stage(8, 100, oversampling=2.5), Stage(FULL, 5, oversampling=1.0)))
    for plan in (plain, ignoring, oversampled):
        for row in (0, 150, 299):
            hits = (await store.search(collection, plan, vectors_BD[row])).hits
            assert hits[0].point.id == f"doc/{row}"
            assert -1.0 <= hits[0].score <= 1.0


@pytest.mark.parametrize("quantization", CODES)
async def test_codes_whose_candidates_are_all_scored_anew_lose_nothing(
    store: Store, name: str, quantization: Quantization
) -> None:
    """An oversampling that reaches every point gives numpy's ranking, with a graph and without."""
    collection = make_collection(
        name, SizeRequest(16, quantization, 8), SizeRequest(FULL, quantization, 0)
    )
    collection = await store.create(collection)
    points, vectors_BD, query_D = make_points(300), random_vectors(300), random_vectors(1, 9)[0]
    await store.upsert(name, points, vectors_BD)
    await store.settle(name)
    oversampled = [Stage(16, 10, ef=300, oversampling=30), Stage(FULL, 10, oversampling=30)]
    # The exact plan reads the originals, whatever codes there are.
    for plan in (*(Plan((stage,)) for stage in oversampled), exact_plan(collection.sizes, 10)):
        dim = plan.stages[0].dim
        cosines = truncate(vectors_BD, dim) @ truncate(query_D[None], dim)[0]
        order = np.argsort(-cosines)[:10]
        hits = (await store.search(collection, plan, query_D)).hits
        assert [hit.point for hit in hits] == [points[row] for row in order]
        np.testing.assert_allclose([hit.score for hit in hits], cosines[order], atol=1e-5)


@pytest.mark.parametrize("quantization", CODES)
async def test_codes_with_the_last_word_score_by_themselves(
    store: Store, name: str, quantization: Quantization, request: pytest.FixtureRequest
) -> None:
    """Without oversampling a plan ranks by the codes, which are not the cosines."""
    if request.node.callspec.params["store"] in ("memory", "sharded"):
        pytest.skip("the in-memory twin keeps no codes")
    collection = make_collection(name, SizeRequest(FULL, quantization, 0))
    collection = await store.create(collection)
    vectors_BD, query_D = random_vectors(300), random_vectors(1, 9)[0]
    await store.upsert(name, make_points(300), vectors_BD)
    await store.settle(name)
    hits = (await store.search(collection, Plan((Stage(FULL, 10, oversampling=0),)), query_D)).hits
    cosines = truncate(vectors_BD, FULL) @ truncate(query_D[None], FULL)[0]
    off = [abs(hit.score - cosines[hit.point.attributes["row"]]) for hit in hits]  # type: ignore[index]
    assert max(off) > 1e-4
    assert len(hits) == 10


async def test_vectors_come_back_page_by_page(store: Store, name: str) -> None:
    """Every point's full vector comes once, of unit length, under the key that its hits carry."""
    collection = make_collection(name)
    collection = await store.create(collection)
    assert (await store.vectors(name, None, 5)).vectors_BD.shape == (0, FULL)
    points, vectors_BD = make_points(25), random_vectors(25) * 7
    await store.upsert(name, points, vectors_BD)
    await store.settle(name)
    for limit in (7, 25, 100):
        keys: list[str] = []
        blocks: list[Array] = []
        after = None
        while True:
            page = await store.vectors(name, after, limit)
            assert len(page.keys) == len(page.vectors_BD) <= limit
            keys += page.keys
            blocks.append(page.vectors_BD)
            if (after := page.after) is None:
                break
        assert len(set(keys)) == len(keys) == 25
        read_BD = np.concatenate(blocks)
        assert read_BD.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(read_BD, axis=1), 1, atol=1e-5)
        for key, vector_D in zip(keys, read_BD, strict=True):
            [hit] = (await store.search(collection, exact_plan(collection.sizes, 1), vector_D)).hits
            row = int(hit.point.id.removeprefix("doc/"))
            assert hit.key == key
            np.testing.assert_allclose(vector_D, truncate(vectors_BD[[row]], FULL)[0], atol=1e-5)


async def test_what_was_measured_is_kept_until_it_is_forgotten(store: Store, name: str) -> None:
    """A calibration survives a reopening with all its numbers; None forgets it as durably."""
    collection = make_collection(name)
    collection = await store.create(collection)
    await store.set_alias(f"{name}-alias", name)
    await store.upsert(name, make_points(3), random_vectors(3))
    measured = {
        "created_at": 2**40, "recall": 0.1 + 0.2, "plans": [{"exact": True, "note": None}, []],
        "slices": {"de": 1, "": 2},
    }  # fmt: skip
    for calibration in ({"older": 1}, measured, None):
        await store.annotate(name, "calibration", calibration)
        assert (await store.find(name)).calibration == calibration
        store = await reopened(store)
        for found in (await store.find(name), await store.find(f"{name}-alias")):
            assert found.calibration == calibration
            assert found == collection
    assert await store.count(name) == 3


async def test_an_answer_tells_the_engine_s_time(store: Store, name: str) -> None:
    """A search says how long the engine took, which is some time and no longer than the call."""
    collection = make_collection(name)
    collection = await store.create(collection)
    await store.upsert(name, make_points(60), random_vectors(60))
    start = time.perf_counter()
    answer = await store.search(collection, exact_plan(collection.sizes, 3), random_vectors(1)[0])
    assert 0 < answer.seconds < time.perf_counter() - start


def random_rotation(rows: int, seed: int = 3) -> Rotation:
    square = np.random.default_rng(seed).standard_normal((FULL, FULL))
    return Rotation.of(np.linalg.qr(square)[0][:rows].astype(np.float32))


NESTED = random_rotation(16)
RESIZED = resolve_sizes(
    [SizeRequest(4, "turbo4"), SizeRequest(8, hnsw_m=0), SizeRequest(8, is_nested=True),
     SizeRequest(16, "turbo2", is_nested=True)],
    FULL, nesting=NESTED.id,
)  # fmt: skip


async def check_sizes(store: Store, name: str, vectors: dict[str, Array]) -> None:
    """Every size scores every point as numpy does, so each holds what it should."""
    collection = await store.find(name)
    query_D = random_vectors(1, 77)[0]
    ids, vectors_ND = list(vectors), np.stack(list(vectors.values()))
    for size in collection.sizes:
        stage = Stage(size.dim, len(ids) + 5, exact=True, is_nested=size.is_nested)
        hits = (await store.search(collection, Plan((stage,)), query_D)).hits
        rows = NESTED.rows_MD if size.is_nested else np.eye(FULL, dtype=np.float32)
        points_NM = truncate(vectors_ND @ rows.T, size.dim)
        wanted = points_NM @ truncate(query_D[None] @ rows.T, size.dim)[0]
        found = {hit.point.id: hit.score for hit in hits}
        assert found.keys() == vectors.keys(), size
        np.testing.assert_allclose([found[id_] for id_ in ids], wanted, atol=2e-5)


async def test_other_sizes_are_made_of_the_full_vectors(store: Store, name: str) -> None:
    """Sizes come, nested ones among them, and go; every point is at each, also after a reopening,
    and what is written later is too."""
    await store.create(make_collection(name))
    points, vectors_BD = make_points(400), random_vectors(400)
    await store.upsert(name, points, vectors_BD)
    await store.settle(name)
    told: list[tuple[int, int]] = []
    changed = await store.resize(name, RESIZED, NESTED, lambda *step: told.append(step))
    assert changed == await store.find(name)
    assert changed.sizes == RESIZED
    assert (told[0], told[-1]) == ((0, 400), (400, 400))
    store = await reopened(store)
    vectors = {point.id: row for point, row in zip(points, vectors_BD, strict=True)}
    await check_sizes(store, name, vectors)
    found = await store.rotation(await store.find(name))
    assert found is not None
    assert found.id == NESTED.id == Rotation.of(found.rows_MD).id
    more_BD = random_vectors(3, 5)
    more = [Point(id_, "new", {}) for id_ in ("doc/7", "new/1", "new/2")]
    await store.upsert(name, more, more_BD)
    vectors |= {point.id: row for point, row in zip(more, more_BD, strict=True)}
    await check_sizes(store, name, vectors)
    turned_again = random_rotation(8, seed=4)
    sizes = resolve_sizes([SizeRequest(8, is_nested=True)], FULL, nesting=turned_again.id)
    assert (await store.resize(name, sizes, turned_again, lambda *_: None)).sizes == sizes
    plain = make_collection(name).sizes
    await store.resize(name, plain, None, lambda *_: None)
    await check_sizes(store, name, vectors)
    assert await store.rotation(await store.find(name)) is None
    page = await store.scroll(name, None, 500)
    assert {point.id for point in page.points} == vectors.keys()


async def every_name(store: Store) -> set[str]:
    """Of collections, those that are kept beside others too."""
    if not isinstance(store, QdrantStore):
        return {collection.name for collection in await store.collections()}
    return {found.name for found in (await store._client.get_collections()).collections}


async def test_the_longest_names_have_room_for_what_is_kept_beside_them(
    store: Store, name: str
) -> None:
    """Rotations and recent queries of each are its own, last, and go when it goes."""
    names = [f"{name}-{last}".rjust(255, "x") for last in "ab"]
    before = await every_name(store)
    kept = KeptQueries(random_vectors(4), ["", "de", "", "en"])
    rotations = [random_rotation(16, seed) for seed in (3, 4)]
    for long_name, rotation in zip(names, rotations, strict=True):
        await store.create(make_collection(long_name))
        await store.upsert(long_name, make_points(5), random_vectors(5))
        sizes = resolve_sizes([SizeRequest(8, is_nested=True)], FULL, nesting=rotation.id)
        await store.resize(long_name, sizes, rotation, lambda *_: None)
    await store.keep_queries(names[0], kept)
    store = await reopened(store)
    for long_name, rotation in zip(names, rotations, strict=True):
        found = await store.rotation(await store.find(long_name))
        assert found is not None
        assert found.id == rotation.id
    assert (await store.kept_queries(names[0])).slices == kept.slices
    assert (await store.kept_queries(names[1])).slices == []
    for long_name in names:
        await store.drop(long_name)
    assert await every_name(store) == before


async def test_what_is_written_while_sizes_change_is_at_each_of_them(
    store: Store, name: str
) -> None:
    """Writes and deletes go on during it, and none is missing or old in the end."""
    await store.create(make_collection(name))
    rows = 3000
    points, vectors_BD = make_points(rows), random_vectors(rows)
    await store.upsert(name, points, vectors_BD)
    await store.settle(name)
    vectors = {point.id: row for point, row in zip(points, vectors_BD, strict=True)}
    resizing = asyncio.create_task(store.resize(name, RESIZED, NESTED, lambda *_: None))
    chance = np.random.default_rng(1)
    num_writes = 0
    while not resizing.done():
        ids = [f"doc/{row}" for row in chance.integers(0, rows + 200, 12)]
        new_BD = random_vectors(len(ids), seed=num_writes + 100)
        await store.upsert(name, [Point(id_, "new", {}) for id_ in ids], new_BD)
        vectors |= dict(zip(ids, new_BD, strict=True))
        gone = [f"doc/{row}" for row in chance.integers(0, rows + 200, 3)]
        await store.delete(name, gone)
        for id_ in gone:
            vectors.pop(id_, None)
        num_writes += 1
        await asyncio.sleep(0.01)
    await resizing
    assert num_writes > 3
    await check_sizes(store, name, vectors)


async def test_searches_go_on_while_sizes_change(store: Store, name: str) -> None:
    """A search by what `find` said is answered, or told to look again; never wrongly."""
    await store.create(make_collection(name))
    await store.upsert(name, make_points(1500), random_vectors(1500))
    await store.settle(name)
    resizing = asyncio.create_task(store.resize(name, RESIZED, NESTED, lambda *_: None))
    before, num_answers = await store.find(name), 0
    query_D = random_vectors(1, 8)[0]
    while not resizing.done():
        collection = await store.find(name)
        plan = default_plan(collection.sizes, 3, 100)
        assert len((await store.search(collection, plan, query_D)).hits) == 3
        num_answers += 1
        await asyncio.sleep(0.001)
    await resizing
    assert num_answers > 3
    with pytest.raises(NotFound):
        await store.search(before, Plan((Stage(16, 3),)), query_D)


async def test_what_was_measured_holds_while_its_sizes_are_there(store: Store, name: str) -> None:
    """More sizes leave a calibration as it is; one size less, or another, and it is forgotten."""
    collection = make_collection(name)
    collection = await store.create(collection)
    await store.upsert(name, make_points(30), random_vectors(30))
    await store.annotate(name, "calibration", {"recall": 0.95})
    more = resolve_sizes([SizeRequest(4), SizeRequest(8), SizeRequest(16)], FULL)
    assert (await store.resize(name, more, None, lambda *_: None)).calibration == {"recall": 0.95}
    other = resolve_sizes([SizeRequest(4), SizeRequest(8, "int8"), SizeRequest(16)], FULL)
    assert (await store.resize(name, other, None, lambda *_: None)).calibration is None
    assert (await store.find(name)).calibration is None


async def test_a_filter_holds_in_every_stage(store: Store, name: str) -> None:
    """A filtered shortlist is full of points that fulfil the filter, so none is missing later."""
    collection = make_collection(name)
    collection = await store.create(collection)
    await store.upsert(name, make_points(60), random_vectors(60))
    await store.settle(name)
    plan = Plan((Stage(8, 10), Stage(FULL, 10)))
    condition = filters.Range("row", gte=50)
    hits = (await store.search(collection, plan, random_vectors(1, 9)[0], condition)).hits
    assert {hit.point.id for hit in hits} == {f"doc/{row}" for row in range(50, 60)}


async def test_hits_without_points_carry_scores_only(store: Store, name: str) -> None:
    """Leaving texts out does not change how many hits there are or what they score."""
    collection = make_collection(name)
    collection = await store.create(collection)
    await store.upsert(name, make_points(9), random_vectors(9))
    plan, query_D = exact_plan(collection.sizes, 4), random_vectors(1, 9)[0]
    with_points = (await store.search(collection, plan, query_D)).hits
    bare = (await store.search(collection, plan, query_D, with_points=False)).hits
    assert [(hit.key, hit.score) for hit in bare] == [(hit.key, hit.score) for hit in with_points]
    assert {hit.point.id for hit in bare} == {""}


async def test_an_empty_collection_answers_with_nothing(store: Store, name: str) -> None:
    """Search, scroll, count and settle work before the first point."""
    collection = make_collection(name)
    collection = await store.create(collection)
    await store.settle(name)
    query_D = random_vectors(1)[0]
    answer = await store.search(collection, default_plan(collection.sizes, 3, 100), query_D)
    assert answer.hits == []
    assert (await store.scroll(name, None, 5)).points == []
    assert await store.count(name) == 0


async def test_a_missing_collection_is_not_found_by_any_call(store: Store, name: str) -> None:
    """Each call says that the collection is not there."""
    collection = make_collection(name)
    calls = [
        store.upsert(name, make_points(1), random_vectors(1)),
        store.delete(name, ["a"]),
        store.set_attributes(name, ["a"], {}),
        store.search(collection, exact_plan(collection.sizes, 1), random_vectors(1)[0]),
        store.scroll(name, None, 1),
        store.vectors(name, None, 1),
        store.annotate(name, "change", {}),
        store.count(name),
        store.settle(name),
        store.resize(name, collection.sizes, None, lambda *_: None),
    ]
    for call in calls:
        with pytest.raises(NotFound, match=name):
            await call


_VALUES: list[str | int | float | bool] = [
    "1", "true", "a", "", 0, 1, -3, 2**53 + 1, 2**53 + 3, 0.0, 1.0, 0.5, -3.0, True, False,
]  # fmt: skip
_KEYS = ["a", "b-1", "1_c"]
_key = st.sampled_from(_KEYS)
_value = st.sampled_from(_VALUES)
_bound = st.none() | st.sampled_from([-3.0, 0.0, 0.5, 1.0, 2.0])
_range = st.builds(filters.Range, _key, _bound, _bound, _bound, _bound).filter(
    lambda r: any(bound is not None for bound in (r.gt, r.gte, r.lt, r.lte))
)
_leaf = (
    st.builds(filters.Equals, _key, _value)
    | st.builds(filters.AnyOf, _key, st.lists(_value, min_size=1, max_size=4).map(tuple))
    | _range
)
_filter = st.recursive(
    _leaf,
    lambda inner: (
        st.builds(filters.Negated, inner)
        | st.builds(filters.All, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(filters.Any, st.lists(inner, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=8,
)


async def test_each_tenant_has_its_own_points_of_the_same_ids(store: Store, name: str) -> None:
    """Found, counted and deleted are one tenant's, in every plan, and indexed too."""
    collection = make_collection(name, SizeRequest(8, "int8"), SizeRequest(16))
    collection = await store.create(collection)
    vectors_BD = random_vectors(60)
    tenants = (None, "acme", "globex")
    for place, tenant in enumerate(tenants):
        points = [replace(point, tenant=tenant) for point in make_points(20)]
        await store.upsert(name, points, vectors_BD[20 * place : 20 * (place + 1)])
    await store.settle(name)
    assert await store.count(name) == 60
    plans = (
        exact_plan(collection.sizes, 50),
        default_plan(collection.sizes, 50, 100),
        Plan((Stage(8, 50), Stage(16, 50), Stage(FULL, 50))),
    )
    for tenant in tenants[1:]:
        assert await store.count(name, tenant=tenant) == 20
        own, odd = filters.OfTenant(tenant), filters.Negated(filters.Equals("even", True))
        for plan in plans:
            for condition, ids in (
                (own, {f"doc/{row}" for row in range(20)}),
                (filters.All((own, odd)), {f"doc/{row}" for row in range(1, 20, 2)}),
            ):
                hits = (await store.search(collection, plan, vectors_BD[0], condition)).hits
                assert {hit.point.tenant for hit in hits} == {tenant}
                assert {hit.point.id for hit in hits} == ids
    assert await store.set_attributes(name, ["doc/5"], {"even": True}, "acme") == []
    even = filters.Equals("even", True)
    for tenant, num in (("acme", 11), ("globex", 10)):
        condition = filters.All((filters.OfTenant(tenant), even))
        found = await store.search(collection, plans[0], vectors_BD[0], condition)
        assert len(found.hits) == num
    await store.delete(name, ["doc/1", "doc/2"], "acme")
    assert [await store.count(name, tenant=tenant) for tenant in tenants] == [58, 18, 20]
    await store.delete(name, ["doc/3"])
    assert [await store.count(name, tenant=tenant) for tenant in tenants] == [57, 18, 20]
    page = await store.scroll(name, None, 100)
    assert sorted(str(point.tenant) for point in page.points) == (
        ["None"] * 19 + ["acme"] * 18 + ["globex"] * 20
    )
    # Read back and written again, of one id each of several tenants: none is taken for another.
    await store.upsert(name, page.points, random_vectors(len(page.points)))
    assert [await store.count(name, tenant=tenant) for tenant in tenants] == [57, 18, 20]


async def test_a_collection_remembers_whose_it_is(store: Store, name: str) -> None:
    """From its creation on, and after it was opened again."""
    await store.create(replace(make_collection(name), tenant="acme"))
    again = await reopened(store)
    assert (await again.find(name)).tenant == "acme"


async def test_filters_mean_the_same_as_their_definition(store: Store, name: str) -> None:
    """On random filters the engine keeps exactly the points that `filters.matches` keeps."""
    collection = make_collection(name)
    collection = await store.create(collection)
    rng = np.random.default_rng(0)
    points = [
        Point(
            str(row),
            "x",
            {key: _VALUES[rng.integers(len(_VALUES))] for key in _KEYS if rng.random() < 0.8},
        )
        for row in range(120)
    ]
    await store.upsert(name, points, random_vectors(120))
    await store.settle(name)
    plan = exact_plan(collection.sizes, len(points))
    cases: list[filters.Filter] = []

    @settings(max_examples=150, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(_filter)
    def collect(condition: filters.Filter) -> None:
        filters.check_filter(condition)
        cases.append(condition)

    collect()
    for condition in cases:
        hits = (await store.search(collection, plan, random_vectors(1)[0], condition)).hits
        expected = {p.id for p in points if filters.matches(condition, p.attributes)}
        assert {hit.point.id for hit in hits} == expected, condition
