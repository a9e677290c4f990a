"""Attributes of a point: what users may attach, and how it lies in the storage.

In the storage they are kept apart by type: {"string": {..}, "number": {..}, "bool": {..}}. Then
a filter on a number can never meet a string or a boolean of the same key, on any engine
(measured: Edge 0.9 reads the match value True as the integer 1, and Qdrant's in-memory twin
counts True as 1 in ranges), and every path has one type, as a payload index wants it.
"""

import math
import re
from typing import Any

from services.shared.errors import InvalidRequest

Value = str | int | float | bool
Attributes = dict[str, Value]

MAX_ATTRIBUTES = 64
MAX_STRING_CHARS = 8192
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INT64 = range(-(2**63), 2**63)


def check_key(key: str, param: str) -> None:
    """Refuse a key that is not 1 to 64 letters, digits, '_' or '-'."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"{param}: an attribute's key must be 1 to 64 letters, digits, '_' or '-'", param
        )


def check_value(key: str, value: Value, param: str) -> None:
    """Refuse a number that is not finite or not 64-bit, and a string that is too long."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{param}: the number for {key!r} must be finite", param)
    if isinstance(value, int) and value not in _INT64:
        raise InvalidRequest(f"{param}: the integer for {key!r} must fit in 64 bits", param)
    if isinstance(value, str) and len(value) > MAX_STRING_CHARS:
        raise InvalidRequest(
            f"{param}: the string for {key!r} must have at most {MAX_STRING_CHARS} characters",
            param,
        )


def check_attributes(attributes: Attributes, param: str = "attributes") -> None:
    """Refuse attributes that could not be stored or filtered.

    Raises:
        InvalidRequest: names the key and says what is accepted.
    """
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidRequest(
            f"{param}: at most {MAX_ATTRIBUTES} attributes a point, got {len(attributes)}", param
        )
    for key, value in attributes.items():
        check_key(key, param)
        check_value(key, value, param)


def kind_of(value: Value) -> str:
    """Return the part of the stored attributes that a value lies in."""
    if isinstance(value, bool):  # before int: a bool is one in Python
        return "bool"
    return "string" if isinstance(value, str) else "number"


def to_stored(attributes: Attributes) -> dict[str, dict[str, Any]]:
    """Sort attributes by type; booleans become 0 and 1, which every engine can match."""
    stored: dict[str, dict[str, Any]] = {}
    for key, value in attributes.items():
        part = stored.setdefault(kind_of(value), {})
        part[key] = int(value) if isinstance(value, bool) else value
    return stored


def from_stored(stored: dict[str, dict[str, Any]]) -> Attributes:
    """Undo `to_stored`."""
    attributes: Attributes = {}
    for kind, part in stored.items():
        attributes.update({k: bool(v) for k, v in part.items()} if kind == "bool" else part)
    return attributes
