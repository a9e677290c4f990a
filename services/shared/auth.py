"""Who calls: an operator, who may do everything, or a tenant, who sees what is its own.

Beside that a key may be for some kinds of work only, its scopes, and be used so often and no more
(`limits.py`). The doors find it out from the request's key (`keys.py`) before anything else, and a
handler asks `caller()`. A handler that runs without a door has no caller, and asking is then an
error: it never passes for an operator.
"""

import re
from collections.abc import Container, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from typing import TypeAlias

from services.shared.errors import InvalidRequest, PermissionDenied
from services.shared.limits import Allowance

ACTING_FOR = "x-matryoshka-tenant"
"""The header, or metadata, in which an operator names the tenant that a call is made for."""

_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Scope(Flag):
    """Kinds of work. A key is for some of them, and a call needs one of those it declares."""

    EMBED = auto()
    SEARCH = auto()
    WRITE = auto()
    TRAIN = auto()
    ADMIN = auto()

    @property
    def names(self) -> list[str]:
        """As the keys file spells them."""
        return [str(scope.name).lower() for scope in self]


ANY_SCOPE = ~Scope(0)
Scopes: TypeAlias = Mapping[str, Scope]
"""By call, an RPC's name or a route: the scopes of which a key needs one. Another needs admin."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever a key belongs to."""

    name: str
    tenant: str | None = None
    """None: an operator."""
    scopes: Scope = ANY_SCOPE
    """What the key is for; a tenant's is for nothing that is closed to tenants all the same."""
    allowance: Allowance = field(default_factory=Allowance, compare=False, repr=False)
    """How often it may be used: one and the same for all calls with the key."""

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
        return replace(self, tenant=tenant)

    def check_may(self, call: str, open_to_tenants: Container[str], scopes: Scopes) -> None:
        """Refuse what is not declared to be for this key.

        Args:
            call: an RPC's name, or a route such as "GET /v1/files".
            open_to_tenants: calls that tenants may make; others are for operators.
            scopes: what calls need.

        Raises:
            PermissionDenied: it is for operators, or for keys with a scope that this one lacks.
        """
        if self.tenant is not None and call not in open_to_tenants:
            raise PermissionDenied(f"{call} is for operators, and this key is a tenant's")
        needed = scopes.get(call, Scope.ADMIN)
        if not self.scopes & needed:
            raise PermissionDenied(
                f"{call} needs a key with the scope {' or '.join(needed.names)}, and this one has "
                f"{', '.join(self.scopes.names)}"
            )


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
