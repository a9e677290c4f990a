"""A filter in the words of Qdrant: its JSON, which both engines are built from.

One place for what differs between our meaning (`filters.py`) and the engine's. Plain dicts, so
that they can cross to an Edge worker.
"""

from typing import Any as Json

from services.router.attributes import Value, kind_of
from services.router.filters import (
    All,
    Any,
    AnyOf,
    Equals,
    Filter,
    Negated,
    OfKeys,
    OfTenant,
    Range,
)
from services.router.storage.store import TENANT

Conditions = dict[str, Json]

# From here on a double does not hold every integer, and a range would blur neighbours.
_EXACT_IN_DOUBLE = 2**53


def to_conditions(root: Filter) -> Conditions:
    """Return a Qdrant filter, {"must": [..]} or its kin, as a dict."""
    node = _convert(root)
    return {"must": [node]} if "key" in node or "has_id" in node else node


def to_count(without_text: bool, tenant: str | None) -> Conditions | None:
    """Return the filter of points to be counted; None: all of them."""
    text: list[Conditions] = [{"key": "text", "match": {"value": ""}}] if without_text else []
    must = text if tenant is None else [*text, _convert(OfTenant(tenant))]
    return {"must": must} if must else None


def _convert(node: Filter) -> Conditions:
    match node:
        case All(filters):
            return {"must": [_convert(inner) for inner in filters]}
        case Any(filters):
            return {"should": [_convert(inner) for inner in filters]}
        case Negated(inner):
            return {"must_not": [_convert(inner)]}
        case Equals(key, value):
            return _equals(key, value)
        case AnyOf(key, values):
            return _any_of(key, values)
        case Range(key, gt, gte, lt, lte):
            bounds = {"gt": gt, "gte": gte, "lt": lt, "lte": lte}
            given = {name: bound for name, bound in bounds.items() if bound is not None}
            return {"key": f"attributes.number.{key}", "range": given}
        case OfTenant(tenant):
            return {"key": TENANT, "match": {"value": tenant}}
        case OfKeys(keys):
            return {"has_id": list(keys)}


def _equals(key: str, value: Value) -> Conditions:
    path = f"attributes.{kind_of(value)}.{key}"
    if isinstance(value, bool):
        return {"key": path, "match": {"value": int(value)}}
    if isinstance(value, str) or (isinstance(value, int) and abs(value) >= _EXACT_IN_DOUBLE):
        return {"key": path, "match": {"value": value}}
    # A match takes no doubles, and the integer 1 would not match a stored 1.0; a range does both.
    return {"key": path, "range": {"gte": float(value), "lte": float(value)}}


def _any_of(key: str, values: tuple[Value, ...]) -> Conditions:
    strings = [value for value in values if isinstance(value, str)]
    arms = [_equals(key, value) for value in values if not isinstance(value, str)]
    if strings:
        arms.append({"key": f"attributes.string.{key}", "match": {"any": strings}})
    return {"should": arms}
