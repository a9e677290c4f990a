"""What is not declared to be for tenants is refused to them: every RPC and every route."""

import hashlib
import json

import grpc
import httpx
import prometheus_client
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.encoder.openai import OpenAIRoutes
from services.encoder.rerank_http import RerankRoutes
from services.encoder.service import EncoderService
from services.encoder.settings import EncoderSettings
from services.router.service import RouterService
from services.router.settings import RouterSettings
from services.shared.bodies import Bodies
from services.shared.http import Page, build_app
from services.shared.interceptors import Door
from services.shared.keys import Keys
from services.shared.metrics import ServiceMetrics
from services.shared.pb import (
    encoder_pb2,
    encoder_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)
from services.shared.state import State
from services.trainer.service import TrainerService
from services.trainer.settings import TrainerSettings

SERVICES = {
    EncoderService: (encoder_pb2, encoder_pb2_grpc.EncoderServiceServicer,
                     encoder_pb2_grpc.add_EncoderServiceServicer_to_server),
    RouterService: (router_pb2, router_pb2_grpc.RouterServiceServicer,
                    router_pb2_grpc.add_RouterServiceServicer_to_server),
    TrainerService: (trainer_pb2, trainer_pb2_grpc.TrainerServiceServicer,
                     trainer_pb2_grpc.add_TrainerServiceServicer_to_server),
}  # fmt: skip
PERMISSION = grpc.StatusCode.PERMISSION_DENIED
# What nobody has implemented fails so: the call has come through the door.
THROUGH = grpc.StatusCode.INTERNAL


def methods(kind):
    (service,) = SERVICES[kind][0].DESCRIPTOR.services_by_name.values()
    return service.methods


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("".join(
        json.dumps({"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest()} | more) + "\n"
        for key, more in (("k-ops", {}), ("k-acme", {"tenant": "acme"}))
    ))  # fmt: skip
    return Keys(None, path)


def metadata(key, tenant=None):
    acting = () if tenant is None else (("x-matryoshka-tenant", tenant),)
    return (("authorization", f"Bearer {key}"), *acting) if key else acting


async def call(channel, kind, method, sent):
    """Make a call of whichever kind with an empty request; return its status."""
    make = getattr(channel, "_".join(
        "stream" if streaming else "unary"
        for streaming in (method.client_streaming, method.server_streaming)
    ))  # fmt: skip
    rpc = make(f"/{kind.grpc_name}/{method.name}")
    made = rpc(iter([b""]) if method.client_streaming else b"", metadata=sent)
    return await made.code()


@pytest.mark.parametrize("kind", SERVICES)
async def test_every_rpc_is_closed_to_tenants_unless_declared(kind, keys):
    """Over real gRPC: without a key, with a tenant's, with an operator's, and acting for one."""
    _, servicer, add_to = SERVICES[kind]
    metrics = ServiceMetrics("x", prometheus_client.CollectorRegistry())
    door = Door({kind.grpc_name: metrics}, State(True, True), keys, {
        kind.grpc_name: kind.open_to_tenants
    })  # fmt: skip
    server = grpc.aio.server(interceptors=[door])
    add_to(servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await check_every_rpc(kind, port)
    finally:
        await server.stop(None)


async def check_every_rpc(kind, port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in methods(kind):
            wanted = THROUGH if method.name in kind.open_to_tenants else PERMISSION
            assert await call(channel, kind, method, metadata("k-acme")) == wanted, method.name
            acting = metadata("k-ops", "acme")
            assert await call(channel, kind, method, acting) == wanted, method.name
            assert await call(channel, kind, method, metadata("k-ops")) == THROUGH
            other = metadata("k-acme", "globex")
            assert await call(channel, kind, method, other) == PERMISSION
            for key in (None, "k-wrong"):
                refused = await call(channel, kind, method, metadata(key))
                assert refused == grpc.StatusCode.UNAUTHENTICATED


def routes(kind, tmp_path):
    if kind is EncoderService:
        settings = EncoderSettings()
        return OpenAIRoutes(None, None, settings).routes() + RerankRoutes(None, settings).routes()
    if kind is RouterService:
        settings = RouterSettings(data_dir=tmp_path)
        routes = RouterService(settings, prometheus_client.CollectorRegistry()).routes()
        # Pages give the same to everyone.
        return [route for route in routes if not isinstance(route, Page)]
    return TrainerService(
        TrainerSettings(data_dir=tmp_path), prometheus_client.CollectorRegistry()
    ).routes()


@pytest.mark.parametrize("kind", SERVICES)
async def test_every_route_is_closed_to_tenants_unless_declared(kind, keys, tmp_path):
    """Every method of every route, and one that nobody has declared."""
    planted = Route("/v1/planted", lambda _: PlainTextResponse("planted"), methods=["GET", "POST"])
    every = [*routes(kind, tmp_path), planted]
    metrics = ServiceMetrics("x", prometheus_client.CollectorRegistry())
    app = build_app(
        {metrics: every}, State(True, True), Bodies(10**6, 5.0),
        prometheus_client.CollectorRegistry(), keys, kind.open_to_tenants,
    )  # fmt: skip
    # The services have not started: what gets through the door fails behind it.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for route in every:
            for method in route.methods:
                is_open = f"{method} {route.path}" in kind.open_to_tenants
                url = route.path.replace("{", "").replace("}", "").replace(":path", "")
                statuses = {
                    sent: (await client.request(method, url, headers=dict(sent))).status_code
                    for sent in (
                        metadata("k-acme"), metadata("k-ops", "acme"), metadata("k-ops"),
                        metadata("k-acme", "globex"), metadata(None), metadata("k-wrong"),
                    )
                }  # fmt: skip
                acme, acting, ops, other, nobody, wrong = statuses.values()
                assert (acme == 403, acting == 403) == (not is_open, not is_open), route.path
                assert ops not in (401, 403)
                assert other == 403
                assert (nobody, wrong) == (401, 401)
        refused = await client.get("/v1/planted", headers=dict(metadata("k-acme")))
        assert refused.json()["error"]["code"] == "permission_denied"


@pytest.mark.parametrize("kind", SERVICES)
def test_what_is_declared_is_there(kind, tmp_path):
    """A declaration that names nothing would be a spelling mistake."""
    calls = {method.name for method in methods(kind)} | {
        f"{method} {route.path}" for route in routes(kind, tmp_path) for method in route.methods
    }
    assert kind.open_to_tenants <= calls


def test_the_trainers_rpcs_are_for_operators():
    """They name folders of the machine; tenants have the HTTP routes."""
    names = {method.name for method in methods(TrainerService)}
    assert not names & TrainerService.open_to_tenants
