"""Conditions on attributes: a small tree, its bounds, and what it means.

`matches` is the definition: each engine must agree with it on every filter and point. A missing
attribute fulfils no condition, and so fulfils the negation of each. Types never mix: a number
equals numbers only (1 equals 1.0), a string strings, a boolean booleans. Ranges read numbers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from services.router.attributes import Attributes, Value, check_key, check_value, kind_of
from services.shared.errors import InvalidRequest

MAX_DEPTH = 8
MAX_TERMS = 1024


@dataclass(frozen=True, slots=True)
class All:
    """Every one holds."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one holds."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Negated:
    """Does not hold."""

    filter: "Filter"


@dataclass(frozen=True, slots=True)
class Equals:
    """The attribute is there and equals the value."""

    key: str
    value: Value


@dataclass(frozen=True, slots=True)
class Range:
    """The attribute is a number within every bound that is given."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The attribute equals one of the values."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class OfTenant:
    """The point is the tenant's. Made here (`tenants.py`); no request can say it."""

    tenant: str


@dataclass(frozen=True, slots=True)
class OfKeys:
    """The point is one of these, by the engine's ids. Made here too (`hybrid.py`)."""

    keys: tuple[str, ...]


Filter = All | Any | Negated | Equals | Range | AnyOf | OfTenant | OfKeys


def check_filter(root: Filter) -> None:
    """Refuse a filter that is malformed or too large, before any work.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    terms = 0
    for node, depth in _walk(root, 1):
        terms += len(node.values) if isinstance(node, AnyOf) else 1
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"filter: at most {MAX_DEPTH} levels may be nested", "filter")
        if terms > MAX_TERMS:
            raise InvalidRequest(
                f"filter: at most {MAX_TERMS} conditions and values in all", "filter"
            )
        _check_node(node)


def _walk(node: Filter, depth: int) -> Iterator[tuple[Filter, int]]:
    yield node, depth
    if isinstance(node, All | Any):
        for inner in node.filters:
            yield from _walk(inner, depth + 1)
    elif isinstance(node, Negated):
        yield from _walk(node.filter, depth + 1)


def _check_node(node: Filter) -> None:
    if isinstance(node, All | Any):
        # An empty `any` would hold for everything on the engines and for nothing in logic.
        if not node.filters:
            raise InvalidRequest("filter: 'all' and 'any' need at least one filter", "filter")
        return
    if isinstance(node, Negated):
        return
    if isinstance(node, OfTenant | OfKeys):
        raise InvalidRequest("filter: whose a point is cannot be asked for", "filter")
    check_key(node.key, "filter")
    if isinstance(node, Range):
        bounds = [b for b in (node.gt, node.gte, node.lt, node.lte) if b is not None]
        if not bounds or not all(map(math.isfinite, bounds)):
            raise InvalidRequest(
                f"filter: the range on {node.key!r} needs at least one of gt, gte, lt and lte, "
                "each a finite number",
                "filter",
            )
        return
    values = node.values if isinstance(node, AnyOf) else (node.value,)
    if not values:
        raise InvalidRequest(f"filter: any_of on {node.key!r} needs at least one value", "filter")
    for value in values:
        check_value(node.key, value, "filter")


def matches(root: Filter, attributes: Attributes, tenant: str | None = None, key: str = "") -> bool:
    """Say whether a tenant's point with these attributes, and that key, fulfils the filter.

    >>> matches(All((Equals("lang", "en"), Range("year", gte=2020))), {"lang": "en", "year": 2024})
    True
    """
    match root:
        case All(filters):
            return all(matches(inner, attributes, tenant, key) for inner in filters)
        case Any(filters):
            return any(matches(inner, attributes, tenant, key) for inner in filters)
        case Negated(inner):
            return not matches(inner, attributes, tenant, key)
        case Equals(name, value):
            return name in attributes and _equal(attributes[name], value)
        case AnyOf(name, values):
            return name in attributes and any(_equal(attributes[name], v) for v in values)
        case Range():
            return _within(root, attributes.get(root.key))
        case OfTenant(wanted):
            return wanted == tenant
        case OfKeys(keys):
            return key in keys


def _equal(stored: Value, wanted: Value) -> bool:
    return kind_of(stored) == kind_of(wanted) and stored == wanted


def _within(bounds: Range, stored: Value | None) -> bool:
    if stored is None or isinstance(stored, str | bool):
        return False
    return (
        (bounds.gt is None or stored > bounds.gt)
        and (bounds.gte is None or stored >= bounds.gte)
        and (bounds.lt is None or stored < bounds.lt)
        and (bounds.lte is None or stored <= bounds.lte)
    )
