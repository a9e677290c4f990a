"""What a tenant may see: its own points, in collections that are its own or everybody's.

Tenants share collections; each point belongs to one of them or to the operator. Where a tenant is
None it is the operator who asks, and sees all. Whatever a tenant may not see is, to it, not there.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from services.router.filters import All, Filter, OfTenant
from services.router.storage.store import Collection, Store, not_found
from services.shared.errors import InvalidRequest

T = TypeVar("T")

_SLICES = "tenant/"
# A vector store's collection that is no tenant's is the operator's alone.
_OPERATORS_STORE = re.compile(r"vs_[0-9a-f]{32}")


async def find(store: Store, name: str, tenant: str | None) -> Collection:
    """Look a collection up for a tenant; NotFound, also if it is another tenant's."""
    collection = await store.find(name)
    if not may_see(collection, tenant):
        raise not_found(name)
    return collection


def may_see(collection: Collection, tenant: str | None) -> bool:
    """Say whether a collection is there for a tenant: its own, or one that is nobody's."""
    if tenant is None or collection.tenant is not None:
        return tenant in (None, collection.tenant)
    return not _OPERATORS_STORE.match(collection.name)


def own(condition: Filter | None, tenant: str | None) -> Filter | None:
    """Return the condition that finds, of what a search looks for, the tenant's own points."""
    if tenant is None:
        return condition
    mine = OfTenant(tenant)
    return mine if condition is None else All((mine, condition))


def to_slice(slice_: str, tenant: str | None) -> str:
    """Return the name under which a search's slice is watched: each tenant has its own ones.

    Raises:
        InvalidRequest: an operator names one that is a tenant's.
    """
    if tenant is not None:
        return f"{_SLICES}{tenant}/{slice_}"
    if slice_.startswith(_SLICES):
        raise InvalidRequest(
            f"slice: names that begin with {_SLICES!r} are for tenants' searches", "slice"
        )
    return slice_


def owner(slice_: str) -> str:
    """Return what the slices of one tenant, or of the operator, have in common."""
    return "/".join(slice_.split("/", 2)[:2]) if slice_.startswith(_SLICES) else ""


def own_slices(by_slice: Mapping[str, T], tenant: str | None) -> dict[str, T]:
    """Return what is known of a tenant's slices, by its own names; an operator sees all as is."""
    if tenant is None:
        return dict(by_slice)
    mine = to_slice("", tenant)
    return {
        slice_.removeprefix(mine): known
        for slice_, known in by_slice.items()
        if slice_.startswith(mine)
    }
