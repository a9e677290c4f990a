"""RPCs over the router's HTTP port by the Connect protocol, against a real router."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import socket
import struct

import httpx
import pytest

from services.router.settings import RouterSettings
from services.shared.keys import Keys
from services.shared.pb import router_pb2
from services.shared.server import _build_http
from services.shared.state import State
from tests.router.conftest import running

JSON, STREAM = "application/json", "application/connect+json"


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
    await router.stub.CreateCollection(router_pb2.CreateCollectionRequest(name=name, model="small"))
    points = [router_pb2.Point(id=f"n{i}", text=f"text {i}") for i in range(20)]
    batch = router_pb2.UpsertRequest(collection=name, points=points)
    async for _ in router.stub.Upsert(iter([batch])):
        pass


async def test_unary_calls_answer_in_json(router, client):
    """The router's own, and the encoder's; bytes as base64, 64-bit integers as strings."""
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


async def test_errors_are_the_protocols(router, client):
    """A code in lower case, the status that goes with it, the field, and a sentence."""
    answer = await call(client, "GetCollection", {"name": "none"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "none" in answer.json()["message"]
    await fill(router)
    long = await call(client, "Search", {"collection": "notes", "text": "x" * 2000})
    assert (long.status_code, long.json()["code"]) == (400, "invalid_argument")
    assert long.headers["x-matryoshka-param"] == "text"
    messages, end = await stream(client, "Calibrate", {"collection": "none"})
    assert messages == []
    assert end["error"]["code"] == "not_found"


async def test_a_time_to_wait_is_kept(router, client):
    """As a header, and in the end of a stream."""
    await fill(router)
    router.encoder.refusals = iter([7, 9])
    refused = await call(client, "Search", {"collection": "notes", "text": "a"})
    assert (refused.status_code, refused.json()["code"]) == (429, "resource_exhausted")
    assert refused.headers["retry-after"] == "7"
    refused = await call(client, "Embed", {"texts": ["a"]}, "EncoderService")
    assert refused.headers["retry-after"] == "9"


BAD = {
    b"": "the message must be SearchRequest as a JSON object",
    b"[]": "the message must be SearchRequest as a JSON object",
    b"{": "the message must be SearchRequest in JSON",
    b"\xff{": "the message must be SearchRequest as a JSON object",
    b'{"a": "\xff"}': "the message must be SearchRequest in JSON",
    b'{"texto": "a"}': 'has no field named "texto"',
    b'{"limit": "many"}': "limit",
    b'{"filter": ' * 5000: "the message must be SearchRequest in JSON",
}


@pytest.mark.parametrize("body", BAD, ids=lambda body: body[:16].hex())
async def test_what_is_no_message_is_refused_in_a_sentence(body, client):
    """And one that is short, whatever was sent."""
    answer = await client.post(
        "/matryoshka.v1.RouterService/Search", content=body, headers={"content-type": JSON}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    assert BAD[body] in answer.json()["message"]
    assert len(answer.json()["message"]) < 600
    assert "\n" not in answer.json()["message"]


async def test_what_cannot_be_called_is_told_what_to_do(client):
    """Another type of body, a stream of requests, an RPC that is not there, another version."""
    url = "/matryoshka.v1.RouterService"
    form = await client.post(f"{url}/Search", data={"collection": "a"})
    assert form.status_code == 415
    assert "application/json" in form.json()["message"]
    plain = await call(client, "Calibrate")
    assert plain.status_code == 415
    assert STREAM in plain.json()["message"]
    upsert = await call(client, "Upsert")
    assert (upsert.status_code, upsert.json()["code"]) == (501, "unimplemented")
    assert "gRPC" in upsert.json()["message"]
    _, end = await stream(client, "Upsert")
    assert end["error"]["code"] == "unimplemented"
    assert (await call(client, "Nothing")).status_code == 404
    assert (await client.get(f"{url}/Search")).status_code == 405
    for name, value in (("connect_protocol_version", "2"), ("connect_timeout_ms", "soon")):
        assert (await call(client, "Search", **{name: value})).json()["code"] == "invalid_argument"
    brotli = await call(client, "Search", content_encoding="br")
    assert brotli.json()["code"] == "unimplemented"


@pytest.mark.parametrize("body", [b"", b"\0\0\0", envelope(b"{}") * 2, envelope(b"{}", 1),
                                  envelope(b"{}", 2), envelope(b"{}")[:-1]])  # fmt: skip
async def test_what_is_no_envelope_is_refused(body, client):
    """In the end of the stream, where its callers look."""
    answer = await client.post(
        "/matryoshka.v1.RouterService/Calibrate", content=body, headers={"content-type": STREAM}
    )
    assert answer.status_code == 200
    messages, end = frames(answer.content)
    assert messages == []
    assert end["error"]["code"] == "invalid_argument"


async def test_bodies_may_be_in_gzip_and_are_bounded(encoder, tmp_path):
    """As they come, and as they are when unzipped."""
    async with (
        running(encoder, tmp_path, max_body_bytes=5000) as router,
        served(router) as client,
    ):
        for size, status in ((100, 200), (10_000, 400)):
            body = json.dumps({"texts": ["x" * size]}).encode()
            for coding, content in (("identity", body), ("gzip", gzip.compress(body))):
                answer = await client.post(
                    "/matryoshka.v1.EncoderService/Embed", content=content,
                    headers={"content-type": JSON, "content-encoding": coding},
                )  # fmt: skip
                assert answer.status_code == status, answer.text
                if status == 400:
                    assert answer.json()["code"] == "invalid_argument"
                    assert "at most 5000 bytes" in answer.json()["message"]
        zipped = envelope(gzip.compress(b'{"collection": "none"}'), 1)
        answer = await client.post(
            "/matryoshka.v1.RouterService/Calibrate", content=zipped,
            headers={"content-type": STREAM, "connect-content-encoding": "gzip"},
        )  # fmt: skip
        assert frames(answer.content)[1]["error"]["code"] == "not_found"


def key(name, **more):
    return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} | more


async def test_a_key_has_no_more_rights_here_than_over_grpc(encoder, tmp_path):
    """Nor may it be used more often: a call counts once. And the encoder asks for none itself."""
    path = tmp_path / "keys"
    path.write_text(json.dumps([
        key("k-ops"), key("k-search", scopes=["search"]), key("k-acme", tenant="acme"),
        key("k-slow", requests_per_minute=2),
    ]))  # fmt: skip
    async with running(encoder, tmp_path, Keys(None, path)) as router, served(router) as client:

        async def code(rpc, name, service="RouterService", **more):
            headers = {"authorization": f"Bearer {name}"} | more
            answer = await call(client, rpc, {}, service, **headers)
            return answer.json().get("code")

        assert await code("ListCollections", "k-wrong") == "unauthenticated"
        assert await code("ListCollections", "k-acme") is None
        assert await code("CreateCollection", "k-acme") == "permission_denied"
        assert await code("LoadModel", "k-search", "EncoderService") == "permission_denied"
        assert await code("ListJobs", "k-acme", "TrainerService") == "permission_denied"
        messages, end = await stream(
            client, "Calibrate", {"collection": "a"}, authorization="Bearer k-acme"
        )
        assert (messages, end["error"]["code"]) == ([], "permission_denied")
        embed = {"texts": ["a"]}
        for name, acting, tenant in (
            ("k-ops", {}, None), ("k-ops", {"x_matryoshka_tenant": "acme"}, "acme"),
        ):  # fmt: skip
            answer = await call(
                client, "Embed", embed, "EncoderService", authorization=f"Bearer {name}", **acting
            )
            assert answer.status_code == 200, answer.text
            assert router.encoder.tenants[-1] == tenant
        slow = [await code("ListCollections", "k-slow") for _ in range(3)]
        assert slow == [None, None, "resource_exhausted"]


def calls(router, method, outcome):
    labels = {"method": method, "outcome": outcome}
    return router.registry.get_sample_value("matryoshka_router_requests_total", labels)


async def test_a_call_is_counted_once(router, client):
    """By gRPC, or by HTTP where it did not come so far."""
    route = "POST /matryoshka.v1.RouterService/ListCollections"
    await call(client, "ListCollections")
    assert calls(router, "ListCollections", "OK") == 1
    assert calls(router, route, "OK") is None
    await call(client, "ListCollections", {"a": 1})
    assert calls(router, route, "INVALID_ARGUMENT") == 1


async def test_a_deadline_goes_with_the_call(router, client):
    """In milliseconds, for unary calls and streams."""
    await fill(router)
    router.encoder.may_answer.clear()
    late = await call(
        client, "Search", {"collection": "notes", "text": "a"}, connect_timeout_ms="200"
    )
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    _, end = await stream(client, "Evaluate", EVALUATE, connect_timeout_ms="200")
    assert end["error"]["code"] == "deadline_exceeded"


EVALUATE = {
    "queries": [{"text": "a", "relevant": {"n1": 1.0}}],
    "contenders": [{"collection": "notes"}],
}


@pytest.mark.parametrize("rpc", ["Search", "Evaluate"])
async def test_a_call_ends_when_its_caller_leaves(rpc, router, client):
    """Unary or a stream, in the middle of its work."""
    await fill(router)
    router.encoder.may_answer.clear()
    made = (
        call(client, "Search", {"collection": "notes", "text": "a"})
        if rpc == "Search"
        else stream(client, "Evaluate", EVALUATE)
    )
    num_embeds = len(router.encoder.embeds)
    calling = asyncio.create_task(made)
    async with asyncio.timeout(30):
        while len(router.encoder.embeds) == num_embeds:
            await asyncio.sleep(0.01)
        calling.cancel()
        while calls(router, rpc, "CANCELLED") is None:
            await asyncio.sleep(0.01)
    assert calls(router, rpc, "CANCELLED") == 1


async def test_a_service_that_is_away_says_what_to_look_at(encoder, tmp_path):
    """And when to come again; likewise a router that stops."""
    state = State(True, True)
    async with (
        running(encoder, tmp_path, trainer_address="127.0.0.1:1") as router,
        served(router, state) as client,
    ):
        away = await call(client, "ListJobs", {}, "TrainerService")
        assert (away.status_code, away.json()["code"]) == (503, "unavailable")
        assert "MATRYOSHKA_ROUTER_TRAINER_ADDRESS" in away.json()["message"]
        assert away.headers["retry-after"] == "1"
        _, end = await stream(client, "WatchJob", {"id": "a"}, "TrainerService")
        assert "MATRYOSHKA_ROUTER_TRAINER_ADDRESS" in end["error"]["message"]
        assert end["metadata"] == {"retry-after": ["1"]}
        route = "POST /matryoshka.v1.TrainerService/ListJobs"
        assert calls(router, route, "UNAVAILABLE") == 1
        state.close()
        assert (await call(client, "ListCollections")).json()["code"] == "unavailable"


async def test_certificates_that_grpc_asks_for_are_not_come_past(encoder, tmp_path):
    """Whoever shows HTTP neither one nor a key has no RPC."""
    files = dict.fromkeys(("tls_cert", "tls_key", "tls_grpc_client_ca"), tmp_path / "pem")
    async with running(encoder, tmp_path, **files) as router, served(router) as client:
        refused = await call(client, "ListCollections")
        assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        assert "TLS_HTTP_CLIENT_CA" in refused.json()["message"]
    with_keys = files | {"keys_file": tmp_path / "keys"}
    async with running(encoder, tmp_path, **with_keys) as router, served(router) as client:
        assert (await call(client, "ListCollections")).status_code == 200
