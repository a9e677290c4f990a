"""Every RPC over the router's HTTP port by the Connect protocol, against a real router and encoder."""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import socket
import struct

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.router.settings import RouterSettings
from services.shared.keys import Keys
from services.shared.limits import Limits
from services.shared.pb import encoder_pb2, router_pb2, trainer_pb2
from services.shared.server import _build_http
from services.shared.state import State
from tests.router.conftest import running

JSON, STREAM = "application/json", "application/connect+json"
AWAY = re.compile(r"the trainer cannot be reached: .*MATRYOSHKA_ROUTER_TRAINER_ADDRESS")


@contextlib.asynccontextmanager
async def served(router, state=None, **changes):
    """The router's real HTTP server."""
    server = _build_http(
        [router.service], RouterSettings(**changes), state or State(True, True), router.registry,
        router.keys, None, None,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def client(router):
    async with served(router) as client:
        yield client


async def call(client, rpc, message=None, service="RouterService", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(f"/matryoshka.v1.{service}/{rpc}", json=message or {}, headers=headers)


def envelope(message, flags=0):
    return struct.pack(">BI", flags, len(message)) + message


def frames(content):
    """Messages of a stream, and its end."""
    found = []
    while content:
        flags, length = struct.unpack_from(">BI", content)
        found.append((flags, json.loads(content[5 : 5 + length])))
        content = content[5 + length :]
    assert [flags for flags, _ in found] == [0] * (len(found) - 1) + [2]
    *messages, end = (message for _, message in found)
    return messages, end


async def stream(client, rpc, message=None, service="RouterService", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await client.post(
        f"/matryoshka.v1.{service}/{rpc}", content=envelope(json.dumps(message or {}).encode()),
        headers={"content-type": STREAM} | headers,
    )  # fmt: skip
    assert answer.status_code == 200
    assert answer.headers["content-type"] == STREAM
    return frames(answer.content)


async def fill(router, name="notes"):
    await router.stub.CreateCollection(
        router_pb2.CreateCollectionRequest(name=name, model="small")
    )
    points = [router_pb2.Point(id=f"n{i}", text=f"text {i}") for i in range(20)]
    batch = router_pb2.UpsertRequest(collection=name, points=points)
    async for _ in router.stub.Upsert(iter([batch])):
        pass


async def test_unary_calls_answer_in_json(router, client):
    """The router's own, and the encoder's through it; bytes as base64, 64-bit integers as strings."""
    await fill(router)
    found = await call(client, "Search", {"collection": "notes", "text": "text 7", "limit": 3})
    assert found.status_code == 200
    assert found.headers["content-type"] == JSON
    assert found.json()["hits"][0]["id"] == "n7"
    listed = await call(client, "ListCollections", connect_protocol_version="1")
    (notes,) = listed.json()["collections"]
    assert (notes["name"], notes["numPoints"]) == ("notes", "20")
    embedded = await call(client, "Embed", {"texts": ["a"]}, "EncoderService")
    (vectors,) = embedded.json()["vectors"]
    assert len(base64.b64decode(vectors["data"])) == 4 * vectors["dim"]


async def test_unary_calls_answer_in_protobuf(router, client):
    """To who sends it."""
    await fill(router)
    asked = router_pb2.SearchRequest(collection="notes", text="text 7", limit=3)
    answer = await client.post(
        "/matryoshka.v1.RouterService/Search", content=asked.SerializeToString(),
        headers={"content-type": "application/proto"},
    )  # fmt: skip
    assert answer.headers["content-type"] == "application/proto"
    assert router_pb2.SearchResponse.FromString(answer.content).hits[0].id == "n7"


async def test_streams_answer_message_by_message(router, client):
    """In envelopes, and the last one says that all went well."""
    await fill(router)
    messages, end = await stream(
        client, "ResizeCollection", {"name": "notes", "sizes": [{"dim": 8}, {"dim": 32}]}
    )
    assert end == {}
    assert messages[-1]["collection"]["name"] == "notes"
    assert len(messages) > 1
