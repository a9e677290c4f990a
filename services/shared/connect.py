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
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import orjson
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.shared.auth import ACTING_FOR
from services.shared.errors import (
    PARAM,
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
_HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""Others are 500."""

# A larger message is read or written by a thread: 4 kB of hits take 4 to 6 ms to be JSON or to be
# read of it (a busy core), handing it over 50 to 90 us.
_SMALL_BYTES = 2048
_ENVELOPE = struct.Struct(">BI")
_IS_COMPRESSED, _IS_END = 1, 2
_MAX_SENTENCE = 500
_TIMEOUT_MS = re.compile("[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call failed."""

    code: grpc.StatusCode
    message: str
    headers: dict[str, str]
    """When to try again, and what field it is about, where that is known."""
    http_status: int

    @classmethod
    def of(cls, error: ServiceError) -> "Failure":
        """Tell one of ours."""
        headers = {} if error.param is None else {PARAM: error.param}
        if error.retry_after_s:
            headers["retry-after"] = str(error.retry_after_s)
        # The protocol asks for this one by number, and for the status of the code otherwise.
        status = error.http_status if isinstance(error, WrongType) else _status(error.grpc_code)
        return cls(error.grpc_code, error.message, headers, status)

    @classmethod
    def told(cls, error: grpc.aio.AioRpcError) -> "Failure":
        """Tell what a service behind has answered."""
        metadata: Any = error.trailing_metadata()  # the stubs describe another type
        headers = {key: value for key, value in metadata or () if key in (PARAM, "retry-after")}
        return cls(error.code(), error.details() or "", headers, _status(error.code()))

    def body(self) -> dict[str, str]:
        """Return it as the protocol's error."""
        code = "canceled" if self.code is grpc.StatusCode.CANCELLED else self.code.name.lower()
        return {"code": code, "message": self.message}

    def end(self) -> bytes:
        """Return it as the end of a stream."""
        metadata = {key: [value] for key, value in self.headers.items()}
        return envelope(_IS_END, orjson.dumps({"error": self.body(), "metadata": metadata}))


def _status(code: grpc.StatusCode) -> int:
    return _HTTP_STATUS.get(code, 500)


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
                return _write(request, self._failure(request, error))

        return answer

    async def _answer(self, method: MethodDescriptor, request: Request) -> Response:
        if self._closed:
            raise PermissionDenied(self._closed)
        is_json = _check_head(method, request.headers)
        timeout_s = _read_timeout_s(request.headers)
        body = await read_body(request, self._max_body_bytes)
        if method.server_streaming:
            body = open_envelope(body)
        kind = GetMessageClass(method.input_type)
        message = await _off_loop(len(body), lambda: read_message(kind, body, is_json))
        request.scope["is_counted"] = True
        call = getattr(self._stub(), method.name)(
            message, timeout=timeout_s, metadata=_metadata(request.headers)
        )
        if method.server_streaming:
            return _Answers(request, call, is_json, self._failure)
        answer = await while_connected(request, _ended(call))
        content = await _write_message(answer, is_json)
        return Response(content, media_type=_media_type(request.headers))

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
        end = envelope(_IS_END, b"{}")
        try:
            async for answer in self._call:
                content = await _write_message(answer, self._is_json)
                body = envelope(0, content)
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except grpc.aio.AioRpcError as error:
            end = self._failure(self._request, error).end()
        await send({"type": "http.response.body", "body": end, "more_body": False})


def refuse(request: Request, error: ServiceError) -> Response:
    """Write an error in the shape that the request's caller reads."""
    request.scope["outcome"] = error.grpc_code.name
    return _write(request, Failure.of(error))


def _write(request: Request, failure: Failure) -> Response:
    # Callers of streams look for errors in their end, and nowhere else.
    if _media_type(request.headers).startswith(_STREAM) and failure.http_status != 415:
        return Response(failure.end(), media_type=_media_type(request.headers))
    return JSONResponse(failure.body(), failure.http_status, failure.headers)


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_head(method: MethodDescriptor, headers: Headers) -> bool:
    """Check what a request says of its body; return whether that is JSON.

    Raises:
        WrongType: the body is of another type than is read.
        Unimplemented: it is compressed, or the RPC needs more than one message.
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
    if headers.get(encoding, "identity") != "identity":
        raise Unimplemented(f"{encoding} must be identity, or left out")
    return media_type == f"{start}json"


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


def open_envelope(body: bytes) -> bytes:
    """Take the one message of a request out of its envelope.

    Raises:
        InvalidRequest: the body is not one whole message.
        Unimplemented: it is compressed.
    """
    if len(body) < _ENVELOPE.size:
        raise InvalidRequest(
            "the body must be one message in an envelope: a zero byte, the message's length in "
            "four bytes, big-endian, and the message"
        )
    flags, length = _ENVELOPE.unpack_from(body)
    if flags == _IS_COMPRESSED:
        raise Unimplemented("messages must not be compressed: the flags of an envelope must be 0")
    if flags:
        raise InvalidRequest("the flags of an envelope must be 0")
    if length != len(body) - _ENVELOPE.size:
        raise InvalidRequest(
            f"the envelope must hold one message and nothing behind it: it says {length} bytes, "
            f"and {len(body) - _ENVELOPE.size} came"
        )
    return body[_ENVELOPE.size :]


def envelope(flags: int, message: bytes) -> bytes:
    """Put a message of a stream into its envelope."""
    return _ENVELOPE.pack(flags, len(message)) + message


def read_message(kind: type[Message], content: bytes, is_json: bool) -> Message:
    """Read a message from JSON or protobuf.

    Raises:
        InvalidRequest: it is not such a message; says what it may be.
    """
    name = kind.DESCRIPTOR.name
    try:
        if not is_json:
            return kind.FromString(content)
        # The parser takes an empty list, too.
        if not content.lstrip().startswith(b"{"):
            raise InvalidRequest(f"the message must be {name} as a JSON object, such as {{}}")
        return Parse(content, kind())
    except DecodeError as error:
        raise InvalidRequest(f"the message must be {name} in protobuf") from error
    except (ParseError, ValueError) as error:
        why = " ".join(str(error).split())[:_MAX_SENTENCE]
        raise InvalidRequest(f"the message must be {name} in JSON: {why}") from error


async def _write_message(message: Message, is_json: bool) -> bytes:
    """Write a message as JSON or protobuf."""
    return await _off_loop(
        message.ByteSize(),
        lambda: orjson.dumps(MessageToDict(message)) if is_json else message.SerializeToString(),
    )


async def _off_loop(num_bytes: int, work: Callable[[], T]) -> T:
    """Do the work here if the message is small, and in a thread if it is not."""
    return work() if num_bytes <= _SMALL_BYTES else await asyncio.to_thread(work)


async def _ended(call: Any) -> Message:  # noqa: ANN401 (grpc.aio's call)
    answer: Message = await call
    return answer
