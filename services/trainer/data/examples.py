"""What is learned from, one normalised form of each kind, as a job keeps it in its folder.

A file is JSON lines in UTF-8, one example a line, all of one kind:

pairs     {"anchor": "...", "positive": "...", "negatives": ["..."], "slice": "..."}
scored    {"first": "...", "second": "...", "score": 0.8}
labelled  {"text": "...", "label": "..."}

"negatives" and "slice" are left out where there are none. In pairs {"image": "<sha256>"} may stand
for a text: a picture, whose file lies beside, see `pictures.py`. Knows nothing of how users write
theirs: see `columns.py`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from services.trainer.data import pairs
from services.trainer.data.pairs import Kind, Pair, Split, split
from services.trainer.data.pictures import PICTURES, Item, Picture, as_json


@dataclass(frozen=True, slots=True)
class Scored:
    """Two texts, and how near they should be."""

    first: str
    second: str
    score: float
    """Any finite number, greater for nearer: only the order counts, so 0..1 and 0..5 both do."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Both."""
        return self.first, self.second


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, and the class that it is of."""

    text: str
    label: str
    """Numbers are kept as their digits."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The one."""
        return (self.text,)


Example = Pair | Scored | Labelled


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write the normalised form."""
    with path.open("wb") as lines:
        for example in examples:
            values = json.dumps(_values(example), ensure_ascii=False, default=as_json)
            lines.write(values.encode() + b"\n")


def read_examples(path: Path, kind: Kind) -> tuple[Example, ...]:
    """Read what `write_examples` wrote; blank lines are skipped."""
    makers: dict[Kind, Callable[[dict[str, Any]], Example]]
    pair = partial(_pair, path.parent / PICTURES)
    makers = {"pairs": pair, "scored": _scored, "labelled": _labelled}
    make = makers[kind]
    with path.open("rb") as lines:
        return tuple(make(json.loads(line)) for line in lines if line.strip())


def read_split(training: Path, validation: Path, kind: Kind, seed: int) -> Split[Example]:
    """Read what a job trains on and measures on: a part of the former, if there is no latter."""
    examples = read_examples(training, kind)
    if validation.exists():
        return Split(examples, read_examples(validation, kind))
    return split(examples, seed)


def digest(examples: Iterable[Example]) -> str:
    """Return the sha256 of examples of one kind in their order, as 64 hexadecimal digits."""
    listed = list(examples)
    if chosen := [example for example in listed if isinstance(example, Pair)]:
        return pairs.digest(chosen)
    state = hashlib.sha256()
    for example in listed:
        state.update(json.dumps(_values(example)).encode() + b"\n")
    return state.hexdigest()


def _values(example: Example) -> dict[str, Any]:
    match example:
        case Pair(anchor, positive, negatives, slice_):
            values: dict[str, Any] = {"anchor": anchor, "positive": positive}
            if negatives:
                values["negatives"] = negatives
            if slice_:
                values["slice"] = slice_
            return values
        case Scored(first, second, score):
            return {"first": first, "second": second, "score": score}
        case Labelled(text, label):
            return {"text": text, "label": label}


def _pair(pictures: Path, values: dict[str, Any]) -> Pair:
    anchor, positive, *negatives = (
        _item(pictures, value)
        for value in (values["anchor"], values["positive"], *values.get("negatives", ()))
    )
    return Pair(anchor, positive, tuple(negatives), values.get("slice", ""))


def _item(pictures: Path, value: Any) -> Item:  # noqa: ANN401 (JSON)
    if isinstance(value, str):
        return value
    digest: str = value["image"]
    return Picture(digest, pictures / digest)


def _scored(values: dict[str, Any]) -> Scored:
    return Scored(values["first"], values["second"], float(values["score"]))


def _labelled(values: dict[str, Any]) -> Labelled:
    return Labelled(values["text"], values["label"])
