"""Where the services of a deployment are, as the user says it, and with which keys."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from services.cli.peer import GRPC_PORT_AHEAD, TLS
from services.shared.address import check_address, host_of
from services.shared.errors import InvalidRequest

Name = Literal["encoder", "router", "trainer"]
NAMES: tuple[Name, ...] = get_args(Name)
ABSENT = "none"
"""What a user gives for a service that the deployment does not have."""


@dataclass(frozen=True, slots=True)
class Target:
    """One service."""

    name: Name
    http: str
    """URL without a path."""
    grpc: str
    """host:port."""
    api_key: str | None = field(repr=False)


def read_target(name: Name, http: str | None, grpc: str, api_key: str | None) -> Target | None:
    """Check what a user gave; None: the deployment does not have the service.

    Args:
        name: of the service.
        http: URL of its HTTP; None: on gRPC's host, at the port that is 1000 less, as everywhere
            unless it was set.
        grpc: host:port of its gRPC.
        api_key: to call it with.

    Raises:
        InvalidRequest: says what would be accepted.
    """
    if ABSENT in (http, grpc):
        return None
    try:
        check_address(grpc)
    except ValueError as error:
        raise InvalidRequest(f"--{name} {error}, or none") from None
    url = _url_beside(grpc) if http is None else http
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"--{name}-http must be a URL such as http://127.0.0.1:8000, or none, got {url!r}"
        )
    return Target(name, url.rstrip("/"), grpc, api_key)


def _url_beside(grpc: str) -> str:
    """Return where HTTP is served beside gRPC; "": its address does not tell."""
    host, port = host_of(grpc), int(grpc.rpartition(":")[2])
    if not host or port <= GRPC_PORT_AHEAD:
        return ""
    scheme = "http" if TLS.get() is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port - GRPC_PORT_AHEAD}"
