"""Changes of live collections over the wire: a real router on Edge, a real trainer with real jobs.

Shapes: N points, Q queries, D full width.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.shared.interceptors import Door
from services.shared.keys import Keys
from services.shared.pb import router_pb2 as pb
from services.shared.state import State
from services.shared.vectors import normalize, pack
from services.trainer.service import TrainerService
from services.trainer.settings import TrainerSettings
from tests.router.conftest import running
from tests.router.test_service import INVALID, STATE, read_all, refused, upsert

FULL, SPACE, NUM_POINTS = 64, "space-small", 2500
PLAIN = [pb.Size(dim=8), pb.Size(dim=16)]
NESTED = [
    pb.Size(dim=8, nested=True),
    pb.Size(dim=16, nested=True, quantization="QUANTIZATION_TURBO4"),
]


def draw(seed, rows):
    """Vectors whose prefix tells little: what differs most is spread over all numbers."""
    mix = np.linalg.qr(np.random.default_rng(99).standard_normal((FULL, FULL)))[0]
    spread_D = np.geomspace(1.0, 0.02, FULL)
    drawn = np.random.default_rng(seed).standard_normal((rows, FULL)) * spread_D
    return normalize((drawn @ mix).astype(np.float32))


@asynccontextmanager
async def training(folder, port=0) -> AsyncIterator[str]:
    """A trainer on loopback; gives its address."""
    service = TrainerService(TrainerSettings(data_dir=folder), CollectorRegistry())
    door = Door({service.grpc_name: service.metrics}, State(True, True), Keys(), {})
    server = grpc.aio.server(interceptors=[door])
    service.add_to(server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await service.start()
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)
    await service.stop()


@pytest.fixture
async def trainer(tmp_path):
    async with training(tmp_path / "trainer") as address:
        yield address


@asynccontextmanager
async def routing(encoder, tmp_path, trainer, **changes):
    encoder[0].dims["small"] = FULL
    options = {"max_batch_points": 1000, "change_lease_s": 1.0, "trainer_address": trainer,
               "calibrate_queries": 200}  # fmt: skip
    async with running(encoder, tmp_path / "router", **options, **changes) as router:
        yield router


@pytest.fixture
async def router(encoder, tmp_path, trainer):
    async with routing(encoder, tmp_path, trainer) as router:
        yield router


async def fill(router, name="docs", rows=NUM_POINTS):
    create = pb.CreateCollectionRequest(name=name, model="small", sizes=PLAIN)
    await router.stub.CreateCollection(create)
    vectors_ND = draw(0, rows)
    requests = [
        pb.UpsertRequest(
            collection=name,
            points=[pb.Point(id=str(row)) for row in range(begin, min(begin + 500, rows))],
            vectors=pack(vectors_ND[begin : begin + 500]),
            space_id=SPACE,
        )
        for begin in range(0, rows, 500)
    ]
    await upsert(router, *requests)


async def nest(router, **more):
    """Nest the collection; return the steps' names, in order, and the last answer."""
    answers = []
    await read_all(
        router.stub.NestCollection(pb.NestCollectionRequest(name="docs", **more)), answers
    )
    *steps, last = answers
    return list(dict.fromkeys(step.change.step.partition(":")[0] for step in steps)), last


async def get(router):
    return (await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))).collection


async def search(router, query_D, *stages, limit=10):
    request = pb.SearchRequest(
        collection="docs", vector=pack(query_D), space_id=SPACE, limit=limit, measure_recall=True,
        plan=pb.Plan(stages=stages),
    )  # fmt: skip
    return await router.stub.Search(request)


async def shortlist_recall(router, nested):
    """Share of the exact ten among the best 30 at 8 numbers, over 40 queries."""
    stages = [pb.Stage(dim=8, nested=nested, candidates=30, exact=True), pb.Stage(dim=FULL)]
    answers = [await search(router, query_D, *stages) for query_D in draw(5, 40)]
    return np.mean([answer.recall for answer in answers])


RESULTS = 3
"""Files that a nest job leaves: a table of its losses, a picture, the rotation."""


def kept_by_trainer(tmp_path):
    """Files and vectors that lie at the trainer; of a job that succeeded its results stay."""
    folder = tmp_path / "trainer"
    return len([*(folder / "files").iterdir(), *(folder / "jobs").glob("*/*.npy")])


def kinds(collection):
    return [(size.dim, size.nested) for size in collection.sizes]


BOTH = [(8, True), (8, False), (16, True), (16, False), (FULL, False)]


async def test_a_nested_size_keeps_more_and_full_scores_stay(router, tmp_path):
    """Learned, built and calibrated in one call; exact search answers what it did before, but for
    the last digit; and without nested sizes all is as it was."""
    await fill(router)
    exact = pb.Stage(dim=FULL, exact=True)
    before = [(await search(router, query_D, exact)).hits for query_D in draw(5, 10)]
    steps, last = await nest(router, sizes=NESTED, recall_target=0.9)
    assert steps == ["sample", "learn", "build", "calibrate"]
    assert kinds(last.collection) == BOTH
    assert kept_by_trainer(tmp_path) == RESULTS
    assert not last.collection.HasField("change")
    assert [row.dim for row in last.quality] == [8, 16]
    assert all(row.nested > row.plain + 0.2 for row in last.quality)
    plain, nested = [await shortlist_recall(router, of) for of in (False, True)]
    assert nested > plain + 0.2
    after = [(await search(router, query_D, exact)).hits for query_D in draw(5, 10)]
    for one, other in zip(after, before, strict=True):
        assert [hit.id for hit in one] == [hit.id for hit in other]
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-6)
    measured = await router.stub.GetCalibration(pb.GetCalibrationRequest(collection="docs"))
    calibration = measured.calibration
    assert calibration.recall_target == 0.9
    assert {curve.size for curve in calibration.curves} == {"8", "8 nested", "16", "16 nested"}
    new = pb.UpsertRequest(
        collection="docs", points=[pb.Point(id="new")], vectors=pack(draw(9, 1)), space_id=SPACE
    )
    await upsert(router, new)
    found = await search(router, draw(9, 1)[0], pb.Stage(dim=8, nested=True), limit=1)
    assert found.hits[0].id == "new"
    undo = pb.ResizeCollectionRequest(name="docs", sizes=PLAIN)
    answers = []
    await read_all(router.stub.ResizeCollection(undo), answers)
    assert kinds(answers[-1].collection) == [(8, False), (16, False), (FULL, False)]
    gone = search(router, draw(5, 1)[0], pb.Stage(dim=8, nested=True))
    await refused(gone, INVALID, "dim must be a size of this collection")


@pytest.mark.parametrize("step", ["learn", "build", "calibrate"])
async def test_a_change_that_its_router_left_is_gone_on_with(encoder, tmp_path, trainer, step):
    """A router that ends in the middle of any step leaves work to the next one, which ends it;
    what was written before is at every size."""
    async with routing(encoder, tmp_path, trainer) as first:
        await fill(first)
        request = pb.NestCollectionRequest(name="docs", sizes=NESTED, recall_target=0.9)
        call = first.stub.NestCollection(request)
        async for answer in call:
            if answer.change.step.startswith(step):
                break
        assert answer.change.step.startswith(step)
        # Neither said goodbye: the router's tasks end where they are.
        await first.service._parts.changes.stop()
        call.cancel()
    async with routing(encoder, tmp_path, trainer) as second:
        assert (await get(second)).change.kind == "nest"
        async with asyncio.timeout(120):
            while (await get(second)).HasField("change"):
                assert not (await get(second)).change.error
                await asyncio.sleep(0.05)
        assert kinds(await get(second)) == BOTH
        assert await shortlist_recall(second, True) > await shortlist_recall(second, False) + 0.2
        await second.stub.GetCalibration(pb.GetCalibrationRequest(collection="docs"))
        jobs = list((tmp_path / "trainer" / "jobs").iterdir())
        assert len([job for job in jobs if job.is_dir()]) == 1
        assert kept_by_trainer(tmp_path) == RESULTS


async def test_a_job_that_was_queued_and_not_noted_is_found_again(encoder, tmp_path, trainer):
    """A router that dies between the two goes on with the same job, and leaves no file behind."""
    async with routing(encoder, tmp_path, trainer) as first:
        await fill(first)
        parts = first.service._parts
        begin = parts.sizes._trainer.nest

        async def begin_and_die(*arguments):
            await begin(*arguments)
            await asyncio.sleep(60)

        parts.sizes._trainer.nest = begin_and_die
        call = first.stub.NestCollection(pb.NestCollectionRequest(name="docs", sizes=NESTED))
        async with asyncio.timeout(60):
            while not list((tmp_path / "trainer" / "jobs").iterdir()):
                await asyncio.sleep(0.02)
        await parts.changes.stop()
        call.cancel()
    async with routing(encoder, tmp_path, trainer) as second:
        async with asyncio.timeout(120):
            while (await get(second)).HasField("change"):
                assert not (await get(second)).change.error
                await asyncio.sleep(0.05)
        assert kinds(await get(second)) == BOTH
    assert len(list((tmp_path / "trainer" / "jobs").iterdir())) == 1
    assert kept_by_trainer(tmp_path) == RESULTS


async def test_a_caller_that_leaves_does_not_end_a_change(router):
    """It goes on in the background, and the collection tells how far it is."""
    await fill(router)
    call = router.stub.NestCollection(pb.NestCollectionRequest(name="docs", sizes=NESTED))
    await call.read()
    call.cancel()
    seen = set()
    async with asyncio.timeout(120):
        while (collection := await get(router)).HasField("change"):
            seen.add(collection.change.step.partition(":")[0])
            await asyncio.sleep(0.01)
    assert kinds(collection) == BOTH
    assert "learn" in seen


async def test_a_trainer_that_is_away_fails_the_change_and_changes_nothing(encoder, tmp_path):
    """The caller and the collection say why; once it is there another try succeeds. Sizes that
    nobody names are parts of the full one, in codes of four bits."""
    async with routing(encoder, tmp_path, "127.0.0.1:1", change_patience_s=0) as router:
        await fill(router)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await nest(router, sizes=NESTED)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the trainer cannot be reached" in caught.value.details()
        collection = await get(router)
        assert "the trainer cannot be reached" in collection.change.error
        assert kinds(collection) == [(8, False), (16, False), (FULL, False)]
    async with (
        training(tmp_path / "trainer") as address,
        routing(encoder, tmp_path, address) as router,
    ):
        _, last = await nest(router)
        nested = [size for size in last.collection.sizes if size.nested]
        assert [(size.dim, size.quantization) for size in nested] == [(16, pb.QUANTIZATION_TURBO4)]


async def test_a_change_can_be_cancelled(router, tmp_path):
    """It ends, its caller hears so, and the collection is as it was, free for another."""
    await fill(router)
    call = router.stub.NestCollection(pb.NestCollectionRequest(name="docs", sizes=NESTED))
    async for answer in call:
        if answer.change.step == "learn":
            break
    await router.stub.CancelChange(pb.CancelChangeRequest(name="docs"))
    await refused(call, STATE, "the change was cancelled")
    assert kept_by_trainer(tmp_path) == 0
    collection = await get(router)
    assert not collection.HasField("change")
    assert kinds(collection) == [(8, False), (16, False), (FULL, False)]
    cancel = router.stub.CancelChange(pb.CancelChangeRequest(name="docs"))
    await refused(cancel, STATE, "is not being changed")


async def test_a_change_at_a_time(router):
    """A second one of the same collection is refused while the first is under way."""
    await fill(router)
    call = router.stub.NestCollection(pb.NestCollectionRequest(name="docs", sizes=NESTED))
    await call.read()
    second = router.stub.ResizeCollection(pb.ResizeCollectionRequest(name="docs", sizes=PLAIN))
    await refused(second, STATE, "'docs' is being changed already")
    await router.stub.CancelChange(pb.CancelChangeRequest(name="docs"))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([pb.Size(dim=8)], "sizes must be nested ones"),
        ([pb.Size(dim=12, nested=True)], "a multiple of 8 below 64"),
        ([pb.Size(dim=FULL, nested=True)], "a multiple of 8 below 64"),
        ([pb.Size(dim=8, nested=True)] * 2, "each dim may be given once"),
    ],
)
async def test_sizes_that_cannot_be_nested_are_refused(router, sizes, says):
    """At the door, with what would be accepted; nothing is begun."""
    await fill(router, rows=1000)
    await refused(
        router.stub.NestCollection(pb.NestCollectionRequest(name="docs", sizes=sizes)),
        INVALID, says,
    )  # fmt: skip
    assert not (await get(router)).HasField("change")


async def test_what_cannot_be_changed_is_refused(router):
    """Too few points to learn from, nested sizes without a rotation, a target of one."""
    await fill(router, rows=300)
    few = router.stub.NestCollection(pb.NestCollectionRequest(name="docs"))
    await refused(few, STATE, "has 300 points; a rotation is learned from 1000 or more")
    resize = pb.ResizeCollectionRequest(name="docs", sizes=NESTED)
    await refused(router.stub.ResizeCollection(resize), INVALID, "NestCollection learns")
    nothing = router.stub.ResizeCollection(pb.ResizeCollectionRequest(name="docs"))
    await refused(nothing, INVALID, "sizes must name")
    create = pb.CreateCollectionRequest(name="other", model="small", sizes=NESTED)
    await refused(router.stub.CreateCollection(create), INVALID, "NestCollection learns")
    too_much = router.stub.NestCollection(pb.NestCollectionRequest(name="docs", recall_target=1))
    await refused(too_much, INVALID, "target must be above 0 and below 1")
    assert not (await get(router)).HasField("change")


async def test_other_sizes_are_calibrated_as_before(router):
    """Sizes that go take their plans with them, so the collection is measured anew."""
    await fill(router)
    calibrate = pb.CalibrateRequest(collection="docs", recall_target=0.9, limit=5)
    await read_all(router.stub.Calibrate(calibrate), [])
    sizes = [pb.Size(dim=16), pb.Size(dim=32, quantization=pb.QUANTIZATION_INT8)]
    resize = router.stub.ResizeCollection(pb.ResizeCollectionRequest(name="docs", sizes=sizes))
    answers = []
    await read_all(resize, answers)
    assert kinds(answers[-1].collection) == [(16, False), (32, False), (FULL, False)]
    measured = await router.stub.GetCalibration(pb.GetCalibrationRequest(collection="docs"))
    calibration = measured.calibration
    assert (calibration.recall_target, calibration.limit) == (0.9, 5)
    assert {curve.size for curve in calibration.curves} == {"16", "32"}
