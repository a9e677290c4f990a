"""Conditions on attributes as people write them: lang=en, year>=2020."""

import json
import re
from collections.abc import Iterator, Sequence

from services.cli.bulk.batches import to_value
from services.cli.table import one_line
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb

_CONDITION = re.compile(r"([\w-]+)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_INT64 = range(-(2**63), 2**63)
_KINDS = {
    "string_value": "a string",
    "int_value": "a number",
    "double_value": "a number",
    "bool_value": "true or false",
}


def read_filter(conditions: Sequence[str]) -> pb.Filter | None:
    """Read conditions that must all hold; None: there are none.

    A value is what it looks like, a number, true or false, or else a string; in double quotes it
    is a string in any case. Types never mix: `year="2020"` finds no number.

    Raises:
        InvalidRequest: says what would be accepted.
    """
    filters = [_read(condition) for condition in conditions]
    if len(filters) < 2:
        return filters[0] if filters else None
    return pb.Filter(all=pb.FilterList(filters=filters))


def doubt(hits: Sequence[pb.Hit], asked: pb.Filter) -> str:
    """Say what may be wrong with conditions that hold of no point.

    Args:
        hits: of the same search without them.
        asked: the conditions.
    """
    if not hits:
        return "nothing is found without --filter either"
    kinds = {
        key: _KINDS[value.WhichOneof("value") or "string_value"]
        for hit in hits
        for key, value in hit.attributes.items()
    }
    if all(kinds.get(key) == kind for key, kind in _asked(asked)):
        return (
            "--filter lets no point through: there are such attributes, and none has such a value"
        )
    told = ", ".join(f"{one_line(key)} ({kind})" for key, kind in sorted(kinds.items()))
    return (
        f"--filter lets no point through: the {len(hits)} nearest without it have "
        f"{told or 'no attributes'}; names and kinds of values must be the same"
    )


def _asked(condition: pb.Filter) -> Iterator[tuple[str, str]]:
    """Yield the keys of conditions as `read_filter` makes them, each with its kind of value."""
    for one in condition.all.filters or [condition]:
        if one.HasField("range"):
            yield one.range.key, _KINDS["double_value"]
        else:
            equals = one.negated.equals if one.HasField("negated") else one.equals
            yield equals.key, _KINDS[equals.value.WhichOneof("value") or "string_value"]


def _read(condition: str) -> pb.Filter:
    matched = _CONDITION.fullmatch(condition)
    if matched is None:
        raise InvalidRequest(
            "--filter must be KEY=VALUE, or have one of !=, <, <=, > and >= in place of =; "
            f"got {condition!r}"
        )
    key, sign, text = matched.groups()
    value = _read_value(text)
    if isinstance(value, int) and value not in _INT64:
        raise InvalidRequest(
            f"--filter: an integer must fit in 64 bits, got {condition!r}; in double quotes it is "
            "a string"
        )
    if sign in _BOUNDS:
        if isinstance(value, bool | str):
            raise InvalidRequest(f"--filter: {sign} compares numbers, got {condition!r}")
        bounds = pb.Range(key=key)
        setattr(bounds, _BOUNDS[sign], float(value))
        return pb.Filter(range=bounds)
    equals = pb.Filter(equals=pb.Equals(key=key, value=to_value(value)))
    return equals if sign == "=" else pb.Filter(negated=equals)


def _read_value(text: str) -> str | float | bool:
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float) else text
