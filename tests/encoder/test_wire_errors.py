"""Errors that a healthy encoder does not have, over a real HTTP server around a failing one."""

import asyncio
import contextlib
import threading
import time

import httpx
import openai
import prometheus_client
import pytest
import uvicorn

from services.encoder.metrics import EncoderMetrics
from services.encoder.openai import OpenAIRoutes
from services.encoder.settings import EncoderSettings
from services.shared.bodies import Bodies
from services.shared.connection import Connection
from services.shared.errors import Overloaded, TookTooLong, Unavailable
from services.shared.http import build_app
from services.shared.keys import Keys
from services.shared.state import State

BODY = {"model": "m", "input": "x"}


class Embedder:
    """Stands for the real one: fails as it is told to, or hangs until it is cancelled."""

    def __init__(self):
        self.error = None
        self.was_cancelled = threading.Event()

    async def embed(self, _):
        if self.error:
            raise self.error
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


@contextlib.contextmanager
def running(embedder, state):
    registry = prometheus_client.CollectorRegistry()
    metrics = EncoderMetrics(registry)
    routes = OpenAIRoutes(None, embedder, EncoderSettings()).routes()
    app = build_app({metrics: routes}, state, Bodies(10**6, 5.0), registry, Keys(), frozenset())
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, log_config=None, access_log=False, lifespan="off", http=Connection
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def embedder():
    return Embedder()


@pytest.fixture
def state():
    return State(is_ready=True, is_open=True)


@pytest.fixture
def client(embedder, state):
    with running(embedder, state) as client:
        yield client


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "retry"),
    [
        (RuntimeError("a secret"), 500, "server_error", None, None),
        (Overloaded("busy"), 429, "rate_limit_error", "rate_limit_exceeded", "1"),
        (Unavailable("gone"), 503, "server_error", "unavailable", "1"),
        (TookTooLong("late"), 504, "server_error", "deadline_exceeded", None),
    ],
)
def test_each_failure_has_its_status_and_shape(client, embedder, error, status, kind, code, retry):
    """All four keys, the right type and code, and headers that an SDK obeys; no inner message."""
    embedder.error = error
    answer = client.post("/v1/embeddings", json=BODY)
    assert answer.status_code == status
    body = answer.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert (body["type"], body["code"]) == (kind, code)
    assert "secret" not in answer.text
    assert answer.headers.get("retry-after") == retry
    assert answer.headers["x-should-retry"] == ("true" if retry else "false")


def test_starting_and_stopping_are_503(client, state):
    """Calls that come too early or too late are told to try again; probes say why."""
    state.is_open = state.is_ready = False
    answer = client.post("/v1/embeddings", json=BODY)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "starting" in answer.json()["error"]["message"]
    assert client.get("/readyz").status_code == 503
    state.close()
    answer = client.post("/v1/embeddings", json=BODY)
    assert answer.status_code == 503
    assert "stopping" in answer.json()["error"]["message"]


def test_the_sdk_retries_what_may_pass(client, embedder):
    """Twice by default, and only where it is told that it makes sense."""
    count = 0

    async def embed(_):
        nonlocal count
        count += 1
        raise Overloaded("busy") if count < 9 else RuntimeError("a bug")

    embedder.embed = embed
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none") as sdk:
        with pytest.raises(openai.RateLimitError):
            sdk.embeddings.create(**BODY)
        assert count == 3
        count = 9
        with pytest.raises(openai.InternalServerError):
            sdk.embeddings.create(**BODY)
        assert count == 10


def test_work_stops_when_its_caller_leaves(client, embedder):
    """The connection's end cancels what was asked over it."""
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json=BODY, timeout=0.2)
    assert embedder.was_cancelled.wait(5)
    # The server goes on.
    embedder.error = Overloaded("busy")
    assert client.post("/v1/embeddings", json=BODY).status_code == 429


def test_a_wrong_method_says_which_are_right(client):
    """405 with `Allow`, in the same shape."""
    answer = client.get("/v1/embeddings")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["type"] == "invalid_request_error"
