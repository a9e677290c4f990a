"""What a key is for and how often it may be used: every RPC and every route, and both doors."""

import asyncio
import contextlib
import hashlib
import json
import re
from pathlib import Path

import grpc
import httpx
import prometheus_client
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.encoder.service import EncoderService
from services.router.service import RouterService
from services.shared.auth import ANY_SCOPE, Scope
from services.shared.bodies import Bodies
from services.shared.http import build_app
from services.shared.interceptors import Door
from services.shared.keys import Keys
from services.shared.metrics import ServiceMetrics
from services.shared.pb import encoder_pb2, encoder_pb2_grpc
from services.shared.state import State
from services.trainer.service import TrainerService
from tests.contract.test_tenants import (
    PERMISSION,
    SERVICES,
    THROUGH,
    call,
    metadata,
    methods,
    routes,
)

SERVICES_DIR = Path(__file__).parents[2] / "services"
# What docs/operations.md says that the services' own keys must be for.
PEERS = {
    "router/encoder_client.py": (EncoderService, Scope.EMBED),
    "router/trainer_client.py": (TrainerService, Scope.TRAIN),
    "trainer/models/encoder_client.py": (EncoderService, Scope.ADMIN),
    "trainer/models/router_client.py": (RouterService, Scope.ADMIN | Scope.SEARCH),
}


def key(name, **more):
    return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} | more


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(json.dumps([
        *(key(f"k-{scope}", scopes=[scope]) for scope in ANY_SCOPE.names),
        key("k-all", scopes=ANY_SCOPE.names),
        key("k-acme", tenant="acme", scopes=["search"]),
        key("k-slow", requests_per_minute=2),
        key("k-single", concurrent_calls=1),
    ]))  # fmt: skip
    return Keys(None, path)


def calls(kind, tmp_path):
    """Every RPC and route; nobody declares HEAD, which Starlette answers beside GET."""
    return {method.name for method in methods(kind)} | {
        f"{method} {route.path}"
        for route in routes(kind, tmp_path) for method in route.methods - {"HEAD"}
    }  # fmt: skip


@pytest.mark.parametrize("kind", SERVICES)
def test_every_call_declares_its_scopes_and_nothing_else_does(kind, tmp_path):
    """One that is forgotten would need admin, one that is misspelt would too."""
    assert set(kind.scopes) == calls(kind, tmp_path)


@pytest.mark.parametrize("client", PEERS)
def test_the_services_keys_need_no_more_than_the_documents_say(client):
    """Told from what the clients call; and without one of these scopes something would fail."""
    kind, scopes = PEERS[client]
    called = re.findall(r"\bstub\.([A-Z]\w+)\(", (SERVICES_DIR / client).read_text())
    assert called
    assert all(kind.scopes[name] & scopes for name in called)
    for scope in scopes:
        assert not all(kind.scopes[name] & scopes & ~scope for name in called), scope


def serve_http(kind_routes, keys, kind, registry):
    metrics = ServiceMetrics("x", registry)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(
            build_app(
                {metrics: kind_routes}, State(True, True), Bodies(10**6, 5.0), registry, keys,
                kind.open_to_tenants, kind.scopes,
            ),
            raise_app_exceptions=False,
        ),
        base_url="http://test",
    )  # fmt: skip


@contextlib.asynccontextmanager
async def serving(keys, **servicers):
    """All three services behind one door over real gRPC; those not given nobody has implemented."""
    registry = prometheus_client.CollectorRegistry()
    metrics = {kind.grpc_name: ServiceMetrics(kind.name, registry) for kind in SERVICES}
    door = Door(
        metrics, State(True, True), keys,
        {kind.grpc_name: kind.open_to_tenants for kind in SERVICES},
        {kind.grpc_name: kind.scopes for kind in SERVICES},
    )  # fmt: skip
    server = grpc.aio.server(interceptors=[door])
    for kind, (_, servicer, add_to) in SERVICES.items():
        add_to(servicers.get(kind.name, servicer)(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened, registry
    await server.stop(None)


@pytest.fixture
async def channel(keys):
    async with serving(keys) as served:
        yield served


@pytest.mark.parametrize("kind", SERVICES)
async def test_a_key_reaches_the_rpcs_of_its_scopes_only(kind, channel):
    """Each scope alone, and all of them together; a tenant's key stays closed besides."""
    for method in methods(kind):
        for scope in Scope:
            wanted = THROUGH if scope & kind.scopes[method.name] else PERMISSION
            (name,) = scope.names
            got = await call(channel[0], kind, method, metadata(f"k-{name}"))
            assert got == wanted, (method.name, name)
        assert await call(channel[0], kind, method, metadata("k-all")) == THROUGH
        is_open = method.name in kind.open_to_tenants
        wanted = THROUGH if is_open and Scope.SEARCH & kind.scopes[method.name] else PERMISSION
        assert await call(channel[0], kind, method, metadata("k-acme")) == wanted, method.name


@pytest.mark.parametrize("kind", SERVICES)
async def test_a_key_reaches_the_routes_of_its_scopes_only(kind, keys, tmp_path):
    """And a route that nobody has declared needs admin."""
    planted = Route("/v1/planted", lambda _: PlainTextResponse("planted"))
    every = [*routes(kind, tmp_path), planted]
    async with serve_http(every, keys, kind, prometheus_client.CollectorRegistry()) as client:
        for route in every:
            for method in route.methods:
                needed = kind.scopes.get(f"{method} {route.path}", Scope.ADMIN)
                url = route.path.replace("{", "").replace("}", "").replace(":path", "")
                for scope in Scope:
                    (name,) = scope.names
                    headers = dict(metadata(f"k-{name}"))
                    answer = await client.request(method, url, headers=headers)
                    assert (answer.status_code == 403) == (not scope & needed), (url, name)
        refused = await client.get("/v1/planted", headers=dict(metadata("k-search")))
        assert refused.json()["error"]["message"] == (
            "GET /v1/planted needs a key with the scope admin, and this one has search"
        )


def over_limit(registry, service, limit):
    return registry.get_sample_value(f"matryoshka_{service}_over_limit_total", {"limit": limit})


async def test_a_key_that_is_used_too_often_is_refused_over_grpc(channel):
    """Over all services of the process together, with a time to wait, before the handler."""
    opened, registry = channel
    embed = opened.unary_unary(f"/{EncoderService.grpc_name}/Embed")
    search = opened.unary_unary(f"/{RouterService.grpc_name}/Search")
    for rpc in (embed, search):
        assert await rpc(b"", metadata=metadata("k-slow")).code() == THROUGH
    refused = embed(b"", metadata=metadata("k-slow"))
    assert await refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    told = dict(await refused.trailing_metadata())
    assert 28 <= int(told["retry-after"]) <= 30
    assert int(told["grpc-retry-pushback-ms"]) == 1000 * int(told["retry-after"])
    assert await embed(b"", metadata=metadata("k-all")).code() == THROUGH
    assert over_limit(registry, "encoder", "requests") == 1
    assert over_limit(registry, "router", "requests") == 0
    page = prometheus_client.generate_latest(registry).decode()
    assert "k-slow" not in page


async def test_a_key_that_is_used_by_too_many_is_refused_over_http(keys):
    """One at once: the second is told so at once, and served when the first has ended."""
    going_on, may_end = asyncio.Event(), asyncio.Event()

    async def slow(_):
        going_on.set()
        await may_end.wait()
        return PlainTextResponse("done")

    registry = prometheus_client.CollectorRegistry()
    async with serve_http([Route("/slow", slow)], keys, EncoderService, registry) as client:
        headers = dict(metadata("k-single"))
        first = asyncio.create_task(client.get("/slow", headers=headers))
        await going_on.wait()
        refused = await client.get("/slow", headers=headers)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-should-retry"] == "true"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        may_end.set()
        assert (await first).status_code == 200
        assert (await client.get("/slow", headers=headers)).status_code == 200
    assert over_limit(registry, "x", "calls") == 1


class Streaming(encoder_pb2_grpc.EncoderServiceServicer):
    async def EmbedStream(self, request_iterator, context):
        async for _ in request_iterator:
            yield encoder_pb2.EmbedStreamResponse()


async def test_a_stream_counts_as_long_as_it_is_open(keys):
    """Its place is free again when it has ended, and when its caller has left."""
    async with serving(keys, encoder=Streaming) as (opened, _):
        stub = encoder_pb2_grpc.EncoderServiceStub(opened)
        given = metadata("k-single")
        for ends in (lambda stream: stream.done_writing(), lambda stream: stream.cancel()):
            stream = stub.EmbedStream(metadata=given)
            await stream.write(encoder_pb2.EmbedStreamRequest())
            await stream.read()
            refused = stub.GetModel(encoder_pb2.GetModelRequest(), metadata=given)
            assert await refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            if (ending := ends(stream)) is not True:
                await ending
            await stream.code()
            async with asyncio.timeout(10):
                while (
                    await stub.GetModel(encoder_pb2.GetModelRequest(), metadata=given).code()
                    != THROUGH
                ):
                    await asyncio.sleep(0.01)
