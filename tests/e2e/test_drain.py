"""SIGTERM under load: what callers and operators see, over both wires, with a real process."""

import asyncio
import contextlib
import itertools
import signal
import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve

RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
LONG = ["word " * 200] * 30


@pytest.fixture
def process(tmp_path):
    started = serve(
        tmp_path, "serve", "encoder",
        MATRYOSHKA_ENCODER_DRAIN_S="1", MATRYOSHKA_ENCODER_GRACE_S="60",
        # A busy machine is slow: nobody is refused for that here.
        MATRYOSHKA_ENCODER_MAX_QUEUE_S="60",
    )  # fmt: skip
    yield started
    if started.popen.poll() is None:
        started.kill()


async def exited(process, timeout_s):
    return await asyncio.to_thread(process.popen.wait, timeout_s)


async def call_http(process, outcomes):
    """Call until the server is gone; note each status, or that the connection broke."""
    async with httpx.AsyncClient(base_url=process.http, timeout=60) as client:
        number = 0
        while process.popen.poll() is None:
            number += 1
            body = {"model": "default", "input": f"call {number} of {id(client)}"}
            try:
                response = await client.post("/v1/embeddings", json=body)
            except httpx.TransportError as error:
                # The connection was refused or closed: nothing was done, any client tries again.
                outcomes.append(type(error).__name__)
                await asyncio.sleep(0.02)
                continue
            outcomes.append(response.status_code)
            if response.status_code != 200:
                assert response.headers["retry-after"], response.text
                assert response.headers["x-should-retry"] == "true"
                await asyncio.sleep(0.02)


async def call_grpc(process, outcomes):
    """The same over gRPC, waiting as long as it is told to."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        number = 0
        while process.popen.poll() is None:
            number += 1
            try:
                await stub.Embed(pb.EmbedRequest(texts=[f"call {number} of {id(stub)}"]))
                outcomes.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                outcomes.append(error.code())
                told = dict(error.trailing_metadata() or ()).get("retry-after", 0.02)
                await asyncio.sleep(float(told))


async def test_under_load_nobody_sees_what_a_retry_would_not_cure(process):
    """Not ready first; calls in flight are answered; later ones are told to try again; exit 0."""
    over_http, over_grpc = [], []
    callers = [asyncio.create_task(call_http(process, over_http)) for _ in range(3)]
    callers += [asyncio.create_task(call_grpc(process, over_grpc)) for _ in range(3)]
    async with httpx.AsyncClient(base_url=process.http, timeout=60) as client:
        long = {"model": "default", "input": LONG}
        in_flight = [asyncio.create_task(client.post("/v1/embeddings", json=long))]
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            in_flight.append(asyncio.create_task(called(stub.Embed(pb.EmbedRequest(texts=LONG)))))
            await asyncio.sleep(0.5)
            process.popen.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            served = len(over_http), len(over_grpc)
            assert (await client.get("/readyz")).status_code == 503
            answer, embedded = await asyncio.gather(*in_flight)
            assert answer.status_code == 200
            assert len(embedded.num_tokens) == len(LONG)
    assert await exited(process, 60) == 0
    await asyncio.gather(*callers)
    # After the signal calls were still served for a while.
    assert 200 in over_http[served[0] :]
    assert grpc.StatusCode.OK in over_grpc[served[1] :]
    assert {o for o in over_http if isinstance(o, int)} <= {200, 429, 503}
    assert set(over_grpc) <= {grpc.StatusCode.OK, *RETRIED}


async def called(call):
    return await call


async def test_an_idle_stream_does_not_hold_the_shutdown(process):
    """What was accepted is answered, then the stream ends with UNAVAILABLE, before the grace."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        call = stub.EmbedStream()
        for text in ("first", "second"):
            await call.write(pb.EmbedStreamRequest(embed=pb.EmbedRequest(texts=[text])))
        assert (await call.read()).embed.num_tokens
        start = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert (await call.read()).embed.num_tokens
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE.*stopping") as caught:
            await call.read()
        assert dict(caught.value.trailing_metadata())["retry-after"] == "1"
        assert await exited(process, 50) == 0
        assert time.monotonic() - start < 30


async def test_open_services_do_not_hold_the_shutdown(tmp_path):
    """Who watches the health reads NOT_SERVING, then his stream ends; so does idle reflection.

    Without a key, and counted nowhere, as ever; a status that nobody has is still an error.
    """
    # The service that starts the fastest: these streams are the server's own.
    process = serve(
        tmp_path, "serve", "router",
        MATRYOSHKA_ROUTER_GRACE_S="60", MATRYOSHKA_ROUTER_API_KEY="planted",
    )  # fmt: skip
    statuses = health_pb2.HealthCheckResponse
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
            for watch in watches:
                assert (await watch.read()).status == statuses.SERVING
            explorer = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await explorer.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert (await explorer.read()).list_services_response.service
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
            # Who leaves before the end leaves nothing behind.
            watches.pop().cancel()
            assert "Watch" not in httpx.get(f"{process.http}/metrics").text
            start = time.monotonic()
            process.popen.send_signal(signal.SIGTERM)
            for watch in watches:
                assert (await watch.read()).status == statuses.NOT_SERVING
            for call in (*watches, explorer):
                with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE.*stopping"):
                    await call.read()
            assert await exited(process, 50) == 0
            assert time.monotonic() - start < 30
    finally:
        if process.popen.poll() is None:
            process.kill()
    assert "Traceback" not in process.log_path.read_text()


async def test_a_busy_stream_is_answered_as_far_as_it_was_accepted(process):
    """Of a stream that goes on and on, each answer is whole and in order until it ends."""
    lengths = []

    def stream():
        # Not grpc.aio's client: its write that fails as the call ends hides the status
        # (grpc/grpc#36066).
        with grpc.insecure_channel(process.grpc) as channel:
            for answer in pb_grpc.EncoderServiceStub(channel).EmbedStream(endless()):
                lengths.append(len(answer.embed.num_tokens))
                if len(lengths) == 5:
                    process.popen.send_signal(signal.SIGTERM)

    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(stream)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert len(lengths) >= 5
    assert lengths == [number % 7 + 1 for number in range(1, len(lengths) + 1)]
    assert await exited(process, 50) == 0


def endless():
    for number in itertools.count(1):
        yield pb.EmbedStreamRequest(embed=pb.EmbedRequest(texts=["word"] * (number % 7 + 1)))


async def test_a_second_signal_ends_it_at_once_under_load(process):
    """An operator who insists waits for nobody, and nothing hangs on the callers' side."""
    over_http, over_grpc = [], []
    callers = [
        asyncio.create_task(call_http(process, over_http)),
        asyncio.create_task(call_grpc(process, over_grpc)),
    ]
    await asyncio.sleep(0.3)
    process.popen.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    process.popen.send_signal(signal.SIGTERM)
    assert await exited(process, 10) == 1
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*callers), 20)
    assert all(caller.done() for caller in callers)
