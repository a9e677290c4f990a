"""The running service that a command calls: where it is, with which key, and what went wrong."""

import asyncio
import re
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import grpc
import typer

from services.shared import channel
from services.shared.address import check_address
from services.shared.errors import PermissionDenied, ServiceError, Unauthenticated
from services.shared.tls import CertificatesError, TlsFiles

T = TypeVar("T")

TLS: ContextVar[TlsFiles | None] = ContextVar("tls", default=None)
"""With what all calls of this command are made, as `matryoshka --tls-ca ...` says; None: no TLS."""


KEY_VARIABLE = "MATRYOSHKA_CLI_API_KEY"
"""Holds the key of every command that calls a service; one of the service's own goes before it."""
ADDRESS_VARIABLE = "MATRYOSHKA_CLI_ADDRESS"
"""Holds the address of all three services, where `matryoshka up` serves them elsewhere."""
VARIABLES = (
    KEY_VARIABLE,
    ADDRESS_VARIABLE,
    "MATRYOSHKA_CLI_TLS_CA",
    "MATRYOSHKA_CLI_TLS_CERT",
    "MATRYOSHKA_CLI_TLS_KEY",
)
"""All that are named so and are read."""
_KEY_CODES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_NO_CONNECTION = "connections to all backends failing"
"""How gRPC begins to tell that no call was made."""
_COMMANDS = {
    "; ListCollections shows": "; `matryoshka collections` shows",
    "; run Calibrate": "; run `matryoshka calibrate NAME`",
    "; point the alias at another collection first": (
        "; point it at another one first: `matryoshka alias ALIAS COLLECTION`"
    ),
    "; search without hybrid,": "; search without --words,",
}
Metadata = tuple[tuple[str, str], ...]
"""What a call carries beside its request."""
_NONE: Mapping[str, str] = {}
KEY_ADVICE = f"give a key that may do this with --api-key, or in {KEY_VARIABLE}"


def _checked(param: typer.CallbackParam, value: str) -> str:
    try:
        return check_address(value)
    except ValueError as error:
        print(f"{param.opts[0]} {error}", file=sys.stderr)
        raise typer.Exit(2) from None


RouterAddress = Annotated[
    str,
    typer.Option(
        "--router",
        help="host:port of the router's gRPC.",
        envvar=ADDRESS_VARIABLE,
        callback=_checked,
    ),
]
RouterKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="The router's key.", envvar=["MATRYOSHKA_ROUTER_API_KEY", KEY_VARIABLE]
    ),
]
EncoderAddress = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="host:port of the encoder's gRPC.",
        envvar=ADDRESS_VARIABLE,
        callback=_checked,
    ),
]
EncoderKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="The encoder's key.", envvar=["MATRYOSHKA_ENCODER_API_KEY", KEY_VARIABLE]
    ),
]
TrainerAddress = Annotated[
    str,
    typer.Option(
        "--trainer",
        help="host:port of the trainer's gRPC.",
        envvar=ADDRESS_VARIABLE,
        callback=_checked,
    ),
]
TrainerKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="The trainer's key.", envvar=["MATRYOSHKA_TRAINER_API_KEY", KEY_VARIABLE]
    ),
]
HERE = "127.0.0.1:9000"
"""Where `matryoshka up` serves all."""
GRPC_PORT_AHEAD = 1000
"""By how much the port of gRPC is ahead of HTTP's, where neither or only one was set."""


@dataclass(frozen=True)
class RunningService:
    """Where one of the suite runs; each of its kinds names its stub."""

    stub: ClassVar[type[Any]]
    address: str
    """host:port of its gRPC."""
    api_key: str | None

    def ask(self, method: str, request: object) -> Any:  # noqa: ANN401 (one of several responses)
        """Make one call; grpc.aio.AioRpcError: it was refused, or there is no such service."""
        return asyncio.run(self._ask(method, request))

    async def _ask(self, method: str, request: object) -> Any:  # noqa: ANN401
        async with connect(self.address) as opened:
            ask: Callable[..., Awaitable[Any]] = getattr(self.stub(opened), method)
            return await ask(request, metadata=metadata(self.api_key))


def call(
    command: Callable[[], T], option: str, address: str, fields: Mapping[str, str] = _NONE
) -> T:
    """Run a command that calls a service; what goes wrong is one sentence and an exit code.

    Args:
        command: does the work; what it returns is returned.
        option: that names the service, such as "--router".
        address: of the service.
        fields: {field of the service's request: the command's option, or argument, for it}.
    """
    try:
        return command()
    except (ServiceError, OSError, CertificatesError) as error:
        tell(error)
        raise typer.Exit(2) from None
    except grpc.aio.AioRpcError as error:
        details = _in_options(_in_commands(error.details() or ""), fields)
        is_away = error.code() is grpc.StatusCode.UNAVAILABLE
        print(_unreachable(details, option, address) if is_away else details, file=sys.stderr)
        if error.code() in _KEY_CODES:
            print(KEY_ADVICE, file=sys.stderr)
        raise typer.Exit(1) from None


def _in_commands(details: str) -> str:
    """Name a command where a service names its RPC, which nobody calls from a terminal."""
    for rpc, command in _COMMANDS.items():
        details = details.replace(rpc, command)
    return details


def _in_options(details: str, fields: Mapping[str, str]) -> str:
    """Name the option where a service begins with the field of a request that it is about."""
    for field, option in fields.items():
        if re.match(rf"{field}\b", details):
            return option + details.removeprefix(field)
    return details


def _unreachable(details: str, option: str, address: str) -> str:
    """Say why a service could not be reached, by gRPC's words for it, and what to do."""
    # A service that was reached and misses another one tells of that in the same words, later on.
    is_own = details.startswith(_NO_CONNECTION)
    if is_own and "Connection refused" in details:
        return (
            f"nothing listens at {address}: start `matryoshka up`, or give {option} (the port of "
            "gRPC, which `up` prints at its start)"
        )
    if is_own and "Expected SETTINGS frame" in details:  # HTTP/1 answers without one
        return (
            f"{address} speaks no gRPC, and is likely the port of HTTP: give {option} the port of "
            "gRPC, which for `matryoshka up` is the one of HTTP and 1000, unless it was set"
        )
    told = f"{details}\n{option} is {address}: host:port of the {option.lstrip('-')}'s gRPC"
    if TLS.get() is None:
        told += "; if that speaks TLS, give its CA: matryoshka --tls-ca FILE ..."
    return told


def tell(error: Exception, fields: Mapping[str, str] = _NONE) -> None:
    """Print what went wrong, and of a key what to do; `fields`: see `call`."""
    print(_in_options(describe(error), fields), file=sys.stderr)
    if isinstance(error, Unauthenticated | PermissionDenied):
        print(KEY_ADVICE, file=sys.stderr)


def describe(error: Exception) -> str:
    """Say what went wrong; of files by their names and without numbers."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def connect(
    address: str, options: channel.Options = (), tls: TlsFiles | None = None
) -> grpc.aio.Channel:
    """Open a channel to a service; to be closed by the caller.

    Args:
        address: host:port of its gRPC.
        options: of gRPC.
        tls: None: what this command was given.
    """
    files = tls or TLS.get()
    credentials = None if files is None else files.channel_credentials()
    return channel.connect(address, options, credentials)


def tls_context() -> ssl.SSLContext:
    """Return how HTTPS is spoken: with the files that this command was given, or as usual."""
    files = TLS.get()
    return ssl.create_default_context() if files is None else files.client_context()


def metadata(api_key: str | None) -> Metadata:
    """Return what a call carries to show a key; nothing without one."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
