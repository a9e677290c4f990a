"""The official `openai` package works unchanged, and every error has its shape."""

import base64
import itertools
import time

import httpx
import numpy as np
import openai
import pytest

from tests.conftest import serve

MODEL = "matryoshka-MiniLM-L6-v2"


@pytest.fixture
def client(encoder_process):
    with openai.OpenAI(
        base_url=f"{encoder_process.http}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_a_single_text(client):
    """One string gives one unit vector and a usage count."""
    answer = client.embeddings.create(model=MODEL, input="nested dolls")
    assert answer.object == "list"
    assert len(answer.data) == 1
    assert len(answer.data[0].embedding) == 384
    np.testing.assert_allclose(np.linalg.norm(answer.data[0].embedding), 1, atol=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 2
    assert answer.model == MODEL


def test_a_list_keeps_its_order(client):
    """Each row has its index and its own text's vector."""
    texts = ["one", "two two two two", "three"]
    answer = client.embeddings.create(model=MODEL, input=texts)
    assert [row.index for row in answer.data] == [0, 1, 2]
    for row, text in zip(answer.data, texts, strict=True):
        alone = client.embeddings.create(model=MODEL, input=text).data[0].embedding
        assert np.dot(row.embedding, alone) > 0.999


def test_float_and_base64_are_the_same_numbers(client, http_client):
    """Base64 is little-endian float32, what the SDK decodes by default."""
    text = "two spellings of one vector"
    as_float = client.embeddings.create(model=MODEL, input=text, encoding_format="float")
    by_default = client.embeddings.create(model=MODEL, input=text)
    np.testing.assert_allclose(as_float.data[0].embedding, by_default.data[0].embedding, atol=0.002)
    raw = http_client.post(
        "/v1/embeddings", json={"model": MODEL, "input": text, "encoding_format": "base64"}
    ).json()["data"][0]["embedding"]
    decoded = np.frombuffer(base64.b64decode(raw), "<f4")
    np.testing.assert_allclose(decoded, by_default.data[0].embedding, atol=0.002)


@pytest.mark.parametrize("dimensions", [1, 64, 384])
def test_dimensions_cut_and_normalise(client, dimensions):
    """A cut vector is the unit-length prefix of the full one."""
    full = client.embeddings.create(model=MODEL, input="cut me").data[0].embedding
    cut = client.embeddings.create(model=MODEL, input="cut me", dimensions=dimensions).data[0]
    prefix = np.array(full[:dimensions])
    np.testing.assert_allclose(cut.embedding, prefix / np.linalg.norm(prefix), atol=0.002)


def test_token_ids_are_taken(client):
    """A list of ids and a list of lists are inputs too."""
    one = client.embeddings.create(model=MODEL, input=[7592, 2088])
    two = client.embeddings.create(model=MODEL, input=[[7592, 2088], [7592]])
    text = client.embeddings.create(model=MODEL, input="hello world")
    assert np.dot(one.data[0].embedding, text.data[0].embedding) > 0.999
    assert len(two.data) == 2


def test_models_are_listed_by_id_and_alias(client):
    """`default` is what a client can always ask for."""
    ids = {model.id for model in client.models.list()}
    assert {MODEL, "default"} <= ids
    assert client.models.retrieve(MODEL).object == "model"


def test_an_undeclared_size_is_said_in_the_answer(client):
    """The warning travels beside OpenAI's fields."""
    answer = client.embeddings.create(model=MODEL, input="x", dimensions=64)
    assert "64 of 384" in answer.model_extra["matryoshka"]["warnings"][0]


def test_truncation_travels_in_extra_body(client):
    """Over-long text is an error by default, and cut and told on request."""
    long = "word " * 400
    with pytest.raises(openai.BadRequestError, match="402 tokens"):
        client.embeddings.create(model=MODEL, input=long)
    answer = client.embeddings.create(model=MODEL, input=long, extra_body={"truncate": True})
    assert answer.model_extra["matryoshka"]["truncated"] == [0]
    assert answer.usage.prompt_tokens == 256


def test_a_text_may_be_cut_at_its_start(client):
    """What remains is its end, and only the rows that were cut are told."""
    long = "first " + "word " * 400 + "last"
    body = {"truncate": "start"}
    answer = client.embeddings.create(model=MODEL, input=["x", long], extra_body=body)
    assert answer.model_extra["matryoshka"]["truncated"] == [1]
    end = client.embeddings.create(model=MODEL, input="word " * 253 + "last")
    assert np.dot(answer.data[1].embedding, end.data[0].embedding) > 0.999


def test_usage_counts_the_models_own_tokens(client):
    """Special tokens included, over all rows, texts and token ids alike."""
    texts = client.embeddings.create(model=MODEL, input=["hello world", "hello world"])
    ids = client.embeddings.create(model=MODEL, input=[[7592, 2088], [7592, 2088]])
    assert texts.usage.prompt_tokens == ids.usage.total_tokens == 8


def test_2048_inputs_are_taken(client):
    """OpenAI's bound itself is inside."""
    answer = client.embeddings.create(
        model=MODEL, input=[f"text {number}" for number in range(2048)], dimensions=8
    )
    assert [row.index for row in answer.data] == list(range(2048))


def good(**change):
    return {"model": MODEL, "input": "x"} | change


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (good(dimensions=0), 400, "dimensions", "between 1 and 384, got 0"),
        (good(dimensions=-5), 400, "dimensions", "between 1 and 384, got -5"),
        (good(dimensions=385), 400, "dimensions", "between 1 and 384, got 385"),
        (good(dimensions=1e3), 400, "dimensions", "must be an integer"),
        (good(dimensions=True), 400, "dimensions", "must be an integer"),
        (good(dimensions="64"), 400, "dimensions", "must be an integer"),
        (good(input=""), 400, "input", "must not be empty"),
        (good(input=[]), 400, "input", "1 to 2048"),
        (good(input=["x", ""]), 400, "input", "input 1 must not be empty"),
        (good(input=["x"] * 2049), 400, "input", "1 to 2048"),
        (good(input=["word " * 200] * 1600), 400, "input", "at most 300000 tokens"),
        (good(input=[[7592] * 300]), 400, "input", "302 tokens, the model reads at most 256"),
        (good(input=["x", 1]), 400, "input", "must be a string"),
        (good(input=[-1]), 400, "input", "array of token ids"),
        (good(input=[999999]), 400, "input", "token ids must be between"),
        (good(input=None), 400, "input", "must be a string"),
        (good(input={"a": 1}), 400, "input", "must be a string"),
        (good(input="\ud800"), 400, "input", "valid Unicode"),
        (good(encoding_format="hex"), 400, "encoding_format", "'float' or 'base64'"),
        (good(dimensions="all"), 400, "dimensions", "an array of integers, or 'auto'"),
        (good(dimensions=[64, "x"]), 400, "dimensions", "an array of integers, or 'auto'"),
        (good(dimensions=10**30), 400, "dimensions", "must be an integer"),
        (good(output_dtype="float16"), 400, "output_dtype", "'ubinary'"),
        (good(min_retention="much"), 400, "min_retention", "between 0 and 1"),
        (good(min_retention=1.5), 400, "min_retention", "between 0 and 1"),
        (good(max_bytes=0), 400, "max_bytes", "positive integer"),
        (good(truncate="middle"), 400, "truncate", "'end' or 'start'"),
        (good(truncate=1), 400, "truncate", "'end' or 'start'"),
        (good(user=3), 400, "user", "must be a string"),
        (good(input=[{"image": "http://x.org/a.png"}]), 400, "input", "never fetched"),
        (good(input_type="poem"), 400, "input_type", "'query' or 'document'"),
        (good(surprise=1), 400, "surprise", "unknown field"),
        (good(model="gone"), 404, "model", "not loaded"),
        (good(model=3), 400, "model", "must be a string"),
        ({"input": "x"}, 400, "model", "must provide 'model'"),
        ({"model": MODEL}, 400, "input", "must provide 'input'"),
        ([], 400, None, "JSON object"),
    ],
)
def test_every_wrong_field_gets_openais_error(http_client, body, status, param, message):
    """The body names the field, says what is accepted, and has all four keys."""
    import json

    answer = http_client.post("/v1/embeddings", content=json.dumps(body))
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}'])
def test_bodies_that_are_not_json_are_refused(http_client, content):
    """Truncated, nested beyond reason, or not UTF-8: 400, never 500."""
    answer = http_client.post("/v1/embeddings", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_body_over_the_bound_is_413(http_client):
    """It is refused by its declared length or, without one, while it is read."""
    for content in (b"x" * (33 * 2**20), (b"x" * 2**20 for _ in range(33))):
        answer = http_client.post("/v1/embeddings", content=content)
        assert answer.status_code == 413
        assert "at most" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/embeddings", 405)]
)
def test_unknown_routes_have_openais_error_too(http_client, method, path, status):
    """An SDK can read the reason even when the path is wrong."""
    answer = http_client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_the_sdk_raises_its_own_classes(client):
    """400 and 404 become the exceptions that users catch."""
    with pytest.raises(openai.NotFoundError) as not_found:
        client.embeddings.create(model="gone", input="x")
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.embeddings.create(model=MODEL, input="x", dimensions=999)
    assert bad.value.param == "dimensions"


def test_a_caller_that_leaves_is_dropped(encoder_process):
    """Nobody waits for the answer, so its texts leave the queue; others are served."""
    # Each text another, or the encoder would run one of them and copy the vector.
    body = good(input=[f"{number} " + "word " * 200 for number in range(500)])
    with httpx.Client(base_url=encoder_process.http, timeout=30) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/embeddings", json=body, timeout=0.5)
        dropped = 'requests_total{method="POST /v1/embeddings",outcome="CANCELLED"}'
        deadline = time.monotonic() + 10
        while dropped not in client.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # 500 texts would take far longer than this one waits.
        assert client.post("/v1/embeddings", json=good(), timeout=5).status_code == 200


def test_a_full_queue_is_429_with_retry_after(tmp_path):
    """Overload is told at once, in a way that SDKs wait and try again."""
    import concurrent.futures

    process = serve(tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_MAX_QUEUED_TOKENS="2000")
    try:
        # Each text another, or the cache would answer.
        numbers = itertools.count()
        with httpx.Client(base_url=process.http, timeout=60) as client:

            def post(_):
                texts = [f"{next(numbers)} " + "word " * 100 for _ in range(15)]
                return client.post("/v1/embeddings", json={"model": MODEL, "input": texts})

            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                answers = list(pool.map(post, range(12)))
            # What was refused left no trace: the next one is served.
            assert post(None).status_code == 200
        refused = [a for a in answers if a.status_code == 429]
        assert refused
        assert {a.status_code for a in answers} == {200, 429}
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    finally:
        process.stop()


def test_a_key_is_asked_for_when_one_is_set(tmp_path):
    """Without it 401, with it 200; probes stay open, and the log never shows it."""
    process = serve(tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_API_KEY="sk-planted")
    try:
        wrong = openai.OpenAI(base_url=f"{process.http}/v1", api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.embeddings.create(model=MODEL, input="x")
        right = openai.OpenAI(base_url=f"{process.http}/v1", api_key="sk-planted")
        with right:
            assert right.embeddings.create(model=MODEL, input="x").data
        assert httpx.get(f"{process.http}/readyz").status_code == 200
        assert "sk-planted" not in httpx.get(f"{process.http}/metrics").text
    finally:
        process.stop()
    assert "sk-planted" not in process.log_path.read_text()


def test_metrics_count_what_happened(http_client):
    """Outcomes have the names of gRPC statuses on both wires."""
    http_client.post("/v1/embeddings", json=good(dimensions=0))
    text = http_client.get("/metrics").text
    assert (
        'matryoshka_encoder_requests_total{method="POST /v1/embeddings",outcome="INVALID_ARGUMENT"}'
        in text
    )
    assert 'matryoshka_encoder_stage_seconds_count{stage="forward"}' in text
