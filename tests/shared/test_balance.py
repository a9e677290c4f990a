"""Calls to a name of several addresses: they take turns, and none is lost with a server."""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from services.shared.channel import connect, may_be_several
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc


class Encoder(pb_grpc.EncoderServiceServicer):
    """Says where it is, in the place of a model's id."""

    def __init__(self, host):
        self.host = host

    async def GetModel(self, request, context):
        await asyncio.sleep(0.002)
        return pb.GetModelResponse(model=pb.Model(id=self.host))


async def start(host, port):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_EncoderServiceServicer_to_server(Encoder(host), server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server, port, health


async def serve(host, port):
    """What the second server's process does."""
    server, _, _ = await start(host, port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.wait_for_termination()


@pytest.fixture
async def two():
    """Two servers at one port of two addresses of this machine, as two pods have them; the second
    is a process of its own."""
    first, port, health = await start("127.0.0.1", 0)
    arguments = [sys.executable, "-m", "tests.shared.test_balance", "127.0.0.2", str(port)]
    second = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert second.stdout
    try:
        assert await asyncio.to_thread(second.stdout.readline) == b"ready\n"
        yield second, health, f"ipv4:127.0.0.1:{port},127.0.0.2:{port}"
    finally:
        second.kill()
        second.wait()
        second.stdout.close()
        await first.stop(None)


async def test_calls_take_turns(two):
    """Each of two servers gets half of them."""
    _, _, address = two
    async with connect(address) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        await channel.channel_ready()
        await asyncio.sleep(0.2)  # until both are connected
        seen = Counter([(await stub.GetModel(pb.GetModelRequest())).model.id for _ in range(40)])
    assert seen == {"127.0.0.1": 20, "127.0.0.2": 20}


async def test_a_server_that_drains_is_left_before_it_refuses_anything(two):
    """It says that it is not ready; who tries nothing again is not failed by it either."""
    _, health, address = two
    async with connect(address, [("grpc.enable_retries", 0)]) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        await channel.channel_ready()
        await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(0.2)
        seen = {(await stub.GetModel(pb.GetModelRequest())).model.id for _ in range(20)}
        assert seen == {"127.0.0.2"}
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        async with asyncio.timeout(20):
            while (await stub.GetModel(pb.GetModelRequest())).model.id != "127.0.0.1":
                pass


async def test_the_end_of_one_server_fails_no_call(two):
    """It is killed amid calls; each of these is answered by the other."""
    second, _, address = two
    seen = Counter()
    async with connect(address) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)

        async def caller():
            for _ in range(100):
                answer = await stub.GetModel(pb.GetModelRequest(), timeout=20)
                seen[answer.model.id] += 1

        calling = asyncio.gather(*(caller() for _ in range(8)))
        async with asyncio.timeout(20):
            while seen["127.0.0.2"] < 50:
                await asyncio.sleep(0.001)
        second.kill()
        await calling
    assert seen.total() == 800
    assert seen["127.0.0.1"] > 300


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))


@pytest.mark.parametrize(
    ("address", "several"),
    [
        ("encoder:9000", True),
        ("encoder.search.svc.cluster.local:9000", True),
        ("ipv4:10.0.0.1:9000,10.0.0.2:9000", True),
        ("127.0.0.1:9000", False),
        ("ipv4:10.0.0.1:9000", False),
        ("[::1]:9000", False),
        ("localhost:9000", False),
        ("unix:/run/matryoshka/grpc", False),
    ],
)
def test_only_one_of_several_is_left_before_it_is_gone(address, several):
    """A server that is the only one is called as long as it answers, ready or not."""
    assert may_be_several(address) is several
