"""From a row's fields to examples: which field is what, and what is wrong with its values.

Fields are told by the names that the field of embeddings uses, or by the caller's own mapping.
The first row settles of which kind a source is. Reasons name fields that we know or that the
caller named, and never hold texts.

Source of the names: Sentence Transformers' dataset formats and `mine_hard_negatives`,
FlagEmbedding's training data (query, pos, neg), Tevatron and NV-Retriever (pos_doc, neg_doc).
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from services.shared.errors import InvalidRequest
from services.trainer.data.examples import Example, Labelled, Scored
from services.trainer.data.pairs import Kind, Pair
from services.trainer.data.pictures import Item, Picture, WrongPictureError, is_picture

Role = Literal[
    "anchor", "positive", "negatives", "first", "second", "score", "text", "label", "slice"
]
ROLES: tuple[Role, ...] = get_args(Role)

MAX_TEXT_CHARS = 1_000_000  # of no model's limit: such a text is a mistake
MAX_NEGATIVES = 100
"""Negatives of one row."""
_MAX_NAME_CHARS = 100  # of a label or a slice
_MAX_COLUMNS = 200
ACCEPTED = (
    'each row must be {"anchor": "...", "positive": "..."} with two non-empty strings, with '
    '"negatives" or a "score" where there are some, or {"text": "...", "label": "..."}; other '
    "names of fields can be given in columns; in pairs, where the base model takes pictures, "
    '{"image": "<base64 or data URL>"} may stand for any of the strings'
)

# The first that is there is taken.
_NAMES: dict[Role, tuple[str, ...]] = {
    "anchor": ("anchor", "query", "question"),
    "positive": ("positive", "positives", "pos", "pos_doc", "answer", "document"),
    "first": ("first", "sentence1", "sentence_1", "sentence_a", "text1", "text_1", "text_a"),
    "second": ("second", "sentence2", "sentence_2", "sentence_b", "text2", "text_2", "text_b"),
    "score": ("score", "similarity", "similarity_score", "label"),
    "text": ("text", "sentence", "content"),
    "label": ("label", "class", "category"),
    "slice": ("slice",),
}
_NEGATIVES = re.compile(r"(negative|neg|neg_doc|hard_negative)s?(_\d{1,3})?")
_NEEDED: dict[Kind, tuple[Role, ...]] = {
    "pairs": ("anchor", "positive"),
    "scored": ("first", "second", "score"),
    "labelled": ("text", "label"),
}
_MAY: dict[Kind, tuple[Role, ...]] = {
    "pairs": ("negatives", "slice"),
    "scored": (),
    "labelled": (),
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which fields of a row are what."""

    kind: Kind
    fields: dict[Role, str]
    negatives: tuple[str, ...] = ()


class _WrongRowError(Exception):
    """What is wrong with a row; never its text."""


Keep = Callable[[object], Picture]
"""Checks and keeps a picture of a row; WrongPictureError."""


class Columns:
    """Reads rows of one source.

    Args:
        mapping: from a field of the file to its role; empty: fields are told by their names.
    """

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self._mapped = _map(mapping) if mapping else None
        self.kind: Kind | None = self._mapped.kind if self._mapped else None
        """None: no row has been read."""
        self.table: tuple[str, ...] = ()
        """Of the newest table, all columns."""
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    @property
    def accepted(self) -> str:
        """What each row must be, for people."""
        if self._mapped is None:
            return ACCEPTED
        fields = self._mapped.fields
        needed = [f'"{fields[role]}" ({role})' for role in _NEEDED[self._mapped.kind]]
        return f"each row must have {' and '.join(needed)}, as columns say"

    def choose(self, names: Sequence[str]) -> list[str]:
        """Return those of a table's columns that mean something to us."""
        self.table = tuple(names)
        if self._mapped:
            wanted = {*self._mapped.fields.values(), *self._mapped.negatives}
            return [name for name in names if name in wanted]
        known = {name for options in _NAMES.values() for name in options}
        return [
            name for name in names if name.lower() in known or _NEGATIVES.fullmatch(name.lower())
        ]

    def read(self, row: Mapping[str, Any], keep: Keep) -> tuple[Example, ...] | str:
        """Return the row's examples (one for each positive), or what is wrong with it."""
        try:
            layout = self._layout(row)
            if self.kind not in (None, layout.kind):
                return f"is of another kind than the rows before: {layout.kind}, not {self.kind}"
            examples = tuple(_examples(row, layout, keep))
        except _WrongRowError as error:
            return str(error)
        self.kind = layout.kind
        return examples

    def _layout(self, row: Mapping[str, Any]) -> _Layout:
        if self._mapped:
            for role in _NEEDED[self._mapped.kind]:
                if self._mapped.fields[role] not in row:
                    raise _WrongRowError(f'"{self._mapped.fields[role]}" is missing')
            return self._mapped
        names = tuple(row)
        found = self._layouts.get(names)
        if found is None:
            found = _recognise(names)
            if len(self._layouts) < _MAX_COLUMNS:  # each row could have names of its own
                self._layouts[names] = found
        return found


def check_columns(mapping: Mapping[str, str]) -> None:
    """Refuse a mapping that no file could fit; InvalidRequest."""
    if mapping:
        _map(mapping)


def _map(mapping: Mapping[str, str]) -> _Layout:
    fields: dict[Role, str] = {}
    negatives: list[str] = []
    for name, given in mapping.items():
        role = next((role for role in ROLES if role == given), None)
        if role is None or len(mapping) > _MAX_COLUMNS or not name:
            raise InvalidRequest(
                f"columns must map at most {_MAX_COLUMNS} fields of the file to one of "
                f"{', '.join(ROLES)} each",
                "columns",
            )
        if role == "negatives":
            negatives.append(name)
        elif role in fields:
            raise InvalidRequest(f"columns must map one field only to {role}", "columns")
        else:
            fields[role] = name
    if "score" in fields:  # of two texts, however they are called
        for ours, other in (("first", "anchor"), ("second", "positive")):
            if other in fields:
                fields.setdefault(ours, fields.pop(other))  # type: ignore[arg-type]
    roles = {*fields, *(("negatives",) if negatives else ())}
    for kind, needed in _NEEDED.items():
        if roles.issuperset(needed) and roles.issubset((*needed, *_MAY[kind])):
            return _Layout(kind, fields, tuple(negatives))
    raise InvalidRequest(
        "columns must map fields to anchor and positive (negatives and slice too, if there are "
        "some), or to first, second and score, or to text and label",
        "columns",
    )


def _recognise(names: Sequence[str]) -> _Layout:
    """Tell fields by their names."""
    lower = {name.lower(): name for name in reversed(names)}
    found: dict[Role, str] = {}
    for role, options in _NAMES.items():
        if name := next((lower[option] for option in options if option in lower), None):
            found[role] = name
    negatives = tuple(name for name in names if _NEGATIVES.fullmatch(name.lower()))
    if "anchor" in found and "positive" in found:
        if "score" not in found:
            fields: dict[Role, str] = {role: found[role] for role in _NEEDED["pairs"]}
            if "slice" in found:
                fields["slice"] = found["slice"]
            return _Layout("pairs", fields, negatives)
        if negatives:
            raise _WrongRowError("has both negatives and a score; say in columns which to use")
        two: dict[Role, str] = {"first": found["anchor"], "second": found["positive"]}
        return _Layout("scored", two | {"score": found["score"]})
    kind: Kind = "pairs"
    if "first" in found or "second" in found:
        kind = "scored"
    elif "text" in found and "anchor" not in found and "positive" not in found:
        kind = "labelled"
    for role in _NEEDED[kind]:
        if role not in found:
            raise _WrongRowError(f'"{role}" is missing')
    return _Layout(kind, {role: found[role] for role in _NEEDED[kind]})


def _examples(row: Mapping[str, Any], layout: _Layout, keep: Keep) -> Iterator[Example]:
    fields = layout.fields
    if layout.kind == "labelled":
        yield Labelled(_text(row, fields["text"]), _name(row, fields["label"]))
    elif layout.kind == "scored":
        first, second = _text(row, fields["first"]), _text(row, fields["second"])
        yield Scored(first, second, _score(row, fields["score"]))
    else:
        anchor = _item(row[fields["anchor"]], fields["anchor"], keep)
        positives = _items(row, fields["positive"], keep)
        if not positives:
            raise _WrongRowError(f'"{fields["positive"]}" is empty')
        negatives = [item for name in layout.negatives for item in _optional(row, name, keep)]
        if len(negatives) > MAX_NEGATIVES:
            raise _WrongRowError(f"has {len(negatives)} negatives, more than {MAX_NEGATIVES}")
        given = fields.get("slice")
        slice_ = _name(row, given) if given and row.get(given) not in (None, "") else ""
        for positive in positives:
            yield Pair(anchor, positive, tuple(negatives), slice_)


def _optional(row: Mapping[str, Any], field: str, keep: Keep) -> list[Item]:
    """Return a field's items; none where it is missing, null or an empty cell."""
    return [] if row.get(field) in (None, "") else _items(row, field, keep)


def _items(row: Mapping[str, Any], field: str, keep: Keep) -> list[Item]:
    """Return a field's items: one, or a list of them."""
    value = row[field]
    if not isinstance(value, list):
        return [_item(value, field, keep)]
    problems = "holds something that is not a string", "holds an empty string"
    return [_item(one, field, keep, *problems) for one in value]


def _item(
    value: Any,  # noqa: ANN401 (of a file)
    field: str,
    keep: Keep,
    not_string: str = "is not a string",
    empty: str = "is empty",
) -> Item:
    """Return a text as it is, a picture as it is kept."""
    if is_picture(value):
        try:
            return keep(value)
        except WrongPictureError as error:
            raise _WrongRowError(f'"{field}" {error}') from error
    _check(value, field, not_string, empty)
    text: str = value
    return text


def _text(row: Mapping[str, Any], field: str) -> str:
    _check(row[field], field, "is not a string", "is empty")
    text: str = row[field]
    return text


def _check(value: object, field: str, not_string: str, empty: str) -> None:
    if is_picture(value):
        raise _WrongRowError(f'"{field}" is a picture; only pairs may have them')
    if not isinstance(value, str):
        raise _WrongRowError(f'"{field}" {not_string}')
    if not value.strip():
        raise _WrongRowError(f'"{field}" {empty}')
    if len(value) > MAX_TEXT_CHARS:
        raise _WrongRowError(f'"{field}" is longer than {MAX_TEXT_CHARS:,} characters')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON may hold lone surrogates, which no tokenizer can encode; of CSV they are bytes.
        if "\udc80" <= value[error.start] <= "\udcff":
            reason = "is not UTF-8, or holds half of a surrogate pair"
        else:
            reason = "holds half of a surrogate pair"
        raise _WrongRowError(f'"{field}" {reason}') from None


def _score(row: Mapping[str, Any], field: str) -> float:
    value = row[field]
    try:
        if isinstance(value, bool | None) or not isinstance(value, int | float | str):
            raise ValueError
        score = float(value)
    except (ValueError, OverflowError):
        raise _WrongRowError(f'"{field}" is not a number') from None
    if not math.isfinite(score):
        raise _WrongRowError(f'"{field}" is not a finite number')
    return score


def _name(row: Mapping[str, Any], field: str) -> str:
    """Return a label or a slice: a short string, or a whole number as its digits."""
    value = row[field]
    if isinstance(value, bool | int):
        value = str(int(value)) if abs(value) < 10**18 else None
    if not isinstance(value, str):
        raise _WrongRowError(f'"{field}" is not a string or a whole number')
    _check(value, field, "", "is empty")
    if len(value) > _MAX_NAME_CHARS:
        raise _WrongRowError(f'"{field}" is longer than {_MAX_NAME_CHARS} characters')
    return value
