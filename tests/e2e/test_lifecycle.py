"""A server's life as its operator sees it: ready, draining, stopped."""

import concurrent.futures
import signal
import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import serve

BODY = {"model": "default", "input": ["word " * 200] * 60}


@pytest.fixture
def process(tmp_path):
    started = serve(tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_DRAIN_S="2")
    yield started
    if started.popen.poll() is None:
        started.kill()


def test_the_first_signal_drains(process):
    """Not ready at once; the call in flight and one that comes late are served; then exit 0."""
    with concurrent.futures.ThreadPoolExecutor() as pool, httpx.Client(timeout=60) as client:
        post = lambda: client.post(f"{process.http}/v1/embeddings", json=BODY)  # noqa: E731
        in_flight = pool.submit(post)
        time.sleep(0.3)
        process.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert client.get(f"{process.http}/readyz").status_code == 503
        assert client.get(f"{process.http}/livez").status_code == 200
        with grpc.insecure_channel(process.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            status = health.Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        late = client.post(f"{process.http}/v1/embeddings", json=BODY | {"input": "late"})
        assert late.status_code == 200
        assert late.headers["connection"] == "close"  # the next call is for another server
        assert in_flight.result().status_code == 200
    assert process.popen.wait(timeout=30) == 0


def test_the_second_signal_ends_it_at_once(process):
    """An operator who insists does not wait for the drain."""
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(timeout=1.5) == 1


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path):
    """A failed warm-up is an exit code and a sentence, not a server that never gets ready."""
    with pytest.raises(AssertionError, match="no model folder"):
        serve(tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_MODEL=str(tmp_path / "gone"))


def test_a_port_in_use_is_told(process, tmp_path):
    """Two servers never share a port silently."""
    port = process.grpc.rpartition(":")[2]
    with pytest.raises(AssertionError, match=r"(?i)address already in use|failed to bind"):
        serve(tmp_path / "second", "serve", "encoder", "--grpc-port", port)
