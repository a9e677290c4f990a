"""Calibration over the wire: real gRPC, real Edge; what is promised is held against new queries.

Shapes: N points, Q queries, D full width.
"""

import asyncio
import itertools
import time

import grpc
import numpy as np
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.vectors import normalize, pack
from tests.router.conftest import running
from tests.router.test_service import INVALID, STATE, read_all, refused, upsert

# Wide enough that comparing with every point is slower than a shortlist, on a busy machine too.
FULL = 256
SPACE = "space-small"
# Numbers fall off as those of a trained model's vectors do, so that short sizes keep most.
SPREAD_D = np.append(np.geomspace(1.0, 0.05, 64), np.geomspace(0.05, 0.005, FULL - 64))
SIZES = [pb.Size(dim=16), pb.Size(dim=32)]
TARGET = 0.93


def draw(seed, rows, spread_D=SPREAD_D):
    rng = np.random.default_rng(seed)
    return normalize((rng.standard_normal((rows, FULL)) * spread_D).astype(np.float32))


def draw_hard(seed, rows):
    """Queries that the last numbers mean as much to as the first: cutting loses more of these."""
    return draw(seed, rows, np.ones(FULL))


@pytest.fixture
async def router(encoder, tmp_path):
    encoder[0].dims["small"] = FULL
    async with running(encoder, tmp_path, max_batch_points=1000, calibrate_queries=400) as router:
        yield router


async def fill(router, num_points, name="docs", sizes=SIZES):
    create = pb.CreateCollectionRequest(name=name, model="small", sizes=sizes)
    await router.stub.CreateCollection(create)
    vectors_ND = draw(0, num_points)
    requests = [
        pb.UpsertRequest(
            collection=name,
            points=[pb.Point(id=str(row)) for row in range(begin, min(begin + 1000, num_points))],
            vectors=pack(vectors_ND[begin : begin + 1000]),
            space_id=SPACE,
        )
        for begin in range(0, num_points, 1000)
    ]
    await upsert(router, *requests)


def given(queries_QD, name="docs", **more):
    return pb.CalibrateRequest(
        collection=name, vectors=pack(queries_QD), space_id=SPACE, recall_target=TARGET, **more
    )


async def calibrate(router, request):
    """Return the steps, and the calibration that ends them."""
    answers = []
    await read_all(router.stub.Calibrate(request), answers)
    *steps, last = answers
    assert not any(step.HasField("calibration") for step in steps)
    return steps, last.calibration


async def stored(router, **more):
    answer = await router.stub.GetCalibration(pb.GetCalibrationRequest(collection="docs", **more))
    return answer.calibration


def search(router, query_D, **more):
    return router.stub.Search(
        pb.SearchRequest(collection="docs", vector=pack(query_D[None]), space_id=SPACE, **more)
    )


async def keys_of(router, query_D, plan):
    return {hit.id for hit in (await search(router, query_D, plan=plan)).hits}


async def mean_recall(router, queries_QD, **more):
    """Return the mean of the measured recall, and the promise of the last search."""
    recalls = []
    for query_D in queries_QD:
        answer = await search(router, query_D, measure_recall=True, **more)
        recalls.append(answer.recall)
    return float(np.mean(recalls)), answer.promise


async def test_what_is_promised_is_kept_for_new_queries(router):
    """For all queries and for each slice the recall of unseen ones is the target, measured anew."""
    await fill(router, 2000)
    queries_QD = np.concatenate([draw(1, 200), draw_hard(2, 200)])
    slices = ["easy"] * 200 + ["hard"] * 200
    steps, calibration = await calibrate(router, given(queries_QD, slices=slices))

    names = [name for name, _ in itertools.groupby(step.step for step in steps)]
    assert names[:3] == ["read", "screen", "certify"], "200 that choose are all needed to screen"
    for step in steps:
        assert 0 < step.done <= step.total
    assert [(s.done, s.total) for s in steps if s.step == "read"][-1] == (2000, 2000)

    assert (calibration.num_points, calibration.shards, calibration.limit) == (2000, 1, 10)
    assert calibration.source == pb.QUERY_SOURCE_GIVEN
    assert calibration.num_queries == 200
    assert calibration.slice_queries == {"easy": 100, "hard": 100}
    assert abs(calibration.created_at - time.time()) < 100
    exact, *others = calibration.plans
    assert exact.plan.stages[0].exact
    assert others, "a shortlist must be worth its while here"
    bounds = [row.recalls[""].bound for row in others]
    assert all(bound <= row.recalls[""].mean for bound, row in zip(bounds, others, strict=True))
    assert all(row.p50_ms <= row.p99_ms for row in calibration.plans)
    for curve in calibration.curves:
        assert list(curve.recalls) == sorted(curve.recalls)
        assert curve.recalls[-1] > 0.99
    assert [curve.size for curve in calibration.curves] == ["16", "32"]

    chosen = calibration.plans[calibration.chosen]
    answer = await search(router, queries_QD[0])
    assert answer.plan == chosen.plan, "a search that says nothing gets the calibration's target"
    new = {"easy": draw(3, 150), "hard": draw_hard(4, 150)}
    # A mean of 300 recalls, each about 0.1 off, is 0.005 off; the promise is a lower bound.
    recall, promise = await mean_recall(router, np.concatenate(list(new.values())))
    assert promise.met
    assert recall >= promise.recall - 0.02 >= TARGET - 0.02
    for slice_, of_slice in new.items():
        recall, promise = await mean_recall(router, of_slice, recall_target=0.9, slice=slice_)
        assert (promise.met, promise.slice) == (True, slice_)
        assert promise.recall >= 0.9
        assert recall >= promise.recall - 0.02

    easy = await search(router, queries_QD[0], recall_target=0.9, slice="easy")
    hard = await search(router, queries_QD[0], recall_target=0.9, slice="hard")
    recalls = {row.plan.SerializeToString(): row.recalls for row in calibration.plans}
    of_easy = recalls[easy.plan.SerializeToString()]
    assert of_easy["easy"].mean > of_easy["hard"].mean, "the case must tell the two apart"
    assert recalls[hard.plan.SerializeToString()]["hard"].bound >= 0.9


@pytest.mark.parametrize("quantization", [pb.QUANTIZATION_TURBO4, pb.QUANTIZATION_BINARY])
async def test_every_plan_keeps_what_was_measured_of_it(router, quantization):
    """Run by hand each finds as much for new queries, whatever scores its codes give to hits."""
    await fill(router, 1000, sizes=[pb.Size(dim=FULL, quantization=quantization)])
    _, calibration = await calibrate(router, given(draw(1, 200)))
    exact, *others = calibration.plans
    queries_QD = draw(2, 80)
    true = [await keys_of(router, query_D, exact.plan) for query_D in queries_QD]
    for row in others:
        found = [await keys_of(router, query_D, row.plan) for query_D in queries_QD]
        kept = [len(one & other) / 10 for one, other in zip(found, true, strict=True)]
        # Two means, of 100 and of 80 recalls that are each about 0.07 off: three deviations.
        assert np.mean(kept) >= row.recalls[""].mean - 0.035, row.plan


async def test_budgets_are_kept_and_what_they_cost_is_said(router):
    """Within a budget that leaves no room the promise is not met; a plan of one's own has none."""
    await fill(router, 1000)
    await calibrate(router, given(draw(1, 200)))
    query_D = draw(2, 1)[0]
    answer = await search(router, query_D, max_bytes_per_point=1, recall_target=0.9)
    assert not answer.promise.met
    assert answer.hits
    assert "no plan is within the budgets; the cheapest" in answer.promise.note
    answer = await search(router, query_D, max_engine_ms=10_000, recall_target=1.0)
    assert (answer.promise.met, answer.promise.recall, answer.promise.exact) == (True, 1.0, True)
    both = search(router, query_D, recall_target=0.9, plan=pb.Plan(stages=[pb.Stage(dim=FULL)]))
    await refused(both, INVALID, "not both")
    alone = await search(router, query_D, plan=pb.Plan(stages=[pb.Stage(dim=FULL)]))
    assert not alone.HasField("promise")


async def test_before_a_calibration_a_target_means_exact_search(router):
    """It is kept at once, budgets are refused, and there is nothing to show."""
    await fill(router, 200)
    query_D = draw(2, 1)[0]
    answer = await search(router, query_D, recall_target=0.9)
    assert [(stage.dim, stage.exact) for stage in answer.plan.stages] == [(FULL, True)]
    assert (answer.promise.met, answer.promise.exact) == (True, True)
    assert "run Calibrate" in answer.promise.note
    assert not (await search(router, query_D)).HasField("promise")
    await refused(search(router, query_D, max_engine_ms=5), STATE, "run Calibrate")
    missing = router.stub.GetCalibration(pb.GetCalibrationRequest(collection="docs"))
    await refused(missing, grpc.StatusCode.NOT_FOUND, "not calibrated; run Calibrate")


async def test_documents_stand_in_for_queries(router):
    """With no queries given documents ask, none of which counts finding itself as a success."""
    sizes = [pb.Size(dim=16, quantization=pb.QUANTIZATION_TURBO2), pb.Size(dim=32)]
    await fill(router, 600, sizes=sizes)
    request = pb.CalibrateRequest(
        collection="docs", limit=1, recall_target=0.9, objective=pb.OBJECTIVE_MEMORY
    )
    _, calibration = await calibrate(router, request)
    assert calibration.source == pb.QUERY_SOURCE_DOCUMENTS
    assert (calibration.num_queries, dict(calibration.slice_queries)) == (200, {})
    assert (calibration.limit, calibration.objective) == (1, pb.OBJECTIVE_MEMORY)
    # A document's nearest neighbour is itself at every size: had it counted, nothing were lost.
    shortest = {int(curve.size): curve.recalls[0] for curve in calibration.curves}
    assert shortest[16] < shortest[32] < 0.95
    recall, promise = await mean_recall(router, draw(5, 300), limit=1)
    assert promise.met
    assert recall >= 0.9 - 0.05  # a mean of 300 recalls of 0 or 1 is 0.017 off


async def test_a_calibration_survives_a_restart(router, encoder, tmp_path):
    """What was measured is read, drawn and promised as before by the next router."""
    await fill(router, 400)
    point = pb.SetCollectionAliasRequest(alias="current", collection="docs")
    await router.stub.SetCollectionAlias(point)
    _, calibration = await calibrate(router, given(draw(1, 100), name="current"))
    assert await stored(router) == calibration
    promised = (await search(router, draw(2, 1)[0])).promise
    await router.service.stop()
    async with running(encoder, tmp_path) as second:
        assert await stored(second) == calibration
        assert (await search(second, draw(2, 1)[0])).promise == promised
        drawn = await stored(second, with_plot=True)
        assert drawn.plot_png.startswith(b"\x89PNG\r\n\x1a\n")
        assert drawn.plot_png.endswith(b"IEND\xaeB`\x82")
        drawn.ClearField("plot_png")
        assert drawn == calibration


@pytest.mark.parametrize("is_wanted", [True, False])
async def test_an_alarm_calibrates_again_where_that_is_wanted(encoder, tmp_path, is_wanted):
    """As it was done before, but with what there is to ask with by then."""
    encoder[0].dims["small"] = FULL
    async with running(encoder, tmp_path, recalibrate=is_wanted, max_batch_points=1000) as router:
        await fill(router, 150)
        _, before = await calibrate(router, given(draw(1, 100), objective=pb.OBJECTIVE_MEMORY))
        parts = router.service._parts
        parts.shadow._on_alarm(await parts.store.find("docs"))
        assert bool(parts._recalibrations) == is_wanted
        await asyncio.gather(*parts._recalibrations)
        after = await stored(router)
        assert (after.recall_target, after.objective) == (before.recall_target, before.objective)
        assert (after.source == pb.QUERY_SOURCE_DOCUMENTS) == is_wanted


async def test_one_calibration_of_a_collection_at_a_time(router):
    """A second is refused, by name or alias; a caller that leaves ends his and keeps the old."""
    await fill(router, 400)
    await fill(router, 400, "other")
    point = pb.SetCollectionAliasRequest(alias="current", collection="docs")
    await router.stub.SetCollectionAlias(point)
    _, old = await calibrate(router, given(draw(1, 100)))
    leaving = router.stub.Calibrate(given(draw(1, 400), confidence=0.9))
    assert (await leaving.read()).step == "read"
    for name in ("docs", "current"):
        second = router.stub.Calibrate(given(draw(1, 100), name=name))
        await refused(second, STATE, "'docs' is being calibrated already")
    another = router.stub.Calibrate(given(draw(1, 400), name="other"))
    assert (await another.read()).step == "read"
    leaving.cancel()
    another.cancel()
    async with asyncio.timeout(10):
        while router.service._long_work:
            await asyncio.sleep(0.01)
    assert await stored(router) == old
    _, new = await calibrate(router, given(draw(1, 100), confidence=0.9))
    assert await stored(router) == new != old


async def test_searches_and_writes_go_on_meanwhile(router):
    """A calibration takes turns with others; points that come and go do not break it."""
    await fill(router, 800)
    answers = []
    calibrating = asyncio.create_task(read_all(router.stub.Calibrate(given(draw(1, 200))), answers))
    searched = 0
    while not calibrating.done():
        assert len((await search(router, draw(2, 1)[0])).hits) == 10
        ids = [str(searched % 100)]
        await router.stub.Delete(pb.DeleteRequest(collection="docs", ids=ids))
        searched += 1
    await calibrating
    assert searched > 10
    assert answers[-1].calibration.plans


async def test_collections_too_small_are_refused(router):
    """With more hits than points nothing can be lost; few documents are no stand-in for queries."""
    await fill(router, 50)
    too_few = router.stub.Calibrate(pb.CalibrateRequest(collection="docs", limit=50))
    await refused(too_few, INVALID, "has 50 points; a calibration for 50 hits needs more")
    documents = router.stub.Calibrate(pb.CalibrateRequest(collection="docs"))
    await refused(documents, INVALID, "too few to stand in for queries; give at least 100")
    gone = router.stub.Calibrate(pb.CalibrateRequest(collection="gone"))
    await refused(gone, grpc.StatusCode.NOT_FOUND, "'gone'")
    _, calibration = await calibrate(router, given(draw(1, 100)))
    assert calibration.num_queries == 50


QUERIES = pack(draw(1, 100))
BAD_REQUESTS = [
    ({"limit": 1001}, "limit must be between 1 and 1000, got 1001"),
    ({"recall_target": 1.0}, "target must be above 0 and below 1, got 1; exact search keeps 1"),
    ({"recall_target": -0.5}, "got -0.5"),
    ({"recall_target": float("nan")}, "got nan"),
    ({"confidence": 0.4}, "confidence must be at least 0.5 and below 1, got 0.4"),
    ({"confidence": 1.0}, "got 1"),
    ({"objective": 9}, "OBJECTIVE_LATENCY or OBJECTIVE_MEMORY"),
    ({"vectors": pack(draw(1, 99)), "space_id": SPACE}, "at least 100 are needed, got 99"),
    ({"texts": ["x"] * 99}, "at least 100 are needed, got 99"),
    ({"vectors": QUERIES, "space_id": SPACE, "texts": ["x"]}, "not both"),
    ({"vectors": QUERIES, "space_id": SPACE, "slices": ["a"] * 99}, "got 99"),
    ({"vectors": QUERIES[:-4], "space_id": SPACE}, "float32"),
    ({"vectors": QUERIES[: -4 * FULL] + bytes(4 * FULL), "space_id": SPACE}, "zeros"),
    ({"vectors": QUERIES[:-4] + b"\0\0\xc0\x7f", "space_id": SPACE}, "finite"),
    ({"vectors": QUERIES, "space_id": SPACE, "slices": ["a" * 65] * 100}, "at most 64 characters"),
    ({"slices": ["a"]}, "slices"),
    ({"texts": ["x"] * 99 + [" "]}, "texts[99] must have 1 to 1000 characters that are not blank"),
    ({"texts": ["x"] * 99 + ["x" * 1001]}, "texts[99] must have 1 to 1000 characters"),
]


async def test_bad_requests_are_refused_with_what_would_be_accepted(router):
    """Each mistake has its sentence; nothing is measured or forgotten, no long text encoded."""
    await fill(router, 150)
    _, old = await calibrate(router, given(draw(1, 100)))
    for fields, says in BAD_REQUESTS:
        call = router.stub.Calibrate(pb.CalibrateRequest(collection="docs", **fields))
        await refused(call, INVALID, says)
    for space_id in ("space-wide", ""):
        call = pb.CalibrateRequest(collection="docs", vectors=QUERIES, space_id=space_id)
        await refused(router.stub.Calibrate(call), STATE, f"space '{space_id}', but collection")
    assert await stored(router) == old
    assert all(len(text) <= 1000 for sent in router.encoder.embeds for text in sent.texts)
