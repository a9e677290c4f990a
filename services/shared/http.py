"""The HTTP door: OpenAI's error shape, the API key, readiness, bounded bodies, probes, metrics.

Services give their routes; what they have in common is here, once.
"""

import asyncio
import json
import logging
import time
from collections.abc import Container, Coroutine
from types import MappingProxyType
from typing import Any, TypeVar

import orjson
import prometheus_client
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.shared.auth import ACTING_FOR, Scopes, set_caller
from services.shared.bodies import Bodies, Body
from services.shared.connection import EXTENSION, Connection
from services.shared.errors import (
    InvalidRequest,
    NotFound,
    ServiceError,
    TooLarge,
    TooSlow,
    outcome_of_status,
)
from services.shared.keys import Keys
from services.shared.metrics import ServiceMetrics
from services.shared.state import State
from services.shared.trace import Tracing

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLIENT_LEFT = 499  # nginx's number; nobody reads the answer


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Read a body, never holding more than `max_body_bytes` of it.

    Raises:
        TooLarge: the body is longer.
        TooSlow: it does not arrive in time.
        Overloaded: there is no room for it beside the bodies of other requests.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    held: Body = request.scope["body"]
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(held.max_s):
            async for chunk in request.stream():
                chunks.append(chunk)
                held.grow(len(chunk))
                if held.num_bytes > max_body_bytes:
                    raise _too_large(max_body_bytes)
    except TimeoutError as error:
        raise TooSlow(f"the body must arrive within {held.max_s:g} s") from error
    return b"".join(chunks)


def _too_large(max_body_bytes: int) -> TooLarge:
    return TooLarge(f"the body must be at most {max_body_bytes} bytes")


def parse_json(body: bytes) -> object:
    """Parse a JSON body.

    Raises:
        InvalidRequest: it is not JSON in UTF-8.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        # Takes what the fast parser refuses and clients may send all the same, such as NaN or
        # half a surrogate pair: the field that holds it then says what is wrong.
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body must be JSON in UTF-8") from error


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or stop it as soon as the caller is gone.

    Raises:
        ClientDisconnect: the caller left; nobody reads the answer.
    """
    caller = asyncio.current_task()
    assert caller
    connection: Connection = request.scope["extensions"][EXTENSION]["connection"]
    if connection.is_lost:
        work.close()
        raise ClientDisconnect
    with connection.cancels(caller):
        try:
            return await work
        except asyncio.CancelledError:
            if connection.is_lost and not caller.uncancel():
                raise ClientDisconnect from None
            raise


def error_response(error: ServiceError) -> JSONResponse:
    """Write an error in OpenAI's shape, with the headers that its SDKs obey."""
    headers = {"x-should-retry": "true" if error.retry_after_s else "false"}
    if error.retry_after_s:
        headers["retry-after"] = str(error.retry_after_s)
    return JSONResponse(error.openai_body(), error.http_status, headers)


class _Guard:
    """Checks key, permission, readiness and limits of API calls; counts, times and traces them."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServiceMetrics,
        state: State,
        bodies: Bodies,
        keys: Keys,
        open_to_tenants: Container[str],
        scopes: Scopes,
        tracing: Tracing | None,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._bodies = bodies
        self._metrics = metrics
        self._state = state
        self._keys = keys
        self._open_to_tenants = open_to_tenants
        self._scopes = scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = f"{scope['method']} {scope['route_path']}"
        if self._tracing is None:
            await self._answer(method, scope, receive, send)
            return
        headers = Request(scope).headers
        with self._tracing.begin(self._metrics.service, method, headers) as span:
            span.outcome = await self._answer(method, scope, receive, send)

    async def _answer(self, method: str, scope: Scope, receive: Receive, send: Send) -> str:
        """Return the call's outcome."""
        request = Request(scope)
        status = 500
        start = time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not self._state.is_ready:  # the caller's next call is for another server
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            principal = self._keys.principal(request.headers.get("authorization"))
            principal = principal.acting_for(request.headers.get(ACTING_FOR))
            principal.check_may(method, self._open_to_tenants, self._scopes)
            self._state.check_open()
            set_caller(principal)
            with principal.allowance.use(), self._bodies.hold() as scope["body"]:
                await self._app(scope, receive, send_and_note)
        except ServiceError as error:
            self._metrics.note_limit(error)
            await error_response(error)(scope, receive, send_and_note)
        finally:
            outcome = "CANCELLED" if status == _CLIENT_LEFT else outcome_of_status(status)
            self._metrics.observe(method, outcome, time.perf_counter() - start)
        return outcome


def build_app(
    routes: dict[ServiceMetrics, list[Route]],
    state: State,
    bodies: Bodies,
    registry: prometheus_client.CollectorRegistry,
    keys: Keys,
    open_to_tenants: Container[str],
    scopes: Scopes = MappingProxyType({}),
    tracing: Tracing | None = None,
) -> Starlette:
    """Join the routes of one or several services with the probes and metrics of the process.

    Args:
        routes: by the metrics of their service.
        state: whether calls may be served now.
        bodies: bounds those that are held.
        registry: what `/metrics` shows.
        keys: what callers must send.
        open_to_tenants: the routes that tenants may call, such as "GET /v1/files"; any other is for
            operators.
        scopes: what the routes need of a key.
        tracing: makes a span of each call; None: nothing is traced.
    """

    def metrics(_: Request) -> Response:
        page = prometheus_client.generate_latest(registry)
        return Response(page, media_type=prometheus_client.CONTENT_TYPE_PLAIN_0_0_4)

    guarded: list[BaseRoute] = []
    for service_metrics, service_routes in routes.items():
        for route in service_routes:
            route.app = _named(
                _Guard(
                    route.app,
                    service_metrics,
                    state,
                    bodies,
                    keys,
                    open_to_tenants,
                    scopes,
                    tracing,
                ),
                route.path,
            )
            guarded.append(route)
    return Starlette(
        routes=[
            *_probes(state),
            Route("/metrics", metrics),
            *guarded,
        ],
        exception_handlers={
            ServiceError: _on_service_error,
            ClientDisconnect: _on_disconnect,
            HTTPException: _on_http_exception,
            Exception: _on_bug,
        },
    )


def build_probes(state: State) -> Starlette:
    """Serve the probes and nothing else, for a port that asks nobody who they are."""
    return Starlette(routes=_probes(state))


def _probes(state: State) -> list[BaseRoute]:
    def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    def readyz(_: Request) -> Response:
        ready = state.is_ready
        return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)

    return [Route("/livez", livez), Route("/readyz", readyz)]


def _named(app: ASGIApp, path: str) -> ASGIApp:
    """Put the route's pattern into the scope: a label of few values, unlike the path itself."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route_path"] = path
        await app(scope, receive, send)

    return call


def _on_service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(error)


def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known: ServiceError = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}")
    if error.status_code == 404:
        known = NotFound(f"no such route: {request.method} {request.url.path}")
    response = error_response(known)
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response


def _on_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(ServiceError("internal error"))
