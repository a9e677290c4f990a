"""The whole path over three real processes: encode, index, search, train, swap, and survive."""

import asyncio
import json
import re
import urllib.request

import grpc
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from services.cli.corpus import read_corpus
from services.shared.pb import encoder_pb2 as en
from services.shared.pb import encoder_pb2_grpc, router_pb2_grpc, trainer_pb2_grpc
from services.shared.pb import router_pb2 as rt
from services.shared.pb import trainer_pb2 as tr
from tests.conftest import serve

NUM_DOCUMENTS = 300


@pytest.fixture(scope="module")
def documents():
    return read_corpus(None, NUM_DOCUMENTS)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Encoder, router and trainer, each a process of its own."""
    folder = tmp_path_factory.mktemp("services")
    started = [encoder := serve(folder, "serve", "encoder")]
    try:
        started.append(
            serve(folder, "serve", "router", MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder.grpc)
        )
        started.append(serve(folder, "serve", "trainer"))
        yield started
    finally:
        codes = [process.stop() for process in reversed(started)]
    assert codes == [0, 0, 0]


@pytest.fixture
async def stubs(processes):
    encoder, router, trainer = (grpc.aio.insecure_channel(process.grpc) for process in processes)
    yield (
        encoder_pb2_grpc.EncoderServiceStub(encoder),
        router_pb2_grpc.RouterServiceStub(router),
        trainer_pb2_grpc.TrainerServiceStub(trainer),
    )
    for channel in (encoder, router, trainer):
        await channel.close()


def num_encoded(process):
    """Texts that an encoder has really encoded."""
    with urllib.request.urlopen(f"{process.http}/metrics") as answer:
        text = answer.read().decode()
    return float(re.search(r"^matryoshka_encoder_texts_total (\S+)$", text, re.MULTILINE)[1])


def upload(documents):
    lines = "".join(json.dumps({"anchor": d.title, "positive": d.body}) + "\n" for d in documents)
    data = lines.encode()
    yield tr.UploadFileRequest(filename="pairs.jsonl")
    yield tr.UploadFileRequest(data=data)
    yield tr.UploadFileRequest(num_bytes=len(data))


async def test_train_and_swap_without_a_failed_query(processes, stubs, documents):
    """Index, search, train an adaptor, rebuild and flip while searches go on: none fails."""
    encoder, router, trainer = stubs
    sizes = [rt.Size(dim=32), rt.Size(dim=96, quantization=rt.QUANTIZATION_INT8)]
    await router.CreateCollection(
        rt.CreateCollectionRequest(name="docs-1", model="default", sizes=sizes)
    )
    points = [rt.Point(id=d.id, text=d.text) for d in documents]
    batches = [
        rt.UpsertRequest(collection="docs-1", points=points[i : i + 100])
        for i in range(0, len(points), 100)
    ]
    answers = [answer async for answer in router.Upsert(iter(batches))]
    assert [a.total_points for a in answers] == [100, 200, 300]
    await router.SetCollectionAlias(rt.SetCollectionAliasRequest(alias="docs", collection="docs-1"))

    def search(text, **options):
        return router.Search(rt.SearchRequest(collection="docs", text=text, **options))

    # A plan that hands every point to the rerank is exact search.
    everything = rt.Plan(
        stages=[rt.Stage(dim=32, candidates=NUM_DOCUMENTS, exact=True), rt.Stage(dim=384)]
    )
    answer = await search(documents[7].text, plan=everything, explain=True, measure_recall=True)
    assert answer.hits[0].id == documents[7].id
    assert answer.hits[0].score > 0.99
    assert answer.recall == 1.0
    assert [stage.candidates for stage in answer.stages] == [NUM_DOCUMENTS, 10]

    file = await trainer.UploadFile(upload(documents))
    created = await trainer.CreateJob(
        tr.CreateJobRequest(
            training_file=file.file_id,
            hyperparameters=tr.Hyperparameters(steps=20, matryoshka_dims=[32, 96]),
            suffix="docs",
        )
    )
    phases = [
        answer.event.phase
        async for answer in trainer.WatchJob(tr.WatchJobRequest(id=created.job.id))
    ]
    assert {"encode", "train", "evaluate"} <= set(phases)
    job = (await trainer.GetJob(tr.GetJobRequest(id=created.job.id))).job
    assert job.status == tr.JOB_STATUS_SUCCEEDED, job.error
    assert job.plot_png.startswith(b"\x89PNG")

    failures, answered_by, asked = [], set(), []
    stop = asyncio.Event()

    async def keep_searching():
        while not stop.is_set():
            asked.append(None)
            try:
                answer = await search("a function that returns a list")
                answered_by.add(answer.collection)
                assert len(answer.hits) == 10
            except (grpc.aio.AioRpcError, AssertionError) as error:
                failures.append(error)
            await asyncio.sleep(0.01)

    searching = asyncio.create_task(keep_searching())
    loaded = await encoder.LoadModel(en.LoadModelRequest(source=job.model_dir))
    request = rt.MigrateCollectionRequest(
        source="docs", target="docs-2", model=loaded.model.id, alias="docs"
    )
    before = num_encoded(processes[0]) - len(asked)
    steps = [answer async for answer in router.MigrateCollection(request)]
    assert steps[-1].collection.num_points == len(documents)
    documents_encoded = num_encoded(processes[0]) - len(asked) - before
    assert documents_encoded < 5, "a head is applied to vectors, not to texts"
    await asyncio.sleep(0.3)
    stop.set()
    await searching
    assert failures == []
    assert answered_by == {"docs-1", "docs-2"}

    after = await search(documents[7].text, plan=everything, measure_recall=True)
    assert after.space_id == loaded.model.space_id != answer.space_id
    assert after.hits[0].id == documents[7].id
    # The rotation keeps every full-size score; bfloat16 moves the two sides by its rounding.
    assert abs(after.hits[0].score - answer.hits[0].score) < 0.01
    # The encoder serves what plain sentence-transformers makes of the folder.
    oracle = SentenceTransformer(job.model_dir, local_files_only=True)
    served = await encoder.Embed(en.EmbedRequest(model=loaded.model.id, texts=["x y z"]))
    vector = np.frombuffer(served.vectors[0].data, "<f4")
    assert float(vector @ oracle.encode("x y z")) > 0.999
    # The card's sizes are now the only ones served.
    with pytest.raises(grpc.aio.AioRpcError, match="one of 32, 96, 384"):
        await encoder.Embed(en.EmbedRequest(model=loaded.model.id, texts=["x"], dimensions=[64]))


async def test_vectors_of_two_spaces_never_meet(stubs, documents):
    """A vector of another space is an error, not a bad result."""
    encoder, router, _ = stubs
    embedded = await encoder.Embed(en.EmbedRequest(texts=["x"]))
    await router.CreateCollection(rt.CreateCollectionRequest(name="mine", model="default"))
    request = rt.SearchRequest(
        collection="mine", vector=embedded.vectors[0].data, space_id="0" * 32
    )
    with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION"):
        await router.Search(request)
    request.space_id = embedded.space_id
    assert list((await router.Search(request)).hits) == []
