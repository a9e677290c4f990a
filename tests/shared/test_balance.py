"""Calls to a name of several addresses: they take turns, and none is lost with a server."""

import asyncio
from collections import Counter

import grpc
import pytest

from services.shared.channel import connect
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc


class Encoder(pb_grpc.EncoderServiceServicer):
    """Says where it is, in the place of a model's id."""

    def __init__(self, host):
        self.host = host
        self.calls = 0

    async def GetModel(self, request, context):
        self.calls += 1
        await asyncio.sleep(0.002)
        return pb.GetModelResponse(model=pb.Model(id=self.host))


async def start(host, port):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    encoder = Encoder(host)
    pb_grpc.add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server, encoder, port


@pytest.fixture
async def two():
    """Two servers at one port of two addresses of this machine, as two pods have them."""
    first, one, port = await start("127.0.0.1", 0)
    second, other, _ = await start("127.0.0.2", port)
    yield (first, one), (second, other), f"ipv4:127.0.0.1:{port},127.0.0.2:{port}"
    await asyncio.gather(first.stop(None), second.stop(None))


async def test_calls_take_turns(two):
    """Each of two servers gets half of them."""
    *_, address = two
    async with connect(address) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        await channel.channel_ready()
        await asyncio.sleep(0.2)  # until both are connected
        seen = Counter([(await stub.GetModel(pb.GetModelRequest())).model.id for _ in range(40)])
    assert seen == {"127.0.0.1": 20, "127.0.0.2": 20}


async def test_the_end_of_one_server_fails_no_call(two):
    """It ends at once, amid calls; each of these is answered by the other."""
    (_, one), (second, other), address = two
    async with connect(address) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)

        async def call():
            return (await stub.GetModel(pb.GetModelRequest(), timeout=20)).model.id

        async def caller():
            return [await call() for _ in range(100)]

        calling = asyncio.gather(*(caller() for _ in range(8)))
        async with asyncio.timeout(20):
            while other.calls < 50:
                await asyncio.sleep(0.001)
        await second.stop(None)
        answers = await calling
    assert sum(map(len, answers)) == 800
    assert one.calls > 300
