"""What the Connect protocol puts on the wire: messages, envelopes around them, and errors.

In: bytes as they came, and what a service answered. Out: messages, and bytes to send. Knows of no
request and no call.

Source: the Connect protocol, connectrpc.com/docs/protocol, version 1.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import DecodeError, Message

from services.shared.errors import PARAM, InvalidRequest, ServiceError, TooLarge, WrongType

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

_ENVELOPE = struct.Struct(">BI")
_IS_ZIPPED, IS_END = 1, 2
_GZIP = zlib.MAX_WBITS | 16
_MAX_SENTENCE = 500


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
        return envelope(IS_END, orjson.dumps({"error": self.body(), "metadata": metadata}))


def _status(code: grpc.StatusCode) -> int:
    return _HTTP_STATUS.get(code, 500)


def open_envelope(body: bytes, may_zip: bool) -> tuple[bytes, bool]:
    """Take the one message of a request out of its envelope; return whether it is in gzip, too.

    Args:
        body: the envelope, and nothing else.
        may_zip: whether the request says that its messages may be in gzip.

    Raises:
        InvalidRequest: the body is not one whole message.
    """
    if len(body) < _ENVELOPE.size:
        raise InvalidRequest(
            "the body must be one message in an envelope: a zero byte, the message's length in "
            "four bytes, big-endian, and the message"
        )
    flags, length = _ENVELOPE.unpack_from(body)
    if flags not in ((0, _IS_ZIPPED) if may_zip else (0,)):
        raise InvalidRequest(
            "the flags of an envelope must be 0, or 1 with 'connect-content-encoding: gzip'"
        )
    if length != len(body) - _ENVELOPE.size:
        raise InvalidRequest(
            f"the envelope must hold one message and nothing behind it: it says {length} bytes, "
            f"and {len(body) - _ENVELOPE.size} came"
        )
    return body[_ENVELOPE.size :], flags == _IS_ZIPPED


def unzip(content: bytes, max_bytes: int) -> bytes:
    """Decompress gzip, never holding more than `max_bytes` and one.

    Raises:
        TooLarge: it is longer.
        InvalidRequest: it is not gzip, or not whole.
    """
    reader = zlib.decompressobj(_GZIP)
    try:
        unzipped = reader.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest("the message must be in gzip, as the request says") from error
    if len(unzipped) > max_bytes:
        raise TooLarge(f"the message must be at most {max_bytes} bytes")
    if not reader.eof or reader.unused_data:
        raise InvalidRequest("the message must be whole in gzip, with nothing behind it")
    return unzipped


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


def write_message(message: Message, is_json: bool) -> bytes:
    """Write a message as JSON or protobuf."""
    return orjson.dumps(MessageToDict(message)) if is_json else message.SerializeToString()
