"""The one tree of errors, each class with its gRPC code and its HTTP status.

    ServiceError             INTERNAL             500
    ├── InvalidRequest       INVALID_ARGUMENT     400
    │   ├── TooLarge         INVALID_ARGUMENT     413
    │   ├── TooSlow          INVALID_ARGUMENT     408
    │   └── WrongType        INVALID_ARGUMENT     415
    ├── Unauthenticated      UNAUTHENTICATED      401
    ├── PermissionDenied     PERMISSION_DENIED    403
    ├── NotFound             NOT_FOUND            404
    ├── AlreadyExists        ALREADY_EXISTS       409
    ├── WrongState           FAILED_PRECONDITION  400
    ├── Unimplemented        UNIMPLEMENTED        501
    ├── Overloaded           RESOURCE_EXHAUSTED   429   retry
    ├── Unavailable          UNAVAILABLE          503   retry
    └── TookTooLong          DEADLINE_EXCEEDED    504   retry

Code inside a service raises these and nothing else on purpose. The two wires translate them in
one place each: `interceptors.py` for gRPC, `server.py` for HTTP. Messages say what would be
accepted and never carry a user's text or a secret.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

PARAM = "x-matryoshka-param"
"""The metadata, or header, that names the field of the request which an error is about."""


class ServiceError(Exception):
    """A failure that the caller may read about.

    Args:
        message: one sentence; for wrong input it says what would be accepted.
        param: the field of the request that it is about, where there is one.
    """

    grpc_code = grpc.StatusCode.INTERNAL
    http_status = 500
    # `type` and `code` of OpenAI's error body.
    openai_type = "server_error"
    openai_code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def openai_body(self) -> dict[str, dict[str, str | None]]:
        """Return OpenAI's error body; all four keys are always there."""
        return {
            "error": {
                "message": self.message,
                "type": self.openai_type,
                "param": self.param,
                "code": self.openai_code,
            }
        }


class InvalidRequest(ServiceError):
    """The request can never work as it is."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    openai_type = "invalid_request_error"


class TooLarge(InvalidRequest):
    """The request is over a bound on its size."""

    http_status = 413


class TooSlow(InvalidRequest):
    """The request did not arrive in time."""

    http_status = 408


class WrongType(InvalidRequest):
    """The request's body is of a type that is not read."""

    http_status = 415


class Unauthenticated(ServiceError):
    """The API key is missing or wrong."""

    grpc_code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    openai_type = "invalid_request_error"
    openai_code = "invalid_api_key"


class PermissionDenied(ServiceError):
    """The API key is valid, and not for this."""

    grpc_code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    openai_type = "invalid_request_error"
    openai_code = "permission_denied"


class NotFound(ServiceError):
    """The named thing does not exist."""

    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    openai_type = "invalid_request_error"
    openai_code = "not_found"


class ModelNotFound(NotFound):
    """The named model is not loaded."""

    openai_code = "model_not_found"


class AlreadyExists(ServiceError):
    """The name is taken."""

    grpc_code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    openai_type = "invalid_request_error"
    openai_code = "already_exists"


class WrongState(ServiceError):
    """The request is fine, but not in the present state of what it is about."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 400
    openai_type = "invalid_request_error"
    openai_code = "wrong_state"


class Unimplemented(ServiceError):
    """Nothing answers such a call here."""

    grpc_code = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501
    openai_type = "invalid_request_error"
    openai_code = "unimplemented"


class Overloaded(ServiceError):
    """A queue or another bound is full; nothing was done."""

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "rate_limit_exceeded"
    retry_after_s: int | None = 1


class Unavailable(ServiceError):
    """The service, or one that it needs, cannot answer now."""

    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    openai_code = "unavailable"
    retry_after_s = 1


class TookTooLong(ServiceError):
    """The caller's deadline passed."""

    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    openai_code = "deadline_exceeded"


# In this order the first class of a code or a status is the one that stands for it.
_TREE = (
    ServiceError,
    InvalidRequest,
    TooLarge,
    TooSlow,
    WrongType,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    WrongState,
    Unimplemented,
    Overloaded,
    Unavailable,
    TookTooLong,
)
_BY_CODE = {error.grpc_code: error for error in reversed(_TREE)}
_BY_STATUS = {error.http_status: error for error in reversed(_TREE)}


def outcome_of_status(http_status: int) -> str:
    """Name an HTTP status as the gRPC status that stands for the same, for metrics."""
    if http_status < 400:
        return grpc.StatusCode.OK.name
    kind = _BY_STATUS.get(http_status, InvalidRequest if http_status < 500 else ServiceError)
    return kind.grpc_code.name


@contextmanager
def peer_errors(peer: str) -> Iterator[None]:
    """Turn a peer's gRPC status back into the error that it stands for, with its time to wait.

    Args:
        peer: the service that is called, for the message when it cannot be reached.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        kind = _BY_CODE.get(error.code(), ServiceError)
        details = error.details() or error.code().name
        if kind is Unavailable:
            details = f"the {peer} cannot be reached or is not ready: {details}"
        ours = kind(details)
        ours.retry_after_s = _retry_after_s(error) or kind.retry_after_s
        raise ours from error


def _retry_after_s(error: grpc.aio.AioRpcError) -> int | None:
    """Read when the peer wants to be asked again, in seconds; None: it does not say."""
    metadata: Any = error.trailing_metadata()  # the stubs describe another type than is there
    value = dict(metadata or ()).get("retry-after", "")
    return int(value) if value.isdigit() else None
