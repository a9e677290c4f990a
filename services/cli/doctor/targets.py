"""Where the services of a deployment are, as the user says it, and with which keys."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from services.shared.address import check_address
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


def read_target(name: Name, http: str, grpc: str, api_key: str | None) -> Target | None:
    """Check what a user gave; None: the deployment does not have the service.

    Raises:
        InvalidRequest: says what would be accepted.
    """
    if ABSENT in (http, grpc):
        return None
    if not http.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"--{name}-http must be a URL such as http://127.0.0.1:8000, or none, got {http!r}"
        )
    try:
        return Target(name, http.rstrip("/"), check_address(grpc), api_key)
    except ValueError as error:
        raise InvalidRequest(f"--{name} {error}, or none") from None
