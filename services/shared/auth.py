"""Who calls: an operator, who may do everything, or a tenant, who sees what is its own.

The doors find it out from the request's key (`keys.py`) before anything else, and a handler asks
`caller()`. A handler that runs without a door has no caller, and asking is then an error: it never
passes for an operator.
"""

import re
from collections.abc import Container
from contextvars import ContextVar
from dataclasses import dataclass

from services.shared.errors import InvalidRequest, PermissionDenied

ACTING_FOR = "x-matryoshka-tenant"
"""The header, or metadata, in which an operator names the tenant that a call is made for."""

_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever a key belongs to."""

    name: str
    tenant: str | None = None
    """None: an operator."""

    def acting_for(self, tenant: str | None) -> "Principal":
        """Return who a call is made as, if it names a tenant.

        Raises:
            InvalidRequest: no tenant can have that name.
            PermissionDenied: a tenant names another one.
        """
        if tenant is None or tenant == self.tenant:
            return self
        if self.tenant is not None:
            raise PermissionDenied(f"{ACTING_FOR} is for operators; leave it out")
        if not is_tenant(tenant):
            raise InvalidRequest(f"{ACTING_FOR} must be 1 to 64 letters, digits, '_', '-' or '.'")
        return Principal(self.name, tenant)

    def check_may(self, call: str, open_to_tenants: Container[str]) -> None:
        """Refuse a tenant what is not declared to be for tenants.

        Raises:
            PermissionDenied: it is for operators.
        """
        if self.tenant is not None and call not in open_to_tenants:
            raise PermissionDenied(f"{call} is for operators, and this key is a tenant's")


_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Return who made the call that is being answered; LookupError if none is."""
    return _caller.get()


def set_caller(principal: Principal) -> None:
    """Note who made the call that this task answers. For the doors."""
    _caller.set(principal)


def is_tenant(name: str) -> bool:
    """Say whether a tenant may have this name: 1 to 64 letters, digits, '_', '-' or '.'."""
    return _TENANT.fullmatch(name) is not None
