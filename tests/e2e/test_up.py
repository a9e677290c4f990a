"""One process, one base URL: an OpenAI SDK and gRPC against `matryoshka up`."""

import grpc
import httpx
import openai
import pytest

from services.shared.pb import router_pb2 as rt
from services.shared.pb import router_pb2_grpc, trainer_pb2_grpc
from services.shared.pb import trainer_pb2 as tr
from tests.conftest import serve


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    started = serve(
        tmp_path_factory.mktemp("up"), "up",
        MATRYOSHKA_UP_MAX_BODY_BYTES="5000", MATRYOSHKA_ENCODER_MAX_BODY_BYTES="1000000",
    )  # fmt: skip
    yield started
    assert started.stop() == 0


def test_one_base_url_serves_an_openai_sdk(process):
    """The official client needs nothing but the URL."""
    with openai.OpenAI(base_url=f"{process.http}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="default", input="nested dolls", dimensions=64)
    assert len(answer.data[0].embedding) == 64


def test_probes_and_metrics_cover_all_services(process):
    """One process is live and ready as a whole, and shows everyone's metrics."""
    assert httpx.get(f"{process.http}/livez").text == "ok"
    assert httpx.get(f"{process.http}/readyz").status_code == 200
    metrics = httpx.get(f"{process.http}/metrics").text
    for service in ("encoder", "router", "trainer"):
        assert f"matryoshka_{service}_requests_total" in metrics


def test_the_processes_own_bounds_hold_for_its_services(process):
    """A body's bound is the one that was set for `up`, whatever the encoder's own says."""
    for length, status in ((4000, 200), (6000, 413)):
        body = {"model": "default", "input": "x" * length}
        answer = httpx.post(f"{process.http}/v1/embeddings", json=body, timeout=30)
        assert answer.status_code == status, answer.text


def test_every_service_has_its_rpcs_on_the_http_port(process):
    """By the Connect protocol, each to its own service."""
    for rpc in ("EncoderService/ListModels", "RouterService/ListCollections",
                "TrainerService/ListJobs"):  # fmt: skip
        answer = httpx.post(f"{process.http}/matryoshka.v1.{rpc}", json={}, timeout=30)
        assert answer.status_code == 200, answer.text
        assert ("models" in answer.json()) == (rpc == "EncoderService/ListModels")


async def test_router_and_trainer_answer_on_the_same_grpc_port(process):
    """Texts go in and come out through the router, which calls the encoder beside it."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        await router.CreateCollection(rt.CreateCollectionRequest(name="notes", model="default"))
        points = [
            rt.Point(
                id=f"n{i}", text=text, attributes={"year": rt.AttributeValue(int_value=2000 + i)}
            )
            for i, text in enumerate(["nested wooden dolls", "a recipe for soup", "vector search"])
        ]
        answers = router.Upsert(iter([rt.UpsertRequest(collection="notes", points=points)]))
        assert [a.num_points async for a in answers] == [3]
        found = await router.Search(rt.SearchRequest(collection="notes", text="russian dolls"))
        assert found.hits[0].id == "n0"
        late = rt.Filter(range=rt.Range(key="year", gte=2001))
        found = await router.Search(
            rt.SearchRequest(collection="notes", text="russian dolls", filter=late)
        )
        assert {hit.id for hit in found.hits} == {"n1", "n2"}
        jobs = await trainer_pb2_grpc.TrainerServiceStub(channel).ListJobs(tr.ListJobsRequest())
        assert list(jobs.jobs) == []


async def test_router_and_trainer_see_the_same_files(process):
    """An upload over HTTP trains over gRPC, what a job makes is listed, one deletion is for all."""
    line = '{"anchor": "question %s", "positive": "answer %s"}\n'
    data = "".join(line % (i, i) for i in range(20)).encode()
    async with (
        openai.AsyncOpenAI(base_url=f"{process.http}/v1", api_key="none") as client,
        grpc.aio.insecure_channel(process.grpc) as channel,
    ):
        trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
        file = await client.files.create(file=("pairs.jsonl", data), purpose="fine-tune")
        asked = tr.CreateJobRequest(
            training_file=file.id, hyperparameters=tr.Hyperparameters(steps=2)
        )
        job = (await trainer.CreateJob(asked)).job
        async for _ in trainer.WatchJob(tr.WatchJobRequest(id=job.id)):
            pass
        ended = await client.fine_tuning.jobs.retrieve(job.id)
        made = {one.id async for one in client.files.list(purpose="fine-tune-results")}
        assert made == set(ended.result_files) != set()
        await trainer.DeleteFile(tr.DeleteFileRequest(file_id=file.id))
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        by_grpc = tr.UploadFileRequest(filename="b.jsonl"), tr.UploadFileRequest(data=data)
        parts = iter([*by_grpc, tr.UploadFileRequest(num_bytes=len(data))])
        other = (await trainer.UploadFile(parts)).file_id
        assert (await client.files.retrieve(other)).purpose == "fine-tune"
        assert (await client.files.delete(other)).deleted
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await trainer.CreateJob(tr.CreateJobRequest(training_file=other))


async def test_what_was_written_is_there_after_a_kill(tmp_path):
    """kill -9 of the whole process loses nothing that it had acknowledged."""
    process = serve(tmp_path, "up")
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            router = router_pb2_grpc.RouterServiceStub(channel)
            await router.CreateCollection(rt.CreateCollectionRequest(name="kept", model="default"))
            batch = rt.UpsertRequest(
                collection="kept", points=[rt.Point(id=str(i), text=f"text {i}") for i in range(50)]
            )
            async for answer in router.Upsert(iter([batch])):
                assert answer.num_points == 50
        process.kill()
        process.start()
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            router = router_pb2_grpc.RouterServiceStub(channel)
            kept = await router.GetCollection(rt.GetCollectionRequest(name="kept"))
            assert kept.collection.num_points == 50
            found = await router.Search(rt.SearchRequest(collection="kept", text="text 7", limit=3))
            assert "7" in {hit.id for hit in found.hits}
    finally:
        process.stop()
