"""A server's life: listen (not ready), warm up, ready, drain, stop.

One process serves one service or all three: one HTTP port, one gRPC port, one event loop. The
first SIGTERM or SIGINT drains (not ready, wait, let calls in flight end, close); the second
ends the process at once. A failure while warming up ends the process.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.shared.http import build_app
from services.shared.interceptors import Door
from services.shared.metrics import ServiceMetrics
from services.shared.settings import ServerSettings
from services.shared.state import State

log = logging.getLogger(__name__)


class Service(Protocol):
    """What the encoder, the router and the trainer each give to the server."""

    name: str
    grpc_name: str
    metrics: ServiceMetrics

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the gRPC servicer."""

    def routes(self) -> list[Route]:
        """Return the HTTP routes of the API."""

    async def start(self) -> None:
        """Load and warm up; the server is ready once all services have started."""

    async def stop(self) -> None:
        """Close everything, after the last call has ended."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    http: str
    grpc: str


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Return the gRPC options that server and clients of the suite share."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Two servers must never share a port silently.
        ("grpc.so_reuseport", 0),
    ]


class _Http(uvicorn.Server):
    """uvicorn without its own signal handlers: the life of the process is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(
    services: list[Service],
    settings: ServerSettings,
    registry: CollectorRegistry,
    on_listen: Callable[[Address], None] = lambda _: None,
    on_ready: Callable[[Address], None] = lambda _: None,
) -> None:
    """Serve until a signal ends it.

    Args:
        services: started in this order, stopped in reverse.
        settings: ports, bounds and times of the process.
        registry: what `/metrics` shows.
        on_listen: called when both ports are bound and nothing is loaded yet.
        on_ready: called when calls are served.
    """
    state = State()
    stopping = _catch_signals()
    grpc_server, health_servicer, grpc_port = _build_grpc(services, settings, state)
    listener = socket.create_server((settings.host, settings.http_port), backlog=1024)
    app = build_app(
        {service.metrics: service.routes() for service in services},
        state,
        registry,
        settings.api_key,
    )
    http_server = _Http(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, int(settings.grace_s)),
        )
    )
    host = settings.host
    address = Address(f"http://{host}:{listener.getsockname()[1]}", f"{host}:{grpc_port}")

    async def set_ready(value: bool) -> None:
        state.is_ready = value
        states = health_pb2.HealthCheckResponse
        for name in ("", *(service.grpc_name for service in services)):
            await health_servicer.set(name, states.SERVING if value else states.NOT_SERVING)

    await set_ready(False)
    await grpc_server.start()
    http_task = asyncio.create_task(http_server.serve([listener]))
    on_listen(address)
    async with contextlib.AsyncExitStack() as started:
        for service in services:
            started.push_async_callback(service.stop)
            await service.start()
            log.info("%s started", service.name)
        if not stopping.is_set():
            state.is_open = True
            await set_ready(True)
            on_ready(address)
            await stopping.wait()
            log.info("draining for %s s, then at most %s s", settings.drain_s, settings.grace_s)
            await set_ready(False)
            await asyncio.sleep(settings.drain_s)
        http_server.should_exit = True
        await asyncio.gather(grpc_server.stop(settings.grace_s), http_task)
    log.info("stopped")


def _build_grpc(
    services: list[Service], settings: ServerSettings, state: State
) -> tuple[grpc.aio.Server, health.aio.HealthServicer, int]:
    door = Door({s.grpc_name: s.metrics for s in services}, state, settings.api_key)
    server = grpc.aio.server(
        interceptors=[door], options=channel_options(settings.max_message_bytes)
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for service in services:
        service.add_to(server)
    names = [service.grpc_name for service in services]
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    port = server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")
    return server, health_servicer, port


def _catch_signals() -> asyncio.Event:
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stopping
