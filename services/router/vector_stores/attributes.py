"""Attributes of files, as OpenAI has them, and how they lie on the points of their chunks.

OpenAI takes any key of up to 64 characters; a point takes letters, digits, '_' and '-'. Other keys
stand on points as a digest: what is shown to callers comes from the file, never from a point.
"""

import hashlib
import re

from services.router.attributes import Attributes, Value, check_value, kind_of
from services.shared.errors import InvalidRequest

MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"x-[0-9a-f]{32}")


def point_key(key: str) -> str:
    """Return the name that an attribute has on points.

    >>> point_key("lang"), point_key("in stock")
    ('lang', 'x-b672e5f404fdde8e268e959439379c32')
    """
    if _PLAIN.fullmatch(key) and not _DIGEST.fullmatch(key):
        return key
    return "x-" + hashlib.blake2s(key.encode(errors="replace"), digest_size=16).hexdigest()


def to_point(attributes: Attributes) -> Attributes:
    """Return a file's attributes as its points have them."""
    return {point_key(key): value for key, value in attributes.items()}


def are_same(one: Attributes, other: Attributes) -> bool:
    """Say whether two files' attributes are the same to a filter: in Python 1 is True as well.

    >>> are_same({"a": 1}, {"a": 1.0}), are_same({"a": 1}, {"a": True})
    (True, False)
    """
    return one == other and all(kind_of(one[key]) == kind_of(other[key]) for key in one)


def read_attributes(value: object) -> Attributes:
    """Check a file's attributes; None has none.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    pairs = _read_pairs(value, "attributes")
    attributes: Attributes = {}
    for key, item in pairs.items():
        if not isinstance(item, str | int | float):
            raise InvalidRequest(
                f"attributes: values must be strings of up to {MAX_VALUE_CHARS} characters, "
                "numbers or booleans",
                "attributes",
            )
        attributes[key] = read_value(item, "attributes")
    return attributes


def read_value(value: Value, param: str) -> Value:
    """Check one value; InvalidRequest."""
    if isinstance(value, str):
        _check_text(value, param)
    else:
        check_value("value", value, param)
    return value


def read_metadata(value: object) -> dict[str, str]:
    """Check a vector store's metadata, whose values are strings; None has none.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    metadata: dict[str, str] = {}
    for key, item in _read_pairs(value, "metadata").items():
        if not isinstance(item, str):
            raise InvalidRequest("metadata: values must be strings", "metadata")
        _check_text(item, "metadata")
        metadata[key] = item
    return metadata


def _read_pairs(value: object, param: str) -> dict[str, object]:
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > MAX_PAIRS
        or not all(1 <= len(key) <= MAX_KEY_CHARS for key in value)
    ):
        raise InvalidRequest(
            f"{param} must be an object of at most {MAX_PAIRS} pairs, with keys of 1 to "
            f"{MAX_KEY_CHARS} characters",
            param,
        )
    for key in value:
        _check_unicode(key, param)
    return value


def _check_text(value: str, param: str) -> None:
    if len(value) > MAX_VALUE_CHARS:
        raise InvalidRequest(
            f"{param}: a string may have at most {MAX_VALUE_CHARS} characters", param
        )
    _check_unicode(value, param)


def _check_unicode(value: str, param: str) -> None:
    if "\0" in value or value != value.encode(errors="replace").decode():
        raise InvalidRequest(f"{param} must be valid Unicode text without null characters", param)
