"""Labelled queries: the measures, and two contenders side by side over the wire."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.recall.evaluate import score
from services.shared.pb import router_pb2 as pb
from tests.router.test_service import INVALID, create, fill, refused

IDS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)
GRADES = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([1.0, 2.0, 3.0]), min_size=1)


def test_scores_are_those_of_the_book():
    """Järvelin and Kekäläinen's discount, worked out by hand."""
    found = score(["x", "a", "b"], {"a": 1.0, "b": 2.0, "c": 1.0}, 3)
    gained = 1 / 1.584963 + 2 / 2
    best = 2 + 1 / 1.584963 + 1 / 2
    assert found.ndcg == pytest.approx(gained / best, abs=1e-6)
    assert (found.recall, found.mrr) == (2 / 3, 0.5)


@given(IDS, GRADES)
def test_scores_are_shares_and_the_ideal_order_is_the_best(ids, relevant):
    """0 to 1 each; no order has a higher nDCG than that of the grades."""
    found = score(ids, relevant, 10)
    for value in (found.ndcg, found.recall, found.mrr):
        assert 0 <= value <= 1 + 1e-12
    ideal = score(sorted(relevant, key=lambda id_: -relevant[id_]), relevant, 10)
    assert ideal.ndcg == pytest.approx(1.0)
    assert found.ndcg <= ideal.ndcg + 1e-12


async def evaluate(router, queries, *contenders, **more):
    request = pb.EvaluateRequest(queries=queries, contenders=contenders, **more)
    steps = [step async for step in router.stub.Evaluate(request)]
    assert steps[-2].done == steps[-2].total == len(queries)
    return steps[-1].evaluation


def labelled(rows, slice_=""):
    # A document's own text asks for it: this encoder knows no other likeness.
    return [
        pb.LabelledQuery(text=f"text of p{row}", relevant={f"p{row}": 1.0}, slice=slice_)
        for row in rows
    ]


BAD = pb.Plan(stages=[pb.Stage(dim=8, exact=True)])


async def test_the_worse_plan_and_its_worst_slice_are_named(router):
    """Exact search finds each document; labels that no plan can meet stand in no one's way."""
    await create(router)
    await fill(router, 60)
    wrong = [pb.LabelledQuery(text="text of p1", relevant={"p2": 1.0}, slice="hopeless")]
    queries = [*labelled(range(20), "easy"), *wrong]
    exact = pb.Contender(collection="docs", recall_target=1.0)
    nothing = pb.Contender(collection="docs", plan=BAD)
    found = await evaluate(router, queries, exact, nothing, limit=1)
    by_name = {one.slice: one for one in found.slices}
    assert by_name["easy"].scores[0].ndcg == 1.0
    assert by_name["hopeless"].scores[0].ndcg == 0.0
    assert found.overall.num_queries == 21
    assert found.plans[0].stages[0].exact
    # Two contenders that are the same change nothing.
    same = await evaluate(router, queries, exact, exact)
    assert same.overall.num_better == same.overall.num_worse == len(same.worst) == 0


async def test_queries_that_get_worse_are_listed(router):
    """Against a collection that lacks half of the documents, those queries lose all."""
    await create(router)
    await fill(router, 40)
    await create(router, "half")
    await fill(router, 20, "half")
    whole, half = (pb.Contender(collection=name, recall_target=1.0) for name in ("docs", "half"))
    queries = [*labelled(range(20), "kept"), *labelled(range(20, 30), "lost")]
    found = await evaluate(router, queries, whole, half, limit=1)
    assert [one.slice for one in found.slices] == ["lost", "kept"]
    assert found.slices[0].num_worse == found.overall.num_worse == 10
    assert {change.query for change in found.worst} == set(range(20, 30))
    assert all((change.before, change.after) == (1.0, 0.0) for change in found.worst)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"queries": []}, "queries must be 1 to"),
        ({"contenders": []}, "contenders must be one or two"),
        ({"queries": [pb.LabelledQuery(text="x")]}, "relevant needs at least one point"),
        (
            {"queries": [pb.LabelledQuery(text="x", relevant={"a": 0.0})]},
            "with a grade above 0",
        ),
        ({"queries": [pb.LabelledQuery(relevant={"a": 1.0})]}, "query text or a query vector"),
        (
            {"queries": [*labelled([1]), pb.LabelledQuery(text="x" * 1001, relevant={"a": 1.0})]},
            "queries[1].text must have 1 to 1000 characters",
        ),
    ],
)
async def test_bad_input_is_refused(router, fields, says):
    """One sentence that says what is accepted."""
    await create(router)
    request = {"queries": labelled([1]), "contenders": [pb.Contender(collection="docs")]} | fields
    await refused(router.stub.Evaluate(pb.EvaluateRequest(**request)), INVALID, says)
    assert router.encoder.embeds == []


async def test_an_unknown_collection_is_not_found(router):
    """Before any query is answered."""
    call = router.stub.Evaluate(
        pb.EvaluateRequest(queries=labelled([1]), contenders=[pb.Contender(collection="nobody")])
    )
    await refused(call, grpc.StatusCode.NOT_FOUND, "nobody")
