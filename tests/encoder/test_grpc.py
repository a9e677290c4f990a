"""The encoder's gRPC contract, on a real server with the real model."""

import asyncio
import re
import shutil

import grpc
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from services.shared.folder import BASE_MODEL, DEFAULT_MODEL, locate
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve

TEXTS = ["nested dolls", "a prefix of a vector", "three services on one wire"]


@pytest.fixture
def stub(encoder_channel):
    return pb_grpc.EncoderServiceStub(encoder_channel)


def rows(vectors):
    return np.frombuffer(vectors.data, "<f4").reshape(-1, vectors.dim)


async def test_one_call_returns_every_size(stub):
    """Each size is the unit-length prefix of the full vector that sentence-transformers makes."""
    dims = [384, 32, 128]
    answer = await stub.Embed(pb.EmbedRequest(texts=TEXTS, dimensions=dims))
    assert [v.dim for v in answer.vectors] == dims
    assert answer.model == DEFAULT_MODEL
    assert len(answer.space_id) == 32
    assert all(n > 2 for n in answer.num_tokens)
    oracle = SentenceTransformer(str(locate(DEFAULT_MODEL)), local_files_only=True).encode(TEXTS)
    for vectors in answer.vectors:
        prefix = oracle[:, : vectors.dim]
        prefix = prefix / np.linalg.norm(prefix, axis=1, keepdims=True)
        np.testing.assert_allclose(np.linalg.norm(rows(vectors), axis=1), 1, atol=1e-6)
        assert (rows(vectors) * prefix).sum(1).min() > 0.999


async def test_truncate_dim_forgets_to_normalise_and_we_do_not(stub):
    """sentence-transformers' own cut is not unit length, so its dot products are not cosines."""
    cut = SentenceTransformer(
        str(locate(DEFAULT_MODEL)), local_files_only=True, truncate_dim=64
    ).encode(TEXTS)
    assert np.linalg.norm(cut, axis=1).max() < 0.9
    ours = rows((await stub.Embed(pb.EmbedRequest(texts=TEXTS, dimensions=[64]))).vectors[0])
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


async def test_undeclared_sizes_are_served_with_a_warning(stub):
    """The default policy neither refuses nor hides a size that the model does not promise."""
    answer = await stub.Embed(pb.EmbedRequest(texts=TEXTS, dimensions=[100, 384]))
    assert len(answer.warnings) == 1
    assert "100 of 384" in answer.warnings[0]
    assert not (await stub.Embed(pb.EmbedRequest(texts=TEXTS))).warnings


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (pb.EmbedRequest(), "INVALID_ARGUMENT", "1 to 2048 texts"),
        (pb.EmbedRequest(texts=["x"] * 2049), "INVALID_ARGUMENT", "1 to 2048 texts"),
        (pb.EmbedRequest(texts=["x", ""]), "INVALID_ARGUMENT", "input 1 must not be empty"),
        (pb.EmbedRequest(texts=["x"], dimensions=[0]), "INVALID_ARGUMENT", "between 1 and 384"),
        (pb.EmbedRequest(texts=["x"], dimensions=[385]), "INVALID_ARGUMENT", "between 1 and 384"),
        (
            pb.EmbedRequest(texts=["x"], model="gone"),
            "NOT_FOUND",
            "there are: default, matryoshka-MiniLM-L6-v2",
        ),
        (pb.EmbedRequest(texts=["x " * 300]), "INVALID_ARGUMENT", "302 tokens.*at most 256"),
        (pb.EmbedRequest(texts=["x " * 200] * 2000), "INVALID_ARGUMENT", "at most 300000 tokens"),
        (pb.EmbedRequest(texts=["x"], role=7), "INVALID_ARGUMENT", "ROLE_QUERY"),
    ],
)
async def test_wrong_requests_get_one_clear_sentence(stub, request_, code, message):
    """Each is refused before any forward pass, with what would be accepted."""
    with pytest.raises(grpc.aio.AioRpcError, match=f"(?s)StatusCode.{code}.*{message}"):
        await stub.Embed(request_)


async def test_truncation_is_on_request_and_told(stub):
    """A text that is cut is named, and its vector is that of its beginning."""
    long = "word " * 300
    answer = await stub.Embed(pb.EmbedRequest(texts=["x", long], truncation=pb.TRUNCATION_END))
    assert list(answer.truncated) == [1]
    assert answer.num_tokens[1] == 256
    start = await stub.Embed(pb.EmbedRequest(texts=["word " * 254]))
    np.testing.assert_allclose(rows(answer.vectors[0])[1], rows(start.vectors[0])[0], atol=0.01)


async def test_many_callers_at_once_get_their_own_vectors(stub):
    """Batches mix callers, never their answers."""
    texts = [f"text number {i} " + "pad " * (i % 20) for i in range(60)]
    answers = await asyncio.gather(*(stub.Embed(pb.EmbedRequest(texts=[t])) for t in texts))
    alone = rows((await stub.Embed(pb.EmbedRequest(texts=texts))).vectors[0])
    together = np.concatenate([rows(a.vectors[0]) for a in answers])
    assert (alone * together).sum(1).min() > 0.999


async def test_a_cancelled_call_leaves_the_server_well(stub):
    """A caller that departs is dropped; the next one is served."""
    call = stub.Embed(pb.EmbedRequest(texts=["x " * 200] * 300))
    await asyncio.sleep(0.05)
    call.cancel()
    assert (await stub.Embed(pb.EmbedRequest(texts=["x"]), timeout=20)).vectors


async def test_get_model_tells_what_it_serves(stub):
    """Id, space, width and the measured engine; no card, so no declared sizes."""
    answer = await stub.GetModel(pb.GetModelRequest())
    assert answer.model.id == DEFAULT_MODEL
    assert answer.model.dim == 384
    assert answer.model.max_tokens == 256
    assert answer.model.engine.startswith("packed ")
    assert "default" in answer.model.aliases
    assert answer.card_json == ""


async def test_a_model_is_swapped_without_a_restart_and_survives_one(tmp_path):
    """Load, alias, unload while serving; after a restart the same models and names are there."""
    folder = tmp_path / "second"
    shutil.copytree(locate(BASE_MODEL), folder)
    (folder / "special_tokens_map.json").write_text("{}")  # other recipe, other space
    process = serve(tmp_path, "serve", "encoder")
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            loaded = await stub.LoadModel(pb.LoadModelRequest(source=str(folder)))
            assert loaded.model.id == "second"
            await stub.LoadModel(pb.LoadModelRequest(source=str(folder)))
            await stub.SetAlias(pb.SetAliasRequest(alias="default", model="second"))
            answer = await stub.Embed(pb.EmbedRequest(texts=["x"]))
            assert (answer.model, answer.space_id) == ("second", loaded.model.space_id)
            with pytest.raises(grpc.aio.AioRpcError, match="default points at"):
                await stub.UnloadModel(pb.UnloadModelRequest(id="second"))
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await stub.SetAlias(pb.SetAliasRequest(alias="a", model="gone"))
        process.kill()
        process.start()
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            assert (await stub.Embed(pb.EmbedRequest(texts=["x"]))).model == "second"
            await stub.SetAlias(pb.SetAliasRequest(alias="default", model=DEFAULT_MODEL))
            await stub.UnloadModel(pb.UnloadModelRequest(id="second"))
            models = (await stub.ListModels(pb.ListModelsRequest())).models
            assert [m.id for m in models] == [DEFAULT_MODEL]
            with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION|INVALID_ARGUMENT"):
                await stub.LoadModel(pb.LoadModelRequest(source=str(tmp_path / "none")))
    finally:
        assert process.stop() == 0


async def test_strict_models_serve_their_full_size_only(tmp_path):
    """With the strict policy a model without a card refuses every cut, never its full size."""
    process = serve(tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_UNDECLARED_DIMENSIONS="strict")
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            await stub.Embed(pb.EmbedRequest(texts=["x"], dimensions=[384]))
            with pytest.raises(grpc.aio.AioRpcError, match="one of 384"):
                await stub.Embed(pb.EmbedRequest(texts=["x"], dimensions=[64]))
    finally:
        process.stop()


async def test_health_and_reflection_are_standard(encoder_channel):
    """Probes and grpcurl work without anything of ours."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    health = health_pb2_grpc.HealthStub(encoder_channel)
    check = health_pb2.HealthCheckRequest(service="matryoshka.v1.EncoderService")
    assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(encoder_channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="*")
    async for answer in reflection.ServerReflectionInfo(iter([ask])):
        names = {service.name for service in answer.list_services_response.service}
    assert "matryoshka.v1.EncoderService" in names


async def test_a_text_is_known_to_the_tenant_that_sent_it_only(stub, http_client):
    """On both wires: what one has sent is there no sooner for another, or for an operator."""

    def num_hits():
        page = http_client.get("/metrics").text
        found = re.search(r'cache_requests_total\{result="hit"\} (\S+)', page)
        return float(found[1]) if found else 0.0

    async def send(tenant, wire):
        before = num_hits()
        text, headers = "known to one", {} if tenant is None else {"x-matryoshka-tenant": tenant}
        request = pb.EmbedRequest(texts=[text])
        if wire == "http":
            body = {"model": "default", "input": text}
            assert http_client.post("/v1/embeddings", json=body, headers=headers).is_success
        elif wire == "stream":
            call = stub.EmbedStream(
                iter([pb.EmbedStreamRequest(embed=request)]), metadata=tuple(headers.items())
            )
            assert [answer async for answer in call]
        else:
            await stub.Embed(request, metadata=tuple(headers.items()))
        return num_hits() - before

    assert await send("acme", "grpc") == 0
    for wire in ("grpc", "stream", "http"):
        assert await send("acme", wire) == 1
    assert await send("globex", "http") == 0
    assert await send(None, "stream") == 0
    for tenant in ("acme", "globex", None):
        assert await send(tenant, "grpc") == 1
