"""Plans on a Qdrant server whose collections lie in several shards."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
from qdrant_client import models

from services.router import filters
from services.router.plan import Plan, Stage, default_plan, exact_plan
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.spread import Spread
from services.router.storage import qdrant_search
from services.router.storage.qdrant import QdrantStore
from services.router.storage.shard_limits import per_shard
from services.router.storage.store import Answer, Collection, Point
from services.shared.vectors import Array
from tests.router.sharded_qdrant import ShardedQdrant

FULL = 32
ROWS = 500
SIZES = resolve_sizes(
    [SizeRequest(4), SizeRequest(8, "int8"), SizeRequest(16, "turbo2"), SizeRequest(FULL, "int8")],
    FULL,
)
ODD = filters.Negated(filters.Equals("even", True))
PLANS = {
    "one stage": Plan((Stage(FULL, 10),)),
    "exact": exact_plan(SIZES, 10),
    "default": default_plan(SIZES, 3, 1000),
    "two stages": Plan((Stage(4, 12), Stage(FULL, 5))),
    "three stages": Plan((Stage(4, 60), Stage(8, 15), Stage(FULL, 5))),
    "exact first": Plan((Stage(4, 12, exact=True), Stage(FULL, 5))),
    "many": Plan((Stage(4, 200), Stage(16, 140), Stage(FULL, 130))),
    "codes": Plan((Stage(8, 12, oversampling=2.5), Stage(16, 6), Stage(FULL, 5, oversampling=2))),
}


def random_vectors(rows: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, FULL)).astype(np.float32)


@pytest.fixture
async def server() -> AsyncIterator[ShardedQdrant]:
    server = ShardedQdrant()
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def store(server: ShardedQdrant) -> AsyncIterator[QdrantStore]:
    store = QdrantStore.connect("http://127.0.0.1:1", server.port, None, 30)
    yield store
    await store.close()


async def filled(store: QdrantStore, shards: int) -> Collection:
    """A collection of the same points in so many shards."""
    name = f"in-{shards}"
    collection = Collection(name, "model", "space", SIZES, spread=Spread(shards, 1))
    collection = await store.create(collection)
    points = [Point(f"doc/{row}", f"text {row}", {"even": row % 2 == 0}) for row in range(ROWS)]
    await store.upsert(name, points, random_vectors(ROWS, 0))
    return collection


def found(answer: Answer) -> list[tuple[str, str, float]]:
    return [(hit.key, hit.point.text, round(hit.score, 5)) for hit in answer.hits]


async def test_hits_do_not_depend_on_the_number_of_shards(store: QdrantStore) -> None:
    """The same points at the same scores, whether one shard holds all or six share them."""
    one, *others = [await filled(store, shards) for shards in (1, 3, 6)]
    for seed in range(1, 6):
        [query_D] = random_vectors(1, seed)
        for label, plan in PLANS.items():
            for condition in (None, ODD):
                hits = found(await store.search(one, plan, query_D, condition))
                assert len(hits) == plan.limit
                for other in others:
                    again = found(await store.search(other, plan, query_D, condition))
                    assert again == hits, (label, other.name)


async def test_hits_stay_the_same_while_a_server_spreads_them_anew(
    store: QdrantStore, server: ShardedQdrant
) -> None:
    """The number of shards is the server's, not that of the collection's creation."""
    collection = await filled(store, 1)
    [query_D] = random_vectors(1, 1)
    plan = PLANS["three stages"]
    hits = found(await store.search(collection, plan, query_D))
    for shards in (4, 2, 5):
        await server.reshard(collection.name, shards)
        collection = await store.find(collection.name)
        assert found(await store.search(collection, plan, query_D)) == hits


async def test_each_list_is_cut_by_a_query_of_its_own(
    store: QdrantStore, server: ShardedQdrant
) -> None:
    """The server merges and cuts what a query returns, and nothing else; the last one alone
    carries payloads, and each looks only at who is left."""
    collection = await filled(store, 3)
    [query_D] = random_vectors(1, 1)
    await store.search(collection, PLANS["three stages"], query_D, ODD)
    first, second, last = server.queries
    assert [(q.using, q.limit, q.prefetch) for q in server.queries] == [
        ("d4", 60, None), ("d8", 15, None), ("d32", 5, None),
    ]  # fmt: skip
    assert [query.with_payload for query in server.queries] == [False, False, True]
    assert first.filter is not None
    assert first.filter.must_not
    for query, count in ((second, 60), (last, 15)):
        assert isinstance(query.filter, models.Filter)
        [condition] = query.filter.must  # type: ignore[misc,union-attr]
        assert isinstance(condition, models.HasIdCondition)
        assert len(set(map(str, condition.has_id))) == count


async def test_one_shard_needs_one_query(store: QdrantStore, server: ShardedQdrant) -> None:
    """There nested stages are cut as a whole, and a round trip each would be for nothing."""
    collection = await filled(store, 1)
    await store.search(collection, PLANS["three stages"], random_vectors(1, 1)[0])
    [query] = server.queries
    assert query.prefetch is not None


async def test_where_nobody_is_left_nothing_is_asked(
    store: QdrantStore, server: ShardedQdrant
) -> None:
    """A condition that no point fulfils ends the search at its first stage."""
    collection = await filled(store, 3)
    nobody = filters.Equals("even", "neither")
    answer = await store.search(collection, PLANS["three stages"], random_vectors(1, 1)[0], nobody)
    assert answer.hits == []
    assert len(server.queries) == 1


async def test_codes_choose_who_is_scored_anew_among_all(
    store: QdrantStore, server: ShardedQdrant
) -> None:
    """A shard would rescore a list of its own, and so change what is handed on: the codes' list is
    cut as a whole, and then the originals score it. Where as many are handed on as are rescored,
    only the last stage's scores need that."""
    collection = await filled(store, 3)
    await store.search(collection, PLANS["codes"], random_vectors(1, 1)[0])
    asked = []
    for query in server.queries:
        assert query.params is not None
        codes = query.params.quantization
        assert codes is not None
        assert (codes.rescore, codes.oversampling) == (False, None)
        asked.append((query.using, query.limit, codes.ignore, query.params.exact))
    assert asked == [
        ("d8", 30, False, False), ("d8", 12, True, True),  # the originals, of all that are left
        ("d16", 6, False, False),
        ("d32", 10, False, False), ("d32", 5, True, False),  # it has no graph to walk
    ]  # fmt: skip


async def test_lists_too_long_to_send_are_cut_in_each_shard(
    store: QdrantStore, server: ShardedQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the best of all are in them: nothing is lost that one shard would have found."""
    monkeypatch.setattr(qdrant_search, "MOST_IDS", 50)
    one, three = await filled(store, 1), await filled(store, 3)
    plan = PLANS["three stages"]
    for seed in range(1, 6):
        [query_D] = random_vectors(1, seed)
        hits = found(await store.search(one, plan, query_D))
        again = found(await store.search(three, plan, query_D))
        nested = server.queries[-1]
        [second] = nested.prefetch  # type: ignore[misc]
        [first] = second.prefetch  # type: ignore[misc,union-attr]
        assert (first.limit, second.limit) == (per_shard(60, 3, 5), per_shard(15, 3, 5))
        assert first.limit < 60
        assert all(score >= than for (*_, score), (*_, than) in zip(again, hits, strict=True))
