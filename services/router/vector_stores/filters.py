"""OpenAI's filters on files' attributes, turned into the router's conditions on points.

`ne` and `nin` also hold where the attribute is missing; ranges read numbers.
Source: openai/openai-openapi, `ComparisonFilter` and `CompoundFilter`.
"""

from services.router.attributes import Value
from services.router.filters import (
    MAX_DEPTH,
    All,
    Any,
    AnyOf,
    Equals,
    Filter,
    Negated,
    Range,
    check_filter,
)
from services.router.vector_stores.attributes import MAX_KEY_CHARS, point_key, read_value
from services.shared.errors import InvalidRequest

_RANGES = ("gt", "gte", "lt", "lte")
_COMPARISONS = ("eq", "ne", *_RANGES, "in", "nin")
_COMPOUNDS = ("and", "or")


def read_filters(value: object) -> Filter:
    """Read a filter.

    Raises:
        InvalidRequest: one sentence that says what is accepted.

    >>> read_filters({"type": "ne", "key": "lang", "value": "en"})
    Negated(filter=Equals(key='lang', value='en'))
    """
    condition = _read(value, 1)
    try:
        check_filter(condition)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, "filters") from error
    return condition


def _read(value: object, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise _refuse(f"at most {MAX_DEPTH} levels may be nested")
    if not isinstance(value, dict) or value.get("type") not in (*_COMPARISONS, *_COMPOUNDS):
        raise _refuse(
            f"a filter must be an object whose type is one of {', '.join(_COMPARISONS)} (with key "
            f"and value) or {', '.join(_COMPOUNDS)} (with filters)"
        )
    kind = value["type"]
    if kind not in _COMPOUNDS:
        _check_fields(value, ("type", "key", "value"))
        return _compare(kind, _read_key(value["key"]), value["value"])
    _check_fields(value, ("type", "filters"))
    inner = value["filters"]
    if not isinstance(inner, list) or not inner:
        raise _refuse(f"{kind!r} needs a list of at least one filter")
    filters = tuple(_read(item, depth + 1) for item in inner)
    return All(filters) if kind == "and" else Any(filters)


def _check_fields(value: dict[str, object], fields: tuple[str, ...]) -> None:
    if set(value) != set(fields):
        raise _refuse(f"a filter of type {value['type']!r} has the fields {', '.join(fields)}")


def _read_key(key: object) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS:
        raise _refuse(f"key must be a string of 1 to {MAX_KEY_CHARS} characters")
    return point_key(key)


def _compare(kind: str, key: str, value: object) -> Filter:
    if kind in ("in", "nin"):
        if not isinstance(value, list) or not value:
            raise _refuse(f"{kind!r} needs a list of at least one value")
        among = AnyOf(key, tuple(_read_value(item) for item in value))
        return among if kind == "in" else Negated(among)
    if kind in _RANGES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _refuse(f"{kind!r} needs a number as its value")
        read_value(value, "filters")
        return Range(key, **{kind: float(value)})
    equals = Equals(key, _read_value(value))
    return equals if kind == "eq" else Negated(equals)


def _read_value(value: object) -> Value:
    if not isinstance(value, str | int | float):
        raise _refuse("a value must be a string, a number or a boolean")
    return read_value(value, "filters")


def _refuse(reason: str) -> InvalidRequest:
    return InvalidRequest(f"filters: {reason}", "filters")
