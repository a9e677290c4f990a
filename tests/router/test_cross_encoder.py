"""The last word of a cross-encoder, over the wire; the tests' own one counts letters."""

import grpc
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.vectors import pack
from tests.router.conftest import encode
from tests.router.test_evaluate import evaluate
from tests.router.test_service import DIM, INVALID, create, refused, upsert

TEXTS = {"a": "xyz", "b": "red x", "c": "reindeer", "d": "", "e": "blue sky"}
LETTERS = pb.CrossEncoder(model="letters")


@pytest.fixture
async def filled(router):
    await create(router, text_index=pb.TextIndex(language="any"))
    points = [pb.Point(id=id_, text=text) for id_, text in TEXTS.items() if text]
    vector = pack(encode("small", "red", DIM)[None])
    await upsert(
        router,
        pb.UpsertRequest(collection="docs", points=points),
        pb.UpsertRequest(points=[pb.Point(id="d")], vectors=vector, space_id="space-small"),
    )
    return router


async def search(router, text="red", **more):
    return await router.stub.Search(pb.SearchRequest(collection="docs", text=text, **more))


async def test_hits_come_in_the_order_of_the_cross_encoder(filled):
    """Whatever the cosines say; with its scores, and a hit without a text last."""
    found = await search(filled, cross_encoder=LETTERS)
    assert [hit.id for hit in found.hits[:2]] in (["b", "c"], ["c", "b"])
    assert [hit.score for hit in found.hits] == pytest.approx([1.0, 1.0, 1 / 3, 0.0, 0.0], abs=1e-6)
    assert found.hits[-1].id == "d"
    report = found.cross_encoder
    assert (report.model, report.candidates, report.truncated) == ("letters", 4, 0)
    assert report.seconds > 0
    plain = await search(filled)
    assert plain.hits[0].id == "d"
    assert not plain.HasField("cross_encoder")


async def test_it_is_given_more_hits_than_are_wanted(filled):
    """What the plan put last can come first, if `candidates` reach it."""
    found = await search(filled, limit=1, cross_encoder=pb.CrossEncoder(model="letters"))
    assert len(found.hits) == 1
    assert found.hits[0].score == 1.0
    assert len(filled.encoder.reranks[-1].documents) == 4
    few = pb.CrossEncoder(model="letters", candidates=2)
    await search(filled, limit=2, cross_encoder=few)
    assert len(filled.encoder.reranks[-1].documents) == 1  # the other of both has no text


async def test_words_and_places_follow_their_hits(filled):
    """What each side said of a hit, and its place in the shortlist, are still its own."""
    plan = pb.Plan(stages=[pb.Stage(dim=8, candidates=50), pb.Stage(dim=DIM)])
    more = {"plan": plan, "explain": True, "hybrid": pb.Hybrid()}
    before = await search(filled, "red", limit=5, **more)
    after = await search(filled, "red", limit=5, cross_encoder=LETTERS, **more)
    said = {hit.id: (hit.shortlist_rank, round(hit.cosine, 5), hit.bm25) for hit in before.hits}
    assert said == {
        hit.id: (hit.shortlist_rank, round(hit.cosine, 5), hit.bm25) for hit in after.hits
    }
    assert [hit.id for hit in before.hits] != [hit.id for hit in after.hits]


async def test_a_vector_needs_words_beside_it(filled):
    """A cross-encoder reads texts: `hybrid.text` is one."""
    vector = pack(encode("small", "x", DIM)[None])
    request = pb.SearchRequest(
        collection="docs", vector=vector, space_id="space-small", cross_encoder=LETTERS
    )
    await refused(filled.stub.Search(request), INVALID, "cross_encoder: needs a text to read")
    request.hybrid.text = "red"
    found = await filled.stub.Search(request)
    assert found.hits[0].score == 1.0


@pytest.mark.parametrize(
    ("wanted", "code", "says"),
    [
        (pb.CrossEncoder(), INVALID, "model must name a cross-encoder"),
        (pb.CrossEncoder(model="letters", candidates=9), INVALID, "between the limit (10) and"),
        (pb.CrossEncoder(model="letters", candidates=1001), INVALID, "between the limit (10) and"),
        (pb.CrossEncoder(model="nobody"), grpc.StatusCode.NOT_FOUND, "nobody"),
        (pb.CrossEncoder(model="small"), grpc.StatusCode.FAILED_PRECONDITION, "no cross-encoder"),
    ],
)
async def test_a_bad_one_is_refused_in_one_sentence(filled, wanted, code, says):
    """Bounds here, and what the encoder says of its models."""
    request = pb.SearchRequest(collection="docs", text="red", cross_encoder=wanted)
    await refused(filled.stub.Search(request), code, says)


async def test_no_collection_is_made_of_one(router):
    """It makes no vectors, and that is said before anything is made."""
    request = pb.CreateCollectionRequest(name="docs", model="letters")
    code = grpc.StatusCode.FAILED_PRECONDITION
    await refused(router.stub.CreateCollection(request), code, "a cross-encoder and makes no")


async def test_it_is_evaluated_beside_none(filled):
    """Labels say whether it is worth its time."""
    queries = [pb.LabelledQuery(text="red", relevant={"b": 1.0, "c": 1.0})]
    plain = pb.Contender(collection="docs")
    last = pb.Contender(collection="docs", cross_encoder=LETTERS)
    told = await evaluate(filled, queries, plain, last, limit=3)
    before, after = told.overall.scores
    assert after.ndcg == pytest.approx(1.0)
    assert before.ndcg < after.ndcg
