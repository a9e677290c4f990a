"""Scores over both wires, from a real encoder that serves a cross-encoder beside an embedder."""

import asyncio
import json

import grpc
import httpx
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from sentence_transformers import CrossEncoder as Oracle

from services.encoder.admission import Admission
from services.encoder.metrics import EncoderMetrics
from services.encoder.models import Models
from services.encoder.rerank import Reranker, RerankInput
from services.encoder.settings import EncoderSettings
from services.encoder.threads import Threads
from services.shared.errors import InvalidRequest, Overloaded
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve
from tests.encoder.test_openapi import problems, schema_of
from tests.families import checkpoints
from tests.families import cross_encoder_checkpoints as pairs

QUERY = "what is the nested vector?"
DOCUMENTS = [
    "the prefix of a vector", "a", "a document that is far too long " * 100, "question and answer",
    "the window of attention",
]  # fmt: skip
LONG = [f"{number} a long document of the nested kind " * 20 for number in range(200)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small embedder and a small cross-encoder, of random weights."""
    root = tmp_path_factory.mktemp("rerank")
    torch.manual_seed(0)
    for name, write in (("embedder", checkpoints.gte_bert), ("judge", pairs.bge_reranker)):
        (root / name).mkdir()
        write(root / name)
    return root


@pytest.fixture(scope="module")
def process(folders):
    """An encoder that starts with the embedder; the queue holds few tokens."""
    started = serve(
        folders, "serve", "encoder",
        MATRYOSHKA_ENCODER_MODEL=str(folders / "embedder"),
        MATRYOSHKA_ENCODER_PRECISION="float32",
        MATRYOSHKA_ENCODER_MAX_TEXTS="300",
        MATRYOSHKA_ENCODER_MAX_QUEUED_TOKENS="60000",
    )  # fmt: skip
    with grpc.insecure_channel(started.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        loaded = stub.LoadModel(pb.LoadModelRequest(source=str(folders / "judge")))
        assert loaded.model.kind == pb.MODEL_KIND_CROSS_ENCODER
    yield started
    assert started.stop() == 0


@pytest.fixture
async def stub(process):
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        yield pb_grpc.EncoderServiceStub(channel)


@pytest.fixture
def client(process):
    with httpx.Client(base_url=process.http, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def oracle(folders):
    """Scores as sentence-transformers gives them."""
    model = Oracle(str(folders / "judge"), local_files_only=True, device="cpu")
    return lambda query, documents: model.predict([(query, text) for text in documents])


async def test_scores_follow_the_order_of_the_documents(stub, oracle):
    """One for each, those of the library, with the tokens read and which were cut."""
    request = pb.RerankRequest(model="judge", query=QUERY, documents=DOCUMENTS)
    answer = await stub.Rerank(request)
    np.testing.assert_allclose(answer.scores, oracle(QUERY, DOCUMENTS), atol=2e-6)
    assert answer.model == "judge"
    assert list(answer.truncated) == [2]
    assert answer.num_tokens[2] == 512 > answer.num_tokens[0] > answer.num_tokens[1] > 5


async def test_many_callers_at_once_get_their_own_scores(stub, oracle):
    """Batches mix callers and lanes, and embeddings go on beside them."""
    queries = [f"{QUERY} {number}" for number in range(30)]
    lanes = [pb.PRIORITY_UNSPECIFIED, pb.PRIORITY_INTERACTIVE, pb.PRIORITY_BULK]
    calls = [
        stub.Rerank(
            pb.RerankRequest(
                model="judge", query=query, documents=DOCUMENTS[:2], priority=lanes[row % 3]
            )
        )
        for row, query in enumerate(queries)
    ]
    embeds = [stub.Embed(pb.EmbedRequest(texts=[query])) for query in queries]
    answers, _ = await asyncio.gather(asyncio.gather(*calls), asyncio.gather(*embeds))
    for query, answer in zip(queries, answers, strict=True):
        np.testing.assert_allclose(answer.scores, oracle(query, DOCUMENTS[:2]), atol=2e-6)


async def test_a_model_says_which_kind_it_is(stub, client):
    """Over both wires: a cross-encoder has no dimensions and no card."""
    listed = {model.id: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}
    judge, embedder = listed["judge"], listed["embedder"]
    assert (judge.kind, judge.dim, judge.max_tokens) == (pb.MODEL_KIND_CROSS_ENCODER, 0, 512)
    assert (embedder.kind, embedder.dim) == (pb.MODEL_KIND_EMBEDDER, 32)
    assert judge.memory_bytes > 0
    assert judge.engine == "packed float32"
    told = await stub.GetModel(pb.GetModelRequest(model="judge"))
    assert (told.model, told.card_json, list(told.trials)) == (judge, "", [])
    document = client.get("/openapi.json").json()
    for name, kind in (("judge", "cross_encoder"), ("embedder", "embedder")):
        answer = client.get(f"/v1/models/{name}").json()
        assert answer["matryoshka"]["kind"] == kind
        schema = schema_of(document, "get", "/v1/models/{model}", 200)
        assert problems(answer, schema, document) == []


async def test_each_kind_refuses_the_others_work(stub, client):
    """One sentence each, which names where to go instead."""
    embed = pb.EmbedRequest(model="judge", texts=["x"])
    with pytest.raises(grpc.aio.AioRpcError, match="'judge' is a cross-encoder.*: embedder"):
        await stub.Embed(embed)
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT.*'judge' is a cross-encoder"):
        await stub.EmbedStream(iter([pb.EmbedStreamRequest(embed=embed)])).read()
    with pytest.raises(grpc.aio.AioRpcError, match="'judge' is a cross-encoder"):
        await stub.GetHead(pb.GetHeadRequest(model="judge"))
    with pytest.raises(grpc.aio.AioRpcError, match="'embedder' makes vectors.*there are: judge"):
        await stub.Rerank(pb.RerankRequest(query=QUERY, documents=["x"]))
    body = {"model": "judge", "input": "x"}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"documents": []}, "INVALID_ARGUMENT", "documents must have 1 to 300 texts, got 0"),
        ({"documents": ["x"] * 301}, "INVALID_ARGUMENT", "1 to 300 texts, got 301"),
        ({"documents": ["x", ""]}, "INVALID_ARGUMENT", "document 1 must not be empty"),
        ({"query": ""}, "INVALID_ARGUMENT", "query must not be empty"),
        ({"query": "x" * 20_000, "documents": ["x"] * 101}, "INVALID_ARGUMENT", "2000000 chara"),
        ({"model": "gone"}, "NOT_FOUND", "there are: default, embedder, judge"),
        ({"priority": 7}, "INVALID_ARGUMENT", "PRIORITY_BULK"),
    ],
)
async def test_wrong_requests_get_one_clear_sentence(stub, change, code, message):
    """Each is refused before any forward pass, with what would be accepted."""
    fields = {"model": "judge", "query": QUERY, "documents": ["x"]} | change
    with pytest.raises(grpc.aio.AioRpcError, match=f"(?s)StatusCode.{code}.*{message}"):
        await stub.Rerank(pb.RerankRequest(**fields))


def test_http_answers_the_best_first(client, oracle):
    """Every result says which document it is of; the texts come on request."""
    body = {"model": "judge", "query": QUERY, "documents": DOCUMENTS}
    scores = oracle(QUERY, DOCUMENTS)
    best = np.argsort(-scores).tolist()
    answer = client.post("/v1/rerank", json=body).json()
    assert [result["index"] for result in answer["results"]] == best
    told = [result["relevance_score"] for result in answer["results"]]
    np.testing.assert_allclose(told, scores[best], atol=2e-6)
    assert all("document" not in result for result in answer["results"])
    assert answer["model"] == "judge"
    assert answer["usage"]["total_tokens"] > 512
    assert answer["matryoshka"]["truncated"] == [2]

    objects = [{"text": text} for text in DOCUMENTS[:3]] + DOCUMENTS[3:]
    body |= {"documents": objects, "top_n": 2, "return_documents": True}
    fewer = client.post("/v1/rerank", json=body).json()
    assert [result["index"] for result in fewer["results"]] == best[:2]
    texts = [result["document"]["text"] for result in fewer["results"]]
    assert texts == [DOCUMENTS[row] for row in best[:2]]
    assert fewer["usage"] == answer["usage"]


def good(**change):
    return {"model": "judge", "query": "x", "documents": ["y"]} | change


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (good(query=""), 400, "query", "query must not be empty"),
        (good(query=["x"]), 400, "query", "query must be a string"),
        (good(query="\ud800"), 400, "query", "valid Unicode"),
        (good(documents="y"), 400, "documents", "an array of strings or of"),
        (good(documents=[]), 400, "documents", "1 to 300 texts"),
        (good(documents=["y", 1]), 400, "documents", "an array of strings or of"),
        (good(documents=[{"text": "y", "id": 1}]), 400, "documents", '{"text": "..."} objects'),
        (good(documents=[{}]), 400, "documents", '{"text": "..."} objects'),
        (good(documents=["y", ""]), 400, "documents", "document 1 must not be empty"),
        (good(documents=["\udfff"]), 400, "documents", "document 0 must be valid Unicode"),
        (good(top_n=0), 400, "top_n", "positive integer"),
        (good(top_n=True), 400, "top_n", "positive integer"),
        (good(top_n="2"), 400, "top_n", "positive integer"),
        (good(return_documents=1), 400, "return_documents", "true or false"),
        (good(texts=["y"]), 400, "texts", "the fields are: model, query, documents"),
        (good(model="gone"), 404, "model", "not loaded"),
        (good(model="embedder"), 400, "model", "makes vectors"),
        ({"model": "judge", "query": "x"}, 400, "documents", "you must provide 'documents'"),
        ([], 400, None, "JSON object"),
    ],
)
def test_every_wrong_field_gets_openais_error(client, body, status, param, message):
    """As on the other routes: all four keys, the field, and what is accepted."""
    answer = client.post("/v1/rerank", content=json.dumps(body))
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    "change",
    [{}, {"return_documents": True, "top_n": 1}, {"top_n": 99}, {"query": ""}, {"model": "gone"}],
)
def test_answers_are_as_documented(client, change):
    """Good and bad requests: the status is listed and the body has its schema."""
    document = client.get("/openapi.json").json()
    answer = client.post("/v1/rerank", json=good(**change))
    schema = schema_of(document, "post", "/v1/rerank", answer.status_code)
    assert problems(answer.json(), schema, document) == []


async def test_what_is_too_much_is_refused(stub, process):
    """Of a crowd at once some are scored and the others told when to try again."""
    request = pb.RerankRequest(model="judge", query=QUERY, documents=LONG[:150])
    calls = [stub.Rerank(request) for _ in range(12)]
    codes = await asyncio.gather(*(call.code() for call in calls))
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    refused = await calls[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)].trailing_metadata()
    assert int(dict(refused)["retry-after"]) >= 1
    async with httpx.AsyncClient(base_url=process.http, timeout=30) as client:
        await idle(client)
        assert (await client.post("/v1/rerank", json=good())).status_code == 200


async def test_work_for_a_caller_who_is_gone_is_dropped(stub, process):
    """Cancelled or over its deadline: what waited for it is freed, and the encoder goes on."""
    request = pb.RerankRequest(model="judge", query=QUERY, documents=LONG)
    async with httpx.AsyncClient(base_url=process.http, timeout=30) as client:
        call = stub.Rerank(request)
        await asyncio.sleep(0.05)
        call.cancel()
        await idle(client)
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await stub.Rerank(request, timeout=0.05)
        await idle(client)
    assert (await stub.Rerank(pb.RerankRequest(model="judge", query="x", documents=["y"]))).scores


async def idle(client):
    """Wait until nothing waits or runs."""
    for _ in range(100):
        page = (await client.get("/metrics")).text
        lines = [x for x in page.splitlines() if x.startswith("matryoshka_encoder_queued_tokens{")]
        if lines and all(line.endswith(" 0.0") for line in lines):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(lines)


@pytest.fixture
async def inside(folders, tmp_path):
    """A reranker in this process, with the door that it stands behind."""
    settings = EncoderSettings(
        data_dir=tmp_path, model=str(folders / "judge"), precision="float32", device="cpu",
        max_request_tokens=5000,
    )  # fmt: skip
    registry = CollectorRegistry()
    metrics = EncoderMetrics(registry)
    models, threads = Models(settings, metrics), Threads(1)
    admission = Admission(1000.0, 1000.0, 10_000, metrics)
    await models.start()
    yield Reranker(models, admission, threads, settings, metrics), admission, models, registry
    await models.close()
    threads.close()


async def test_the_door_knows_what_a_request_will_take(inside):
    """From its characters before it is read, and from its tokens after; what is late is refused."""
    reranker, admission, models, registry = inside
    batcher = models.get("judge").batcher

    def num_read():
        stage = {"stage": "tokenize"}
        return registry.get_sample_value("matryoshka_encoder_stage_seconds_count", stage) or 0

    with admission.enter(batcher, "interactive", 9_900):
        with pytest.raises(Overloaded, match="at most 10000 tokens may wait"):
            await reranker.rerank(RerankInput("judge", QUERY, ["a word or two " * 20] * 2))
        assert num_read() == 0
        # Four characters are estimated as a token, and are two words here.
        with pytest.raises(Overloaded, match="at most 10000 tokens may wait"):
            await reranker.rerank(RerankInput("judge", "x", ["q " * 60] * 2))
        assert num_read() == 1
        assert (await reranker.rerank(RerankInput("judge", "x", ["y"]))).scores
        with pytest.raises(Overloaded, match="your deadline is in 0.0 s"):
            await reranker.rerank(RerankInput("judge", "x", ["y"], remaining_s=1e-6))
    assert admission.tokens() == 0


async def test_too_many_tokens_are_refused(inside):
    """The query's are counted with each document."""
    reranker, *_ = inside
    wanted = RerankInput("judge", "a b c " * 20, ["x"] * 100)
    with pytest.raises(InvalidRequest, match="at most 5000 tokens.*query counted with each"):
        await reranker.rerank(wanted)


async def test_pairs_are_counted(stub, client):
    """Documents and tokens, and the model's own operations."""

    def shown(name):
        lines = client.get("/metrics").text.splitlines()
        return float(next((x.split()[-1] for x in lines if x.startswith(name)), 0))

    names = ["matryoshka_encoder_pairs_total", "matryoshka_encoder_tokens_total",
             'matryoshka_encoder_forward_flops_total{model="judge"}']  # fmt: skip
    before = [shown(name) for name in names]
    request = pb.RerankRequest(model="judge", query=QUERY, documents=DOCUMENTS)
    answer = await stub.Rerank(request)
    pairs_, tokens, flops = (shown(n) - b for n, b in zip(names, before, strict=True))
    assert (pairs_, tokens) == (len(DOCUMENTS), sum(answer.num_tokens))
    assert flops > 0


async def test_a_cross_encoder_is_loaded_named_and_unloaded_like_any_model(folders, tmp_path):
    """By alias and across a kill; refusals of folders come over the wire in one sentence."""
    process = serve(
        tmp_path, "serve", "encoder",
        MATRYOSHKA_ENCODER_MODEL=str(folders / "embedder"),
        MATRYOSHKA_ENCODER_PRECISION="float32",
    )  # fmt: skip
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            source = str(folders / "judge")
            for _ in range(2):  # the same again is harmless
                await stub.LoadModel(pb.LoadModelRequest(source=source, id="second"))
            await stub.SetAlias(pb.SetAliasRequest(alias="reranker", model="second"))
            (tmp_path / "many").mkdir()
            pairs.bert(tmp_path / "many", num_labels=2)
            with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT.*has 2 labels"):
                await stub.LoadModel(pb.LoadModelRequest(source=str(tmp_path / "many")))
        process.kill()
        process.start()
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            request = pb.RerankRequest(model="reranker", query=QUERY, documents=["x"])
            assert (await stub.Rerank(request)).model == "second"
            gauge = 'matryoshka_encoder_flops_utilization_ratio{model="second"}'
            assert gauge in httpx.get(f"{process.http}/metrics").text
            with pytest.raises(grpc.aio.AioRpcError, match="reranker points at"):
                await stub.UnloadModel(pb.UnloadModelRequest(id="second"))
            await stub.SetAlias(pb.SetAliasRequest(alias="reranker", model="embedder"))
            await stub.UnloadModel(pb.UnloadModelRequest(id="second"))
            with pytest.raises(grpc.aio.AioRpcError, match="name a cross-encoder, none is loaded"):
                await stub.Rerank(request)
            assert gauge not in httpx.get(f"{process.http}/metrics").text
    finally:
        assert process.stop() == 0
