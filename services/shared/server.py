"""A server's life: listen (not ready), warm up, ready, drain, stop.

One process serves one service or all three: one HTTP port, one gRPC port, one event loop. The
first SIGTERM or SIGINT drains (not ready, wait, let calls in flight end, close); the second
ends the process at once. A failure while warming up ends the process.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import grpc
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, disable_created_metrics
from starlette.routing import Route
from starlette.types import ASGIApp

from services.shared.auth import Scopes
from services.shared.bodies import Bodies
from services.shared.connection import Connection
from services.shared.http import build_app, build_probes
from services.shared.interceptors import Door
from services.shared.keys import Keys
from services.shared.limits import Limits
from services.shared.listen import Address, listen
from services.shared.metrics import ServiceMetrics, show_server
from services.shared.settings import ServerSettings
from services.shared.state import State
from services.shared.tls import ServerTls
from services.shared.trace import Tracing
from services.shared.trace_export import start_tracing

log = logging.getLogger(__name__)


# Callers connect anew after it, and then see servers that have come since; calls go on meanwhile.
_CONNECTION_AGE_MS = 60_000
# Looks at whether calls come in, before gRPC stops: so often, and so many without one.
_QUIET_LOOK_S = 0.01
_QUIET_LOOKS = 5
_MAX_QUIET_LOOKS = 100


class Service(Protocol):
    """What the encoder, the router and the trainer each give to the server."""

    name: str
    grpc_name: str
    open_to_tenants: frozenset[str]
    """What tenants may call: names of RPCs, and routes such as "GET /v1/files". Whatever is not
    among them is for operators."""
    scopes: Scopes
    """What each RPC and each route needs of a key; what is not among them needs admin."""

    @property
    def metrics(self) -> ServiceMetrics:
        """Requests and stage times, and whatever the service adds."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the gRPC servicer."""

    def routes(self) -> list[Route]:
        """Return the HTTP routes of the API."""

    async def start(self) -> None:
        """Load and warm up; the server is ready once all services have started."""

    async def stop(self) -> None:
        """Close everything, after the last call has ended."""


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
    build: Callable[[Address], list[Service]],
    settings: ServerSettings,
    registry: CollectorRegistry,
    name: str,
    on_ready: Callable[[Address], None] = lambda _: None,
    own_socket: Path | None = None,
) -> None:
    """Serve until a signal ends it.

    Args:
        build: makes the services, once the ports are bound and known; they are started in this
            order and stopped in reverse.
        settings: ports, bounds and times of the process.
        registry: what `/metrics` shows.
        name: of the process, in its traces.
        on_ready: called when calls are served.
        own_socket: where the process reaches itself, see `listen`; None: it does not call itself.

    Raises:
        CannotListen: one of the ports cannot be had.
        KeysError: the keys file cannot be used.
        CertificatesError: the certificates cannot be used.
        Unavailable: what a service needs cannot be had, such as a folder that another one uses.
    """
    limits = Limits(settings.key_requests_per_minute, settings.key_concurrent_calls)
    keys = Keys(settings.api_key, settings.keys_file, limits, settings.peer_keys_file)
    tls = _tls(settings)
    stopping = _catch_signals()
    state = State()
    metrics: dict[str, ServiceMetrics] = {}
    open_to_tenants: dict[str, frozenset[str]] = {}
    scopes: dict[str, Scopes] = {}
    tracing = start_tracing(settings.trace_to, settings.trace_share, name)
    door = Door(metrics, state, keys, open_to_tenants, scopes, tracing)
    grpc_server = grpc.aio.server(
        interceptors=[door],
        options=[
            *channel_options(settings.max_message_bytes),
            ("grpc.max_connection_age_ms", _CONNECTION_AGE_MS),
        ],
        maximum_concurrent_rpcs=settings.max_calls,
    )
    ports = listen(grpc_server, settings, tls, own_socket)
    # Else each counter has a gauge beside it: when it began, which nobody reads. It has no types.
    leave_out_times: Callable[[], None] = disable_created_metrics
    leave_out_times()
    show_server(registry, version("matryoshka-suite"), settings.data_dir)
    services = build(ports.address)
    metrics.update({service.grpc_name: service.metrics for service in services})
    open_to_tenants.update({service.grpc_name: service.open_to_tenants for service in services})
    scopes.update({service.grpc_name: service.scopes for service in services})
    health = _add_services(grpc_server, services)
    http_server = _build_http(services, settings, state, registry, keys, tls, tracing)
    await health.set_ready(False)
    await grpc_server.start()
    http_task = asyncio.create_task(http_server.serve([ports.http]))
    watches = [keys.watch(), *([tls.watch()] if tls else [])]
    async with contextlib.AsyncExitStack() as started:
        for watch in watches:
            started.callback(asyncio.create_task(watch).cancel)
        if ports.probes is not None:
            await started.enter_async_context(_probes(ports.probes, state))
            host, port = ports.probes.getsockname()[:2]
            log.info("probes are answered at http://%s:%s", host, port)
        if tracing:
            started.push_async_callback(asyncio.to_thread, tracing.close)
        for service in services:
            started.push_async_callback(service.stop)
            await service.start()
            log.info("%s started", service.name)
        if not stopping.is_set():
            _keep_what_is_loaded()
            state.is_open = state.is_ready = True
            await health.set_ready(True)
            on_ready(ports.address)
            await stopping.wait()
            log.info("draining for %s s, then at most %s s", settings.drain_s, settings.grace_s)
            state.is_ready = False
            await health.set_ready(False)
            await asyncio.sleep(settings.drain_s)
        # From here on new calls are told to try again, and streams end: another server is there.
        state.close()
        await asyncio.gather(
            _stop_grpc(grpc_server, door, settings.grace_s),
            _stop_http(http_server, http_task, settings.grace_s),
        )
    log.info("stopped")


def _tls(settings: ServerSettings) -> ServerTls | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerTls(
        settings.tls_cert,
        settings.tls_key,
        settings.tls_grpc_client_ca,
        settings.tls_http_client_ca,
    )


@contextlib.asynccontextmanager
async def _probes(listener: socket.socket, state: State) -> AsyncIterator[None]:
    """Answer probes, on a port of their own, until all else has ended."""
    server = _Http(_config(build_probes(state)))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def _stop_grpc(server: grpc.aio.Server, door: Door, grace_s: float) -> None:
    """Stop at a moment when no call is coming in.

    gRPC cancels what has come but was not yet handed over when it stops, and no caller repeats a
    call that was CANCELLED. Until then the door tells them to try again.
    """
    quiet = 0
    for _ in range(_MAX_QUIET_LOOKS):
        num_calls = door.num_calls
        await asyncio.sleep(_QUIET_LOOK_S)
        quiet = quiet + 1 if door.num_calls == num_calls else 0
        if quiet == _QUIET_LOOKS:
            break
    await server.stop(grace_s)


async def _stop_http(server: _Http, task: asyncio.Task[None], grace_s: float) -> None:
    """Listen on, to refuse politely, until the calls in flight have ended; then stop."""
    in_flight = set(server.server_state.tasks)
    if in_flight:
        await asyncio.wait(in_flight, timeout=grace_s)
    server.should_exit = True
    await task


class _Health:
    """The standard gRPC health service, for the process as a whole and for each service."""

    def __init__(self, names: list[str]) -> None:
        self.servicer = HealthServicer()
        self._names = ["", *names]

    async def set_ready(self, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.servicer.set(name, states.SERVING if ready else states.NOT_SERVING)


def _add_services(server: grpc.aio.Server, services: list[Service]) -> _Health:
    names = [service.grpc_name for service in services]
    health = _Health(names)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    for service in services:
        service.add_to(server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], server)
    return health


def _build_http(
    services: list[Service],
    settings: ServerSettings,
    state: State,
    registry: CollectorRegistry,
    keys: Keys,
    tls: ServerTls | None,
    tracing: Tracing | None,
) -> _Http:
    app = build_app(
        {service.metrics: service.routes() for service in services},
        state,
        Bodies(settings.max_bodies_bytes, settings.max_body_s),
        registry,
        keys,
        frozenset().union(*(service.open_to_tenants for service in services)),
        {call: scope for service in services for call, scope in service.scopes.items()},
        tracing,
    )
    config = _config(app, settings.max_connections)
    if tls is not None:
        config.ssl_context_factory = lambda *_: tls.http_context
    return _Http(config)


def _config(app: ASGIApp, max_connections: int | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=Connection,
        # Nobody here asks for the caller's address.
        proxy_headers=False,
        limit_concurrency=max_connections,
        # What is in flight has had its time before: see `_stop_http`.
        timeout_graceful_shutdown=1,
    )


def _keep_what_is_loaded() -> None:
    """Let the collector pass over what is there at the start, half a million objects of libraries.

    None of them is garbage, and looking at all of them again holds up every call (270 ms for
    those of torch).
    """
    gc.collect()
    gc.freeze()


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
