"""What OpenAI lacks, on a running encoder: many sizes, dtypes, automatic sizes, the cache."""

import base64
import re

import grpc
import httpx
import numpy as np
import openai
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve

NUMPY = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
PB = {"float": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "binary": "BINARY"}
PB |= {"ubinary": "UBINARY"}


def ask(client, **fields):
    answer = client.post("/v1/embeddings", json={"model": "default"} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(answer, size=None):
    rows = [row["embeddings"][str(size)] if size else row["embedding"] for row in answer["data"]]
    return np.array(rows, dtype=np.float32)


def ranges(card, dim):
    found = next(entry for entry in card["int8_ranges"] if entry["dim"] == dim)
    return np.array([found["low"], found["high"]], dtype=np.float32)


@pytest.mark.parametrize("dim", [64, 384])
@pytest.mark.parametrize("dtype", list(NUMPY))
def test_each_dtype_is_what_sentence_transformers_makes(carded, card, texts, dim, dtype):
    """Cut, normalised, and only then stored by the card's ranges: the very same bytes."""
    floats = vectors(ask(carded, input=texts[-20:], dimensions=dim))
    np.testing.assert_allclose(np.linalg.norm(floats, axis=1), 1, atol=1e-6)
    wanted = {"input": texts[-20:], "dimensions": dim, "output_dtype": dtype}
    answer = ask(carded, **wanted)
    theirs = quantize_embeddings(floats, dtype, ranges=ranges(card, dim))
    assert answer["matryoshka"]["dtype"] == dtype
    assert [row["embedding"] for row in answer["data"]] == theirs.tolist()
    raw = ask(carded, **wanted, encoding_format="base64")["data"]
    for row, expected in zip(raw, theirs, strict=True):
        assert base64.b64decode(row["embedding"]) == expected.tobytes()


def test_int8_is_near_the_float_vector(carded, card, texts):
    """Read back by the card's ranges, texts that no sample held keep their direction."""
    for dim in (64, 384):
        floats = vectors(ask(carded, input=texts[-20:], dimensions=dim))
        stored = vectors(ask(carded, input=texts[-20:], dimensions=dim, output_dtype="int8"))
        low, high = ranges(card, dim)
        read = low + (stored + 128.5) * (high - low) / 255
        cosines = (read * floats).sum(axis=1) / np.linalg.norm(read, axis=1)
        # A sample of 150 texts; a larger one leaves less outside the ranges.
        assert cosines.min() > 0.98
        assert cosines.mean() > 0.999


async def test_grpc_gives_the_same_bytes(carded, carded_process, texts):
    """Every dtype and size of one call, packed row after row."""
    async with grpc.aio.insecure_channel(carded_process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        for dtype, name in PB.items():
            number = pb.Dtype.Value(f"DTYPE_{name}")
            request = pb.EmbedRequest(texts=texts[:3], dimensions=[64, 384], dtype=number)
            for found in (await stub.Embed(request)).vectors:
                fields = {"dimensions": found.dim, "output_dtype": dtype}
                answer = ask(carded, input=texts[:3], encoding_format="base64", **fields)
                rows = [base64.b64decode(row["embedding"]) for row in answer["data"]]
                assert found.data == b"".join(rows)
                assert found.dtype == number


def test_several_sizes_come_of_one_pass(carded, texts):
    """`embedding` is the first size listed, `embeddings` has all; each equals its own request."""
    answer = ask(carded, input=texts[:3], dimensions=[384, 64])
    assert answer["matryoshka"]["dimensions"] == [384, 64]
    assert (vectors(answer) == vectors(answer, 384)).all()
    for size in (64, 384):
        alone = ask(carded, input=texts[:3], dimensions=size)
        assert "embeddings" not in alone["data"][0]
        np.testing.assert_allclose(vectors(answer, size), vectors(alone), atol=1e-6)


def test_several_sizes_do_not_disturb_the_sdk(carded_process, texts):
    """Its own decoding of base64 touches `embedding` alone."""
    with openai.OpenAI(base_url=f"{carded_process.http}/v1", api_key="none") as client:
        answer = client.embeddings.create(
            model="default", input=texts[0], extra_body={"dimensions": [64, 384]}
        )
    row = answer.data[0]
    assert len(row.embedding) == 64
    full = np.frombuffer(base64.b64decode(row.model_extra["embeddings"]["384"]), "<f4")
    prefix = full[:64] / np.linalg.norm(full[:64])
    np.testing.assert_allclose(row.embedding, prefix, atol=1e-6)


def test_auto_takes_the_size_that_the_card_allows(carded, card, texts):
    """The choice, its reason and the figures stand in the answer."""
    scores = {score["dim"]: score["ndcg10"] for score in card["quality"]["after"]}
    kept = {dim: scores[dim] / scores[384] for dim in scores}
    answer = ask(carded, input=texts[0], dimensions="auto", min_retention=kept[64] - 0.001)
    auto = answer["matryoshka"]["auto"]
    assert auto["dimensions"] == answer["matryoshka"]["dimensions"] == 64
    assert len(answer["data"][0]["embedding"]) == 64
    assert auto["retained"] == pytest.approx(kept[64], abs=1e-4)
    assert auto["measured"] == {str(dim): pytest.approx(kept[dim], abs=1e-4) for dim in scores}
    assert "smallest" in auto["reason"]
    assert auto["measured_on"] == "texts.txt"
    fits = ask(carded, input=texts[0], dimensions="auto", max_bytes=399, output_dtype="int8")
    assert fits["matryoshka"]["auto"]["dimensions"] == 384
    assert fits["matryoshka"]["auto"]["bytes"] == 384


async def test_auto_over_grpc(carded_process, texts):
    """The vectors say which size it became."""
    async with grpc.aio.insecure_channel(carded_process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        auto = pb.AutoDimensions(max_bytes=399)
        answer = await stub.Embed(pb.EmbedRequest(texts=texts[:1], auto=auto))
        assert [found.dim for found in answer.vectors] == [64]
        for request, message in (
            (pb.EmbedRequest(texts=["x"], auto=pb.AutoDimensions()), "min_retention"),
            (pb.EmbedRequest(texts=["x"], auto=auto, dimensions=[64]), "not both"),
            (pb.EmbedRequest(texts=["x"], dtype=9), "DTYPE_FLOAT32"),
            (pb.EmbedRequest(texts=["x"], priority=9), "PRIORITY_BULK"),
            (pb.EmbedRequest(texts=["x"], truncation=9), "TRUNCATION_END"),
            (pb.EmbedRequest(images=[b"x"]), "texts only"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=f"(?s)INVALID_ARGUMENT.*{message}"):
                await stub.Embed(request)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"dimensions": "auto"}, "dimensions", "needs min_retention"),
        ({"dimensions": "auto", "max_bytes": 8}, "max_bytes", "the smallest, 64, takes 256"),
        ({"min_retention": 0.5}, "min_retention", "for dimensions 'auto' only"),
        ({"dimensions": 64, "max_bytes": 9}, "max_bytes", "for dimensions 'auto' only"),
        ({"dimensions": []}, "dimensions", "at least one size, each once"),
        ({"dimensions": [64, 64]}, "dimensions", "at least one size, each once"),
        ({"dimensions": [64, 65]}, "dimensions", "one of 64, 100, 384 for this model, got 65"),
        ({"dimensions": list(range(1, 18))}, "dimensions", "at most 16 sizes"),
        ({"dimensions": 100, "output_dtype": "binary"}, "dimensions", "multiple of 8"),
        ({"input": [{"image": "iVBORw0KGgo="}]}, "input", "texts only"),
    ],
)
def test_what_cannot_be_had_says_what_can(carded, fields, param, message):
    """One sentence, about the right field."""
    body = {"model": "default", "input": "x"} | fields
    answer = carded.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert message in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_dtype": "int8"}, "output_dtype"),
        ({"output_dtype": "uint8", "dimensions": 64}, "output_dtype"),
        ({"dimensions": "auto", "min_retention": 0.9}, "dimensions"),
    ],
)
def test_a_model_without_a_card_says_how_to_get_one(http_client, fields, param):
    """Nothing is guessed from the call's own vectors; the command that measures is named."""
    body = {"model": "default", "input": "x"} | fields
    error = http_client.post("/v1/embeddings", json=body).json()["error"]
    assert error["param"] == param
    assert "'matryoshka card <model> <texts> --output <folder>'" in error["message"]


def test_bits_need_no_card(http_client):
    """The sign of a number is known without any measuring."""
    answer = ask(http_client, input="x", dimensions=64, output_dtype="ubinary")
    assert len(answer["data"][0]["embedding"]) == 8


def counted(client, result):
    name = rf'matryoshka_encoder_cache_requests_total{{result="{result}"}} (\S+)'
    found = re.search(name, client.get("/metrics").text)
    return float(found[1]) if found else 0.0


def test_a_text_that_comes_again_needs_no_model(carded):
    """Any size is cut from the kept full vector; a text twice in a request is encoded once."""
    text = "a sentence that no other test sends"
    hits, misses = counted(carded, "hit"), counted(carded, "miss")
    first = ask(carded, input=[text, text], dimensions=384)
    assert counted(carded, "miss") - misses == 1
    assert counted(carded, "hit") - hits == 1
    again = ask(carded, input=[text, "another " + text], dimensions=64)
    assert counted(carded, "miss") - misses == 2
    assert counted(carded, "hit") - hits == 2
    full = vectors(first)[0]
    prefix = full[:64] / np.linalg.norm(full[:64])
    np.testing.assert_allclose(vectors(again)[0], prefix, atol=1e-6)
    assert first["usage"]["prompt_tokens"] == 2 * (again["usage"]["prompt_tokens"] - 1) / 2
    assert "matryoshka_encoder_cache_bytes " in carded.get("/metrics").text


def test_found_and_fresh_texts_keep_their_order(carded, texts):
    """Rows from the cache and rows from the model stand where their texts stood."""
    ask(carded, input=[texts[3], texts[1]])
    mixed = [texts[0], texts[1], texts[2], texts[3], texts[0]]
    together = vectors(ask(carded, input=mixed))
    for row, text in zip(together, mixed, strict=True):
        assert row @ vectors(ask(carded, input=text))[0] > 0.999


async def test_a_newer_card_is_taken_and_an_unloaded_model_leaves_nothing(tmp_path, carded_folder):
    """Measured while it is served: loading it again is enough. Its vectors go when it goes."""
    process = serve(tmp_path, "serve", "encoder")
    try:
        with httpx.Client(base_url=process.http, timeout=30) as client:
            body = {"model": "default", "input": "x", "dimensions": 64, "output_dtype": "int8"}
            assert client.post("/v1/embeddings", json=body).status_code == 400
            async with grpc.aio.insecure_channel(process.grpc) as channel:
                stub = pb_grpc.EncoderServiceStub(channel)
                load = pb.LoadModelRequest(source=str(carded_folder))
                assert list((await stub.LoadModel(load)).model.matryoshka_dims) == [64, 100, 384]
                assert client.post("/v1/embeddings", json=body).status_code == 200
                assert (await stub.GetModel(pb.GetModelRequest())).card_json
                load.id = "second"
                await stub.LoadModel(load)
                assert kept_bytes(client) > 384 * 4
                await stub.UnloadModel(pb.UnloadModelRequest(id="second"))
                assert kept_bytes(client) == 0
                assert client.post("/v1/embeddings", json=body).status_code == 200
    finally:
        assert process.stop() == 0


def kept_bytes(client):
    found = re.search(r"^matryoshka_encoder_cache_bytes (\S+)", client.get("/metrics").text, re.M)
    return float(found[1])
