"""What every engine does alike with texts and their words: Edge, Qdrant in memory and served."""

import asyncio
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from services.router.filters import All, Filter, OfKeys, OfTenant, Range, matches
from services.router.hybrid.hybrid import Hybrid, HybridSearcher
from services.router.hybrid.idf import Rarity
from services.router.hybrid.text_index import TextIndex, document_terms, query_terms
from services.router.plan import Plan, Stage, exact_plan
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.store import Collection, Point, Store, point_uuid
from services.shared.vectors import Array
from tests.contract.test_store import FULL, random_vectors, reopened

ENGLISH = TextIndex()
WORDS = ["red", "green", "blue", "yellow", "fox", "dogs", "cats", "running", "jumps", "lazy"]

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def make_collection(name: str, text_index: TextIndex | None = ENGLISH) -> Collection:
    sizes = resolve_sizes([SizeRequest(8)], FULL)
    return Collection(name, "model-1", "space-1", sizes, text_index=text_index)


def make_points(rows: int, tenant: str | None = None) -> list[Point]:
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(0, 12)))) for _ in range(rows)]
    return [Point(f"p{row}", text, {"row": row}, tenant) for row, text in enumerate(texts)]


def by_hand(
    points: list[Point], weights: Mapping[int, float], condition: Filter | None = None
) -> dict[str, float]:
    """BM25 of every point that holds a term, one product after another."""
    scores = {}
    for point in points:
        key = point_uuid(point.id, point.tenant)
        terms = document_terms(point.text, ENGLISH)
        numbers = dict(zip(terms.indices, terms.values, strict=True))
        found = [weight * numbers[term] for term, weight in weights.items() if term in numbers]
        is_meant = condition is None or matches(condition, point.attributes, point.tenant, key)
        if found and is_meant:
            scores[key] = sum(found)
    return scores


def weights_of(text: str) -> dict[int, float]:
    return {term: 1.0 + place for place, term in enumerate(query_terms(text, ENGLISH))}


async def fill(store: Store, collection: Collection, points: list[Point]) -> Array:
    vectors_BD = random_vectors(len(points))
    await store.create(collection)
    await store.upsert(collection.name, points, vectors_BD)
    return vectors_BD


@pytest.mark.parametrize(
    "condition",
    [
        None,
        Range("row", gte=20, lt=50),
        OfKeys(tuple(point_uuid(f"p{row}") for row in range(0, 60, 7))),
        All((Range("row", lt=30), OfKeys((point_uuid("p3"), point_uuid("p40"))))),
        OfTenant("acme"),
    ],
)
async def test_words_are_found_and_scored_as_by_hand(
    store: Store, name: str, condition: Filter | None
) -> None:
    """Every point that holds a word and fulfils the filter, with the sum that BM25 is."""
    collection = make_collection(name)
    points = [*make_points(60), *make_points(20, "acme")]
    await fill(store, collection, points)
    assert (await store.find(name)).text_index == ENGLISH
    for text in ("red dogs", "runs", "lazy fox jumping", "nothing of this"):
        weights = weights_of(text)
        expected = by_hand(points, weights, condition)
        answer = await store.search_text(collection, weights, 100, condition)
        assert {hit.key: hit.score for hit in answer.hits} == pytest.approx(expected, rel=1e-4)
        scores = [hit.score for hit in answer.hits]
        assert scores == sorted(scores, reverse=True)
        few = (await store.search_text(collection, weights, 3, condition, with_points=False)).hits
        assert [hit.score for hit in few] == pytest.approx(scores[:3])
        assert all(hit.point.id for hit in answer.hits)


async def test_what_is_replaced_or_deleted_is_not_found_by_its_old_words(
    store: Store, name: str
) -> None:
    """Words follow the text, also after the collection is indexed and opened anew."""
    collection = make_collection(name)
    vectors_BD = await fill(store, collection, [Point("a", "red fox", {}), Point("b", "red", {})])
    await store.upsert(name, [Point("a", "green", {})], vectors_BD[:1])
    await store.delete(name, ["b"])
    await store.upsert(name, [Point("c", "", {})], vectors_BD[1:])

    async def ids(text: str) -> list[str]:
        answer = await store.search_text(collection, weights_of(text), 10)
        return [hit.point.id for hit in answer.hits]

    assert (await ids("red"), await ids("fox"), await ids("green")) == ([], [], ["a"])
    await store.upsert(name, make_points(400), random_vectors(400))
    await store.settle(name)
    again = await reopened(store)
    answer = await again.search_text(collection, weights_of("green"), 1000)
    expected = by_hand([Point("a", "green", {}), *make_points(400)], weights_of("green"))
    assert {hit.key: hit.score for hit in answer.hits} == pytest.approx(expected, rel=1e-4)


async def test_terms_are_counted_page_by_page(store: Store, name: str) -> None:
    """Pages add up to how many of a tenant's points, or of all, hold each term."""
    collection = make_collection(name)
    own = make_points(37, "acme")
    await fill(store, collection, [*make_points(30), *own])
    for tenant, points in (("acme", own), (None, [*make_points(30), *own])):
        counts: Counter[int] = Counter()
        num_documents, after = 0, None
        while True:
            page = await store.terms(collection, after, 10, tenant)
            counts.update(page.counts)
            num_documents, after = num_documents + page.num_documents, page.after
            if after is None:
                break
        assert num_documents == len(points)
        expected = Counter(
            term for point in points for term in document_terms(point.text, ENGLISH).indices
        )
        assert counts == expected


@pytest.mark.parametrize("before", [None, TextIndex("german")])
async def test_a_text_index_is_added_while_points_are_written(
    store: Store, name: str, before: TextIndex | None
) -> None:
    """A collection without one, or of another language: every point is found in the end."""
    collection = make_collection(name, before)
    points = make_points(300)
    vectors_BD = await fill(store, collection, points)
    resizing = asyncio.create_task(
        store.resize(name, collection.sizes, None, lambda *_: None, ENGLISH)
    )
    changed = list(points)
    for row in range(0, 300, 3):
        changed[row] = Point(f"p{row}", "written meanwhile", {"row": row})
        await store.upsert(name, [changed[row]], vectors_BD[row : row + 1])
        await asyncio.sleep(0)
    after = await resizing
    assert (after.text_index, after.sizes) == (ENGLISH, collection.sizes)
    assert await store.find(name) == after
    for text in ("red dogs", "write meanwhile"):
        weights = weights_of(text)
        answer = await store.search_text(after, weights, 1000)
        expected = by_hand(changed, weights)
        assert {hit.key: hit.score for hit in answer.hits} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("plan", [None, Plan((Stage(8, 5),))], ids=["full", "short"])
async def test_both_sides_score_every_fused_hit(store: Store, name: str, plan: Plan | None) -> None:
    """Each hit has its own cosine and BM25, whichever side found it; by hand the same order.

    Of a plan that ends on a short size too: cosines are those at full size.
    """
    collection = make_collection(name)
    points = make_points(80)
    vectors_BD = await fill(store, collection, points)
    query_D = vectors_BD[7] + vectors_BD[11]
    plan = plan or exact_plan(collection.sizes, 5)
    searcher = HybridSearcher(store, Rarity(store))
    text = await searcher.search_text(collection, "red dogs", 5, None, None)
    found = await store.search(collection, plan, query_D)
    fused = await searcher.fuse(collection, plan, query_D, found, text, Hybrid(weight=0.4), 6)
    unit_BD = vectors_BD / np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    cosines_B = unit_BD @ query_D / np.linalg.norm(query_D)
    cosine_of = {point_uuid(p.id): float(c) for p, c in zip(points, cosines_B, strict=True)}
    bm25_of = by_hand(points, text.weights)
    candidates = {hit.key for answer in (found, text.answer) for hit in answer.hits}
    best = max(bm25_of.get(key, 0.0) for key in candidates)
    expected = {
        key: 0.4 * cosine_of[key] + 0.6 * bm25_of.get(key, 0.0) / best for key in candidates
    }
    assert len(fused.hits) == 6
    top = sorted(expected.values(), reverse=True)[:6]
    assert [hit.score for hit in fused.hits] == pytest.approx(top, abs=1e-4)
    for hit, sides in zip(fused.hits, fused.sides, strict=True):
        assert hit.point in points
        assert hit.score == pytest.approx(expected[hit.key], abs=1e-4)
        assert sides.cosine == pytest.approx(cosine_of[hit.key], abs=1e-4)
        if hit.key in bm25_of:
            assert sides.text_score == pytest.approx(bm25_of[hit.key], rel=1e-4)
        else:
            assert sides.text_score is None
