"""Search by vectors and by words at once, over the wire; the encoder draws vectors from digests."""

import grpc
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.vectors import pack
from tests.router.conftest import encode
from tests.router.test_evaluate import evaluate
from tests.router.test_service import DIM, INVALID, create, refused, upsert

TEXTS = {
    "fox": "a red fox jumps over the fence",
    "dog": "lazy dogs sleep in the sun",
    "hen": "the fox watches a hen",
    "car": "a red car at the fence",
    "sea": "waves roll in from the sea",
}
ENGLISH = pb.TextIndex()


async def create_by_words(router, name="docs"):
    collection = await create(router, name, text_index=ENGLISH)
    assert collection.text_index.language == "english"
    points = [pb.Point(id=id_, text=text) for id_, text in TEXTS.items()]
    await upsert(router, pb.UpsertRequest(collection=name, points=points))


async def search(router, text=None, **more):
    return await router.stub.Search(pb.SearchRequest(collection="docs", text=text, **more))


async def test_words_find_what_vectors_do_not(router):
    """This encoder knows no likeness of texts; their words do, in all their forms."""
    await create_by_words(router)
    found = await search(router, "foxes", limit=2, hybrid=pb.Hybrid(weight=0.0))
    assert {hit.id for hit in found.hits} == {"fox", "hen"}
    assert all(hit.HasField("bm25") and hit.HasField("cosine") for hit in found.hits)
    assert found.hits[0].score == pytest.approx(1.0)
    assert (found.text.terms, found.text.candidates) == (1, 2)
    assert found.text.seconds > 0
    by_vectors = await search(router, "foxes", limit=2)
    assert not by_vectors.HasField("text")
    assert not by_vectors.hits[0].HasField("cosine")


async def test_all_weight_on_vectors_is_the_search_by_vectors(router):
    """Weight 1 gives the same hits and cosines, in the same order."""
    await create_by_words(router)
    plain = await search(router, "red fox", limit=4)
    fused = await search(router, "red fox", limit=4, hybrid=pb.Hybrid(weight=1.0))
    assert [hit.id for hit in fused.hits] == [hit.id for hit in plain.hits]
    for one, other in zip(fused.hits, plain.hits, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert one.cosine == pytest.approx(other.score, abs=1e-6)


async def test_ranks_are_fused_as_each_side_has_them(router):
    """First by words and by vectors makes 1; a side that was not asked says nothing."""
    await create_by_words(router)
    hybrid = pb.Hybrid(fusion=pb.FUSION_RANK)
    found = await search(router, TEXTS["sea"], limit=5, hybrid=hybrid)
    assert found.hits[0].id == "sea"
    assert found.hits[0].score == pytest.approx(1.0)
    assert found.hits[0].HasField("bm25")
    assert not any(hit.HasField("bm25") for hit in found.hits if hit.id == "dog")


async def test_a_vector_searches_with_words_beside_it(router):
    """What the vector is of, and what the words say, need not be the same."""
    await create_by_words(router)
    vector = pack(encode("small", TEXTS["sea"], DIM)[None])
    found = await search(
        router, vector=vector, space_id="space-small", limit=3, hybrid=pb.Hybrid(text="a red car")
    )
    assert {found.hits[0].id, found.hits[1].id} == {"sea", "car"}
    await refused(
        router.stub.Search(
            pb.SearchRequest(
                collection="docs", vector=vector, space_id="space-small", hybrid=pb.Hybrid()
            )
        ),
        INVALID, "hybrid: text must say what to look for by words",
    )  # fmt: skip


async def test_recall_and_places_are_told_of_fused_hits(router):
    """Recall is against fusion with exact search; a hit by words alone has no place of its own."""
    await create_by_words(router)
    plan = pb.Plan(stages=[pb.Stage(dim=8, candidates=2), pb.Stage(dim=DIM)])
    found = await search(
        router, "red fox", limit=2, plan=plan, explain=True, measure_recall=True,
        hybrid=pb.Hybrid(weight=0.2),
    )  # fmt: skip
    exact = pb.Plan(stages=[pb.Stage(dim=DIM, exact=True)])
    best = await search(
        router, "red fox", limit=2, plan=exact, measure_recall=True, hybrid=pb.Hybrid(weight=0.2)
    )
    assert best.recall == 1.0
    kept = {hit.id for hit in found.hits} & {hit.id for hit in best.hits}
    assert found.recall == len(kept) / 2
    assert [stage.candidates for stage in found.stages] == [2, 2]
    assert all(0 <= hit.shortlist_rank <= 2 for hit in found.hits)


async def test_ten_of_each_side_are_fused_at_least(router):
    """What is second on both sides can be the best of both, also where one hit is wanted."""
    await create_by_words(router)
    found = await search(router, "red fox at the fence", limit=1, hybrid=pb.Hybrid())
    assert len(found.hits) == 1
    assert found.text.candidates == 3
    one = await search(router, "red fox at the fence", limit=1, hybrid=pb.Hybrid(candidates=1))
    assert one.text.candidates == 1


async def test_a_query_of_no_words_is_a_search_by_vectors(router):
    """Stop words find nothing, and are no error."""
    await create_by_words(router)
    found = await search(router, "the of", limit=3, hybrid=pb.Hybrid())
    assert len(found.hits) == 3
    assert (found.text.terms, found.text.candidates) == (0, 0)
    assert all(hit.HasField("cosine") and not hit.HasField("bm25") for hit in found.hits)


@pytest.mark.parametrize(
    ("hybrid", "says"),
    [
        (pb.Hybrid(weight=1.5), "weight must be between 0 and 1, got 1.5"),
        (pb.Hybrid(weight=float("nan")), "weight must be between 0 and 1, got nan"),
        (pb.Hybrid(candidates=3), "candidates must be 0, or between the limit (10) and 500"),
        (pb.Hybrid(candidates=501), "candidates must be 0, or between the limit (10) and 500"),
        (pb.Hybrid(fusion=7), "fusion must be unset, FUSION_SCORE or FUSION_RANK"),
        (pb.Hybrid(text="x" * 1001), "text must have at most 1000 characters"),
    ],
)
async def test_a_bad_hybrid_is_refused_before_any_work(router, hybrid, says):
    """One sentence; no text is encoded."""
    await create_by_words(router)
    encoded = len(router.encoder.embeds)
    await refused(
        router.stub.Search(pb.SearchRequest(collection="docs", text="red", hybrid=hybrid)),
        INVALID, says,
    )  # fmt: skip
    assert len(router.encoder.embeds) == encoded


async def test_a_text_index_is_added_to_a_live_collection(router):
    """Without one a search by words says what to do; with it, texts of before are found."""
    await create(router)
    points = [pb.Point(id=id_, text=text) for id_, text in TEXTS.items()]
    await upsert(router, pb.UpsertRequest(collection="docs", points=points))
    wanted = pb.SearchRequest(collection="docs", text="fox", limit=2, hybrid=pb.Hybrid(weight=0))
    await refused(
        router.stub.Search(wanted), grpc.StatusCode.FAILED_PRECONDITION, "has no text index"
    )
    bad = pb.ResizeCollectionRequest(name="docs", text_index=pb.TextIndex(language="klingon"))
    await refused(router.stub.ResizeCollection(bad), INVALID, "language must be one of any")
    resize = pb.ResizeCollectionRequest(name="docs", text_index=ENGLISH)
    steps = [step async for step in router.stub.ResizeCollection(resize)]
    assert steps[-1].collection.text_index.language == "english"
    assert {hit.id for hit in (await router.stub.Search(wanted)).hits} == {"fox", "hen"}


async def test_a_migration_takes_the_text_index_along(router):
    """Words find in the target what they found in the source."""
    await create_by_words(router)
    request = pb.MigrateCollectionRequest(source="docs", target="docs-2", model="wide")
    steps = [step async for step in router.stub.MigrateCollection(request)]
    assert steps[-1].collection.text_index.language == "english"
    found = await router.stub.Search(
        pb.SearchRequest(collection="docs-2", text="fox", limit=2, hybrid=pb.Hybrid(weight=0))
    )
    assert {hit.id for hit in found.hits} == {"fox", "hen"}


async def test_words_are_evaluated_beside_vectors_alone(router):
    """Labels say that words help here, where vectors know nothing."""
    await create_by_words(router)
    queries = [
        pb.LabelledQuery(text="foxes", relevant={"fox": 1.0, "hen": 1.0}),
        pb.LabelledQuery(text="a lazy dog", relevant={"dog": 1.0}),
    ]
    plain = pb.Contender(collection="docs")
    by_words = pb.Contender(collection="docs", hybrid=pb.Hybrid(weight=0.1))
    told = await evaluate(router, queries, plain, by_words, limit=2)
    before, after = told.overall.scores
    assert after.ndcg == pytest.approx(1.0)
    same = pb.Contender(collection="docs", hybrid=pb.Hybrid(text="fox"))
    request = pb.EvaluateRequest(queries=queries, contenders=[same])
    await refused(router.stub.Evaluate(request), INVALID, "the text of hybrid must be empty")
    assert before.ndcg < after.ndcg
