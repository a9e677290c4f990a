"""From a row of a user's file to a document, or to the reason why it is none.

In: mappings of field names to values, as the readers found them. Out: documents that the router
will take: the same rules as at its door, so that nothing is refused halfway. Knows no formats.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.router.attributes import Attributes, Value, check_attributes
from services.router.upsert import MAX_ID_CHARS
from services.shared.errors import InvalidRequest

MAX_TEXT_CHARS = 1_000_000
"""The router's own bound, unless its operator has changed it; then the router refuses."""

Kind = Literal["", "string", "int", "float", "bool"]
_KINDS: tuple[Kind, ...] = ("string", "int", "float", "bool")
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_DERIVED_ID_CHARS = 32


class BadRow(Exception):
    """A row that is no document; the message says what would be one."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is indexed."""

    id: str
    text: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Attribute:
    """A field that becomes an attribute."""

    field: str
    kind: Kind = ""
    """What it is turned into; "": it stays what it is, which in CSV is a string."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are what."""

    id: str = ""
    """Every row must have it; "": the field `id` where there is one, else the row's place."""
    texts: tuple[str, ...] = ("text",)
    """Joined by a line break; at least one must say something."""
    attributes: tuple[Attribute, ...] = ()
    """Besides those in the field `attributes`, where that is a mapping."""

    def describe(self) -> str:
        """Return the options that say the same; "": none."""
        texts = () if self.texts == ("text",) else self.texts
        given = [
            *([("--id-field", self.id)] if self.id else []),
            *(("--text-field", name) for name in texts),
            *(("--attribute", a.field + (f":{a.kind}" if a.kind else "")) for a in self.attributes),
        ]
        return " ".join(f"{option} {value}" for option, value in given)


def parse_attribute(text: str) -> Attribute:
    """Read `FIELD` or `FIELD:KIND`.

    Raises:
        InvalidRequest: the field is not named, or the kind is none.
    """
    field, colon, kind = text.rpartition(":")
    for known in _KINDS:
        if field and kind == known:
            return Attribute(field, known)
    if not text or colon:
        raise InvalidRequest(
            f"--attribute must be FIELD or FIELD:string, :int, :float or :bool, got {text!r}"
        )
    return Attribute(text)


def derive_id(source: str, place: int) -> str:
    """Return the id of a row that has none of its own: the same on every run.

    Args:
        source: the file's name within what the user named.
        place: the row's number in it. Not its text: a changed text replaces the old one.
    """
    return hashlib.sha256(f"{source}\0{place}".encode()).hexdigest()[:_DERIVED_ID_CHARS]


def to_document(row: object, fields: Fields, derived_id: str) -> Document:
    """Check a row and take from it what is indexed.

    Raises:
        BadRow: says what is wrong, and what would be accepted.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f'must be an object such as {{"id": "a", "text": "..."}}, is {_name(row)}')
    document = Document(
        _read_id(row, fields, derived_id), _read_text(row, fields), _read_attributes(row, fields)
    )
    strings = [value for value in document.attributes.values() if isinstance(value, str)]
    try:
        "".join([document.id, document.text, *strings]).encode()
    except UnicodeEncodeError:
        raise BadRow("must be text in UTF-8, and is not") from None
    return document


def _read_id(row: Mapping[str, object], fields: Fields, derived_id: str) -> str:
    name = fields.id or "id"
    value = row.get(name)
    if value is None:
        if fields.id:
            raise BadRow(f"has no field {name!r} for the id; it has {_fields(row)}")
        return derived_id
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"{name!r} must be a string or an integer, is {_name(value)}")
    text = str(value)
    if not 1 <= len(text) <= MAX_ID_CHARS:
        raise BadRow(f"{name!r} must have 1 to {MAX_ID_CHARS} characters, has {len(text)}")
    return text


def _read_text(row: Mapping[str, object], fields: Fields) -> str:
    if not any(name in row for name in fields.texts):
        wanted = " or ".join(map(repr, fields.texts))
        raise BadRow(f"has no field {wanted} for the text; it has {_fields(row)}")
    parts = []
    for name in fields.texts:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise BadRow(f"{name!r} must be a string, is {_name(value)}")
        if value and value.strip():
            parts.append(value)
    text = "\n".join(parts)
    if not parts:
        raise BadRow("the text is empty; there must be something to index")
    if len(text) > MAX_TEXT_CHARS:
        raise BadRow(f"the text has {len(text):,} characters; at most {MAX_TEXT_CHARS:,} may be")
    return text


def _read_attributes(row: Mapping[str, object], fields: Fields) -> Attributes:
    given = row.get("attributes")
    if given is None or (isinstance(given, str) and "attributes" in fields.texts):
        given = {}
    if not isinstance(given, Mapping):
        raise BadRow(f"'attributes' must be an object of values, is {_name(given)}")
    read: Attributes = {}
    named = [(attribute.field, attribute.kind, row) for attribute in fields.attributes]
    for key, kind, found_in in [*((str(key), "", given) for key in given), *named]:
        value = found_in.get(key)
        if value is None or (value == "" and found_in is row):  # an empty cell of a table
            continue
        if not isinstance(value, str | int | float):
            raise BadRow(
                f"the attribute {key!r} must be a string, a number, true or false, is "
                f"{_name(value)}"
            )
        read[key] = _convert(key, value, kind)
    try:
        check_attributes(read)
    except InvalidRequest as error:
        raise BadRow(error.message) from None
    return read


def _convert(key: str, value: Value, kind: str) -> Value:
    try:
        match kind:
            case "string":
                return str(value)
            case "int":
                return int(value)
            case "float":
                return float(value)
            case "bool":
                return value if isinstance(value, bool) else _BOOLS[str(value).lower()]
            case _:
                return value
    except (ValueError, OverflowError, KeyError):
        raise BadRow(f"the attribute {key!r} must be of the kind {kind}") from None


def _fields(row: Mapping[str, object]) -> str:
    return ", ".join(sorted(map(str, row))[:10]) or "none"


def _name(value: object) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bool: "true or false"}
    numbers = {int: "a number", float: "a number", str: "a string"}
    return (names | numbers).get(type(value), f"of the type {type(value).__name__}")
