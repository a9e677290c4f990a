"""Every RPC over HTTP by the Connect protocol, which browsers and curl can speak.

In: a POST with one message, in JSON or protobuf; for an RPC that streams its answers, in an
envelope. Out: what the service answers over gRPC, in the same form. Each call is made anew over
gRPC with its caller's own key and tenant: it has no other rights and no other limits there, and is
counted and traced there. What the messages mean is not known here.

Source: the Connect protocol, connectrpc.com/docs/protocol, version 1.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.shared.auth import ACTING_FOR
from services.shared.connect_wire import (
    IS_END,
    Failure,
    envelope,
    open_envelope,
    read_message,
    unzip,
    write_message,
)
from services.shared.errors import (
    InvalidRequest,
    PermissionDenied,
    ServiceError,
    Unavailable,
    Unimplemented,
    WrongType,
)
from services.shared.http import Forwarded, read_body, while_connected
from services.shared.trace import outgoing

T = TypeVar("T")

_STREAM = "application/connect+"
# A larger message is read or written by a thread: 4 kB of hits take 4 to 6 ms to be JSON or to be
# read of it (a busy core), handing it over 50 to 90 us.
_SMALL_BYTES = 2048
_TIMEOUT_MS = re.compile("[0-9]{1,10}")


class Connect:
    """The RPCs of one service over HTTP.

    Args:
        service: which they are.
        stub: gives what calls go through, once the process has started.
        away: what to do when the service cannot be reached, in a sentence.
        max_body_bytes: longest body.
        closed: why nobody may call them here; "": they are open.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        stub: Callable[[], Any],
        away: str,
        max_body_bytes: int,
        closed: str = "",
    ) -> None:
        self._service = service
        self._stub = stub
        self._away = away
        self._max_body_bytes = max_body_bytes
        self._closed = closed

    def routes(self) -> list[Route]:
        """Return one route for each RPC; what has none is answered as not found."""
        return [
            Forwarded(f"/{self._service.full_name}/{method.name}", self._endpoint(method), refuse)
            for method in self._service.methods
        ]

    def _endpoint(
        self, method: MethodDescriptor
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await self._answer(method, request)
            except ServiceError as error:
                return refuse(request, error)
            except grpc.aio.AioRpcError as error:
                return _tell(request, self._failure(request, error))

        return answer

    async def _answer(self, method: MethodDescriptor, request: Request) -> Response:
        if self._closed:
            raise PermissionDenied(self._closed)
        is_json, is_zipped = _check_head(method, request.headers)
        timeout_s = _read_timeout_s(request.headers)
        content = await read_body(request, self._max_body_bytes)
        if method.server_streaming:
            content, is_zipped = open_envelope(content, may_zip=is_zipped)
        if is_zipped and content:
            content = await asyncio.to_thread(unzip, content, self._max_body_bytes)
            request.scope["body"].grow(len(content))
        kind = GetMessageClass(method.input_type)
        message = await _off_loop(len(content), lambda: read_message(kind, content, is_json))
        request.scope["is_counted"] = True
        call = getattr(self._stub(), method.name)(
            message, timeout=timeout_s, metadata=_metadata(request.headers)
        )
        if method.server_streaming:
            return _Answers(request, call, is_json, self._failure)
        try:
            answer = await while_connected(request, _ended(call))
        finally:
            call.cancel()
        written = await _write(answer, is_json)
        return Response(written, media_type=_media_type(request.headers))

    def _failure(self, request: Request, error: grpc.aio.AioRpcError) -> Failure:
        """Tell why a call failed behind here, or that it did not come that far."""
        failure = Failure.told(error)
        if failure.code is grpc.StatusCode.UNAVAILABLE and "retry-after" not in failure.headers:
            # Not one of our services, which say when to come again: nobody was there.
            failure = Failure.of(Unavailable(self._away))
            request.scope["is_counted"] = False
        request.scope["outcome"] = failure.code.name
        return failure


class _Answers(Response):
    """The answers of a stream, each as soon as it is there, and how it ended."""

    def __init__(
        self,
        request: Request,
        call: Any,  # noqa: ANN401 (grpc.aio's, which its stubs know of by name only)
        is_json: bool,
        failure: Callable[[Request, grpc.aio.AioRpcError], Failure],
    ) -> None:
        super().__init__(media_type=_media_type(request.headers))
        del self.headers["content-length"]
        self._request = request
        self._call = call
        self._is_json = is_json
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        try:
            with contextlib.suppress(ClientDisconnect):
                await while_connected(self._request, self._send(send))
        finally:
            self._call.cancel()

    async def _send(self, send: Send) -> None:
        end = envelope(IS_END, b"{}")
        try:
            async for answer in self._call:
                content = await _write(answer, self._is_json)
                body = envelope(0, content)
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except grpc.aio.AioRpcError as error:
            end = self._failure(self._request, error).end()
        await send({"type": "http.response.body", "body": end, "more_body": False})


def refuse(request: Request, error: ServiceError) -> Response:
    """Write an error in the shape that the request's caller reads."""
    request.scope["outcome"] = error.grpc_code.name
    return _tell(request, Failure.of(error))


def _tell(request: Request, failure: Failure) -> Response:
    # Callers of streams look for errors in their end, and nowhere else.
    if _media_type(request.headers).startswith(_STREAM) and failure.http_status != 415:
        return Response(failure.end(), media_type=_media_type(request.headers))
    return JSONResponse(failure.body(), failure.http_status, failure.headers)


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_head(method: MethodDescriptor, headers: Headers) -> tuple[bool, bool]:
    """Check what a request says of its body; return whether that is JSON, and in gzip.

    Raises:
        WrongType: the body is of another type than is read.
        Unimplemented: it is compressed in another way, or the RPC needs more than one message.
        InvalidRequest: it is of a version of the protocol that nobody here knows.
    """
    if method.client_streaming:
        raise Unimplemented(
            f"{method.name} takes a stream of messages, which HTTP does not carry here; call it "
            "over gRPC"
        )
    start = _STREAM if method.server_streaming else "application/"
    media_type = _media_type(headers)
    if media_type not in (f"{start}json", f"{start}proto"):
        raise WrongType(f"content-type must be {start}json or {start}proto")
    if headers.get("connect-protocol-version", "1") != "1":
        raise InvalidRequest("connect-protocol-version must be 1")
    encoding = "connect-content-encoding" if method.server_streaming else "content-encoding"
    if (coding := headers.get(encoding, "identity")) not in ("identity", "gzip"):
        raise Unimplemented(f"{encoding} must be identity or gzip")
    return media_type == f"{start}json", coding == "gzip"


def _read_timeout_s(headers: Headers) -> float | None:
    given = headers.get("connect-timeout-ms")
    if given is None:
        return None
    if not _TIMEOUT_MS.fullmatch(given):
        raise InvalidRequest("connect-timeout-ms must be a number of at most 10 digits")
    return int(given) / 1000


def _metadata(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Return what goes on with a call: its caller's own key and tenant, and its trace."""
    sent = ((name, headers.get(name, "")) for name in ("authorization", ACTING_FOR))
    # gRPC carries nothing else; no key of ours is like that.
    own = tuple((name, value) for name, value in sent if value.isascii() and value.isprintable())
    return tuple(pair for pair in own if pair[1]) + outgoing()


async def _write(message: Message, is_json: bool) -> bytes:
    return await _off_loop(message.ByteSize(), lambda: write_message(message, is_json))


async def _off_loop(num_bytes: int, work: Callable[[], T]) -> T:
    """Do the work here if the message is small, and in a thread if it is not."""
    return work() if num_bytes <= _SMALL_BYTES else await asyncio.to_thread(work)


async def _ended(call: Any) -> Message:  # noqa: ANN401 (grpc.aio's call)
    answer: Message = await call
    return answer
