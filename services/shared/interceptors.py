"""The gRPC door: every call passes here once, and every error leaves here.

For each call, in order: the API key, whether it may, readiness, whether it is used too often, then
the handler; then its outcome is counted and timed. A `ServiceError` becomes its gRPC status.
Anything else is our bug: the traceback is logged and the caller reads "internal error". When the
server closes, streams end with UNAVAILABLE, and their handlers need to know nothing of it: a stream
of requests ends before its next one, so that what was read is answered; a stream that only answers
ends before its next answer. The standard services, health and reflection, are open: of all this,
only the end of their streams is theirs.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc

from services.shared.auth import ACTING_FOR, Scopes, set_caller
from services.shared.errors import PARAM, ServiceError, Unavailable
from services.shared.keys import Keys
from services.shared.metrics import ServiceMetrics
from services.shared.state import State
from services.shared.trace import Span, Tracing

log = logging.getLogger(__name__)

# Probes and tools call these before the service is ready, and without a key.
_OPEN_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.")

# In quotes: these are generic in the stubs only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Guards and measures every call of a server.

    Args:
        metrics: by full gRPC service name.
        state: whether calls may be served now.
        keys: what callers must send.
        open_to_tenants: by full gRPC service name, the methods that tenants may call; any other is
            for operators.
        scopes: by full gRPC service name, what its methods need of a key.
        tracing: makes a span of each call; None: nothing is traced.

    Attributes:
        num_calls: how many calls have come, whatever became of them.
    """

    def __init__(
        self,
        metrics: dict[str, ServiceMetrics],
        state: State,
        keys: Keys,
        open_to_tenants: Mapping[str, frozenset[str]],
        scopes: Mapping[str, Scopes] = MappingProxyType({}),
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._state = state
        self._keys = keys
        self._open_to_tenants = open_to_tenants
        self._scopes = scopes
        self.num_calls = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        self.num_calls += 1
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler is None:
            return handler
        closing = self._state.closing
        if service.startswith(_OPEN_SERVICES):
            is_stream = handler.request_streaming or handler.response_streaming
            if not is_stream:
                return handler
            return _guarded(handler, _let_in, closing, None, method, None)
        metadata = dict(handler_call_details.invocation_metadata or ())
        header, tenant = metadata.get("authorization"), metadata.get(ACTING_FOR)

        def admit() -> AbstractContextManager[None]:
            principal = self._keys.principal(header if isinstance(header, str) else None)
            principal = principal.acting_for(tenant if isinstance(tenant, str) else None)
            principal.check_may(
                method, self._open_to_tenants.get(service, ()), self._scopes.get(service, {})
            )
            self._state.check_open()
            set_caller(principal)
            return principal.allowance.use()

        metrics = self._metrics[service]
        span = self._tracing.begin(metrics.service, method, metadata) if self._tracing else None
        return _guarded(handler, admit, closing, metrics, method, span)


def _let_in() -> AbstractContextManager[None]:
    """Ask for nothing."""
    return contextlib.nullcontext()


def _guarded(
    handler: _Handler,
    admit: Callable[[], AbstractContextManager[None]],
    closing: asyncio.Event,
    metrics: ServiceMetrics | None,
    method: str,
    span: Span | None,
) -> _Handler:
    """Wrap a handler of any of the four kinds; `metrics` of None counts nothing."""
    # The stubs describe synchronous servers; under grpc.aio behaviours are coroutines and
    # asynchronous generators.
    behaviours: Any = handler

    def bounded(request: Any) -> Any:  # noqa: ANN401 (any message type, or a stream of it)
        return _until_closing(request, closing) if handler.request_streaming else request

    async def unary(request: Any, context: _Context) -> Any:  # noqa: ANN401 (any message type)
        async with _Outcome(context, metrics, method, span):
            with admit():
                inner = behaviours.unary_unary or behaviours.stream_unary
                return await inner(bounded(request), context)

    async def stream(request: Any, context: _Context) -> AsyncIterator[Any]:  # noqa: ANN401
        async with (
            _Outcome(context, metrics, method, span),
            contextlib.AsyncExitStack() as used,
        ):
            used.enter_context(admit())
            inner = behaviours.unary_stream or behaviours.stream_stream
            if inspect.iscoroutinefunction(inner):
                inner = _written(inner)
            answers = inner(bounded(request), context)
            ended = answers if handler.request_streaming else _until_closing(answers, closing)
            # Closed here and now when the caller leaves, not when they are collected as garbage.
            async with contextlib.aclosing(answers), contextlib.aclosing(ended) as responses:
                async for response in responses:
                    yield response

    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(handler.request_streaming, handler.response_streaming)]
    wrapped: _Handler = make(
        stream if handler.response_streaming else unary,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return wrapped


def _written(
    behaviour: Callable[[Any, _Context], Awaitable[None]],
) -> Callable[[Any, _Context], AsyncGenerator[Any, None]]:
    """Make a stream of a handler that writes its answers itself, as the health service's does."""

    async def stream(request: Any, context: _Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
        await behaviour(request, context)
        return
        yield  # never; it makes this a stream

    return stream


async def _until_closing(
    messages: AsyncIterator[Any], closing: asyncio.Event
) -> AsyncGenerator[Any, None]:
    """Give a stream's messages until it ends or the server closes.

    Raises:
        Unavailable: the server closes; requests that were read so far will be answered.
    """
    closed = asyncio.ensure_future(closing.wait())
    try:
        while not closing.is_set():
            message = asyncio.ensure_future(anext(messages))
            try:
                await asyncio.wait((message, closed), return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    break
                yield message.result()
            except StopAsyncIteration:
                return
            finally:
                if message.cancel():  # a handler can be closed only when it has stopped
                    await asyncio.wait((message,))
    finally:
        closed.cancel()
    raise Unavailable("the service is stopping; ask again, shortly, for what was not answered")


class _Outcome:
    """Counts, times and traces one call, and turns what it raised into a gRPC status."""

    def __init__(
        self, context: _Context, metrics: ServiceMetrics | None, method: str, span: Span | None
    ) -> None:
        self._context = context
        self._span = span
        self._metrics = metrics
        self._method = method
        self._start = time.perf_counter()

    async def __aenter__(self) -> None:
        if self._span:
            self._span.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        status = grpc.StatusCode.OK
        message = ""
        if isinstance(error, ServiceError):
            status, message = error.grpc_code, error.message
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            status = grpc.StatusCode.CANCELLED
        elif error is not None:
            log.error("%s failed", self._method, exc_info=error)
            status, message = grpc.StatusCode.INTERNAL, "internal error"
        if self._metrics:
            self._metrics.observe(self._method, status.name, time.perf_counter() - self._start)
            self._metrics.note_limit(error)
        if self._span:
            self._span.outcome = status.name
            self._span.__exit__(None, None, None)
        if message:
            retry_after_s = getattr(error, "retry_after_s", None)
            param = error.param if isinstance(error, ServiceError) else None
            told = _retry_metadata(retry_after_s) + _param_metadata(param)
            await self._context.abort(status, message, told)


def _retry_metadata(retry_after_s: int | None) -> tuple[tuple[str, str], ...]:
    """Say when to try again: as HTTP does, and as gRPC's own retries read it."""
    if not retry_after_s:
        return ()
    return (
        ("retry-after", str(retry_after_s)),
        ("grpc-retry-pushback-ms", str(retry_after_s * 1000)),
    )


def _param_metadata(param: str | None) -> tuple[tuple[str, str], ...]:
    """Say which field of the request it is about, where metadata can."""
    if not param or not param.isascii() or not param.isprintable():
        return ()
    return ((PARAM, param),)
