"""Promotion over one real process: judged, filled, switched and undone while searches go on."""

import asyncio
import contextlib
import json
from pathlib import Path

import grpc
import pytest

from services.shared.pb import encoder_pb2 as en
from services.shared.pb import encoder_pb2_grpc, router_pb2_grpc, trainer_pb2_grpc
from services.shared.pb import router_pb2 as rt
from services.shared.pb import trainer_pb2 as tr
from services.trainer.jobs.spec import RECORD
from tests.conftest import serve
from tests.trainer.conftest import make_tiny_model, make_tiny_pairs

ANYTHING = tr.Gate(max_drop=1.0, min_queries=1)


class World:
    """A served model, a collection in its space, and models trained from it."""

    def __init__(self, process, model):
        self.process, self.model = process, model
        self.versions = []

    @contextlib.asynccontextmanager
    async def stubs(self):
        async with grpc.aio.insecure_channel(self.process.grpc) as channel:
            yield (
                encoder_pb2_grpc.EncoderServiceStub(channel),
                router_pb2_grpc.RouterServiceStub(channel),
                trainer_pb2_grpc.TrainerServiceStub(channel),
            )

    async def fill(self):
        async with self.stubs() as (_, router, _):
            await router.CreateCollection(
                rt.CreateCollectionRequest(name="docs-1", model="default")
            )
            points = [
                rt.Point(id=str(i), text=pair.positive) for i, pair in enumerate(make_tiny_pairs())
            ]
            async for _ in router.Upsert(
                iter([rt.UpsertRequest(collection="docs-1", points=points)])
            ):
                pass
            await router.SetCollectionAlias(
                rt.SetCollectionAliasRequest(alias="docs", collection="docs-1")
            )

    async def train(self, seed):
        async with self.stubs() as (_, _, trainer):
            training = await upload(trainer, make_tiny_pairs()[:-12])
            held_out = await upload(trainer, make_tiny_pairs()[-12:])
            created = await trainer.CreateJob(
                tr.CreateJobRequest(
                    base_model=str(self.model),
                    training_file=training,
                    validation_file=held_out,
                    suffix="docs",
                    hyperparameters=tr.Hyperparameters(steps=3, matryoshka_dims=[8, 16], seed=seed),
                )
            )
            async for _ in trainer.WatchJob(tr.WatchJobRequest(id=created.job.id)):
                pass
            job = (await trainer.GetJob(tr.GetJobRequest(id=created.job.id))).job
        assert job.status == tr.JOB_STATUS_SUCCEEDED, job.error
        self.versions.append(job.model_id)

    async def served(self):
        """What answers: the encoder's default, the collection behind the alias, and its model."""
        async with self.stubs() as (encoder, router, _):
            model = (await encoder.GetModel(en.GetModelRequest(model="default"))).model.id
            found = await router.GetCollection(rt.GetCollectionRequest(name="docs"))
        return model, found.collection.name, found.collection.model

    async def loaded(self):
        async with self.stubs() as (encoder, _, _):
            answer = await encoder.ListModels(en.ListModelsRequest())
        return {model.id for model in answer.models}

    @contextlib.asynccontextmanager
    async def searched(self):
        """Search all the time in the block; not one may fail."""
        stop = asyncio.Event()
        failures, answered = [], []

        async def search(router):
            while not stop.is_set():
                try:
                    request = rt.SearchRequest(collection="docs", text="red cat sees")
                    answered.append((await router.Search(request)).collection)
                except grpc.aio.AioRpcError as error:
                    failures.append(error)
                await asyncio.sleep(0.01)

        async with self.stubs() as (_, router, _):
            searching = asyncio.create_task(search(router))
            try:
                yield answered
            finally:
                stop.set()
                await searching
        assert failures == []
        assert answered


async def upload(trainer, pairs):
    lines = [
        json.dumps({"anchor": pair.anchor, "positive": pair.positive, "slice": f"s{number % 2}"})
        for number, pair in enumerate(pairs)
    ]
    data = "\n".join(lines).encode()
    parts = [
        tr.UploadFileRequest(filename="pairs.jsonl"),
        tr.UploadFileRequest(data=data),
        tr.UploadFileRequest(num_bytes=len(data)),
    ]
    return (await trainer.UploadFile(iter(parts))).file_id


async def promote(world, version, **options):
    """Promote and return what it came to."""
    request = tr.PromoteRequest(
        version=version, encoder_alias="default", collections=["docs"], **options
    )
    async with world.stubs() as (_, _, trainer):
        states = [answer.promotion async for answer in trainer.Promote(request)]
    return states[-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promote")
    model = make_tiny_model(folder)
    process = serve(folder, "up", MATRYOSHKA_ENCODER_MODEL=str(model))
    made = World(process, model)

    async def prepare():
        await made.fill()
        await made.train(seed=1)
        await made.train(seed=2)

    try:
        asyncio.run(prepare())
        yield made
    finally:
        assert made.process.stop() == 0


async def test_a_version_is_judged_filled_switched_and_undone(world):
    """In this order; no search fails, and what was served before is served again."""
    first, second = world.versions
    before = await world.served()
    refused = await promote(
        world, first, gate=tr.Gate(max_drop=1.0, min_queries=1, dims=[9], slices=["nobody"])
    )
    assert refused.state == tr.PROMOTION_STATE_REFUSED
    assert "size 9 was not measured" in refused.reasons[0]
    assert "'nobody': 0 held-out queries are too few" in refused.reasons[1]
    assert await world.served() == before
    async with world.searched() as answered:
        done = await promote(world, first, gate=ANYTHING)
        assert done.state == tr.PROMOTION_STATE_DONE, done.error
        target = f"docs-{first.rpartition(':')[2]}"
        assert await world.served() == (first, target, first)
        assert done.previous == before[0]
        # The second is judged against the first now, which was measured on the same questions.
        held = await promote(world, second, gate=ANYTHING, hold=True, watch=True)
        assert held.state == tr.PROMOTION_STATE_READY, held.error
        assert {len(one.dims) for one in held.judged} == {3}
        again = await promote(world, second, gate=ANYTHING, hold=True, watch=True)
        assert again.id == held.id
        with pytest.raises(grpc.aio.AioRpcError, match="collection 'docs' is part of promotion"):
            await promote(world, second, gate=ANYTHING)
        assert (await world.served())[1] == target
        async with world.stubs() as (_, _, trainer):
            request = tr.CutOverPromotionRequest(id=held.id)
            switched = (await trainer.CutOverPromotion(request)).promotion
            assert switched.state == tr.PROMOTION_STATE_WATCHING, switched.error
            assert (await world.served())[::2] == (second, second)
            request = tr.DeleteVersionRequest(id=second)
            with pytest.raises(grpc.aio.AioRpcError, match="is part of promotion"):
                await trainer.DeleteVersion(request)
            request = tr.RollBackPromotionRequest(id=held.id)
            back = (await trainer.RollBackPromotion(request)).promotion
            assert back.state == tr.PROMOTION_STATE_ROLLED_BACK, back.error
            assert await world.served() == (first, target, first)
            assert await world.loaded() == {before[0], first}, "what was given up is unloaded"
            with pytest.raises(
                grpc.aio.AioRpcError, match="is rolled back; this is for one that is watching"
            ):
                await trainer.FinishPromotion(tr.FinishPromotionRequest(id=held.id))
    assert {"docs-1", target} <= set(answered)
    async with world.stubs() as (_, router, _):
        listed = await router.ListCollections(rt.ListCollectionsRequest())
        names = {one.name for one in listed.collections}
    assert names == {"docs-1", target}, "what was filled and given up is gone"


async def test_versions_are_told_compared_and_named(world):
    """Newest first; two of the same questions are compared per slice, before and after."""
    first, second = world.versions
    async with world.stubs() as (_, _, trainer):
        listed = (await trainer.ListVersions(tr.ListVersionsRequest())).versions
        assert [(one.id, one.version) for one in listed] == [(second, 2), (first, 1)]
        await trainer.SetVersionAlias(tr.SetVersionAliasRequest(alias="docs.live", id=first))
        found = (await trainer.GetVersion(tr.GetVersionRequest(id="docs.live"))).version
        assert (found.id, list(found.aliases)) == (first, ["docs.live"])
        answer = await trainer.CompareVersions(
            tr.CompareVersionsRequest(before="docs.live", after=second)
        )
        assert answer.slices[0].slice == ""
        assert {one.slice for one in answer.slices} == {"", "s0", "s1"}
        together, *parts = answer.slices
        assert together.num_queries == sum(one.num_queries for one in parts)
        for row, quality in zip(together.dims, listed[0].quality, strict=True):
            assert row.after.ndcg10 == pytest.approx(quality.after.ndcg10)
            assert row.change == pytest.approx(row.after.ndcg10 - row.before.ndcg10)
        with pytest.raises(grpc.aio.AioRpcError, match="alias 'docs.live' points at"):
            await trainer.DeleteVersion(tr.DeleteVersionRequest(id=first))
        await trainer.SetVersionAlias(tr.SetVersionAliasRequest(alias="docs.live"))
        with pytest.raises(grpc.aio.AioRpcError, match="no version or alias"):
            await trainer.GetVersion(tr.GetVersionRequest(id="docs.live"))


async def test_a_promotion_goes_on_after_a_kill(world):
    """kill -9 of everything in the middle: it is taken up where it was, and ends."""
    _, second = world.versions
    before = await world.served()
    request = tr.PromoteRequest(
        version=second, encoder_alias="default", collections=["docs"], gate=ANYTHING
    )
    async with world.stubs() as (_, _, trainer):
        async for answer in trainer.Promote(request):
            if answer.promotion.state >= tr.PROMOTION_STATE_LOADING:
                break
    world.process.kill()
    world.process.start()
    assert before[0] != second
    async with asyncio.timeout(60):
        while True:
            async with world.stubs() as (_, _, trainer):
                listed = (await trainer.ListPromotions(tr.ListPromotionsRequest())).promotions
            if listed[0].state not in (
                tr.PROMOTION_STATE_LOADING, tr.PROMOTION_STATE_MIGRATING,
                tr.PROMOTION_STATE_SWITCHING,
            ):  # fmt: skip
                break
            await asyncio.sleep(0.2)
    assert listed[0].state == tr.PROMOTION_STATE_DONE, listed[0].error
    assert (await world.served())[::2] == (second, second)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"version": "ft:no:such:00000000"}, "no version or alias"),
        ({"collections": [], "encoder_alias": ""}, "must name an encoder_alias, collections"),
        ({"collections": ["nothing"]}, "the router has no collection 'nothing'"),
        ({"collections": ["docs-1"]}, "must be named by aliases"),
        ({"gate": tr.Gate(max_drop=2.0)}, "gate.max_drop must be between 0 and 1"),
    ],
)
async def test_what_cannot_be_promoted_is_refused_at_once(world, fields, part):
    """One sentence says what would be accepted; nothing is noted."""
    values = {"version": world.versions[0], "collections": ["docs"], "encoder_alias": "default"}
    async with world.stubs() as (_, _, trainer):
        before = len((await trainer.ListPromotions(tr.ListPromotionsRequest())).promotions)
        with pytest.raises(grpc.aio.AioRpcError, match=part):
            async for _ in trainer.Promote(tr.PromoteRequest(**values | fields)):
                pass
        after = len((await trainer.ListPromotions(tr.ListPromotionsRequest())).promotions)
    assert before == after


async def test_a_version_goes_when_nothing_needs_it(world):
    """Not while a job learns from it; its weights and data go then, what was measured stays."""
    first, second = world.versions
    async with world.stubs() as (_, _, trainer):
        found = (await trainer.GetVersion(tr.GetVersionRequest(id=first))).version
        request = tr.CreateJobRequest(
            base_model=first,
            training_file=await upload(trainer, make_tiny_pairs()),
            hyperparameters=tr.Hyperparameters(steps=1_000_000),
        )
        waiting = (await trainer.CreateJob(request)).job.id
        with pytest.raises(grpc.aio.AioRpcError, match=f"{waiting}, which has not ended, learns"):
            await trainer.DeleteVersion(tr.DeleteVersionRequest(id=first))
        assert (Path(found.model_dir) / "model.safetensors").exists()
        await trainer.CancelJob(tr.CancelJobRequest(id=waiting))
        deleted = await trainer.DeleteVersion(tr.DeleteVersionRequest(id=first))
        assert deleted.freed_bytes > 0
        folder = Path(deleted.job_dir)
        assert folder == Path(found.model_dir).parent
        left = {path.name for path in folder.iterdir()}
        assert {"spec.json", "events.jsonl", "report.json", "scores-after.npy"} <= left <= RECORD
        listed = (await trainer.ListVersions(tr.ListVersionsRequest())).versions
        assert [one.id for one in listed] == [second]
        job = (await trainer.GetJob(tr.GetJobRequest(id=folder.name))).job
        assert job.quality
        with pytest.raises(grpc.aio.AioRpcError, match="base_model must be there; .* was deleted"):
            await trainer.CreateJob(request)
