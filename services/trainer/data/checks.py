"""Duplicates, contradictions and leakage: found, counted, left out.

Texts are the same if they differ in nothing but capitals, white space and Unicode's ways to write
one character: a model can hardly tell such texts apart, so they are no evidence of anything.
Pictures are the same if their files are.
"""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from services.trainer.data.data_report import DataReport
from services.trainer.data.dataset import Dataset
from services.trainer.data.examples import Example, Labelled, Scored
from services.trainer.data.pairs import Pair
from services.trainer.data.pictures import Item, Picture

_MAX_PLACES = 20  # enough to see a pattern, short enough to read


@dataclass(frozen=True, slots=True)
class Checked:
    """What is left to learn from and to measure on, and what was found."""

    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    report: DataReport


@dataclass(slots=True)
class _Found:
    """Counts, while they are counted."""

    duplicates: int = 0
    conflicts: int = 0
    false_negatives: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    """An example, and its row in what came."""

    row: int
    example: Example


def text_key(text: Item) -> bytes:
    """Return 16 bytes that are equal for texts that count as the same, or for the same picture."""
    if isinstance(text, Picture):
        return bytes.fromhex(text.digest)[:16]
    # Case folding can make what was composed not so any more.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return hashlib.blake2b(" ".join(folded.split()).encode(), digest_size=16).digest()


def check(training: Dataset, validation: Dataset | None) -> Checked:
    """Leave out what teaches nothing or would make the measurement dishonest, and count it."""
    found = _Found()
    kept = _clean(training.examples, found)
    held = _clean(validation.examples, found) if validation else []
    leaks: list[str] = []
    shared = num_leaks = 0
    if validation:
        asked = {key: item.row for item in reversed(held) for key in _asked(item.example)}
        clean = []
        for item in kept:
            row = next((asked[key] for key in _told(item.example) if key in asked), None)
            if row is None:
                clean.append(item)
                continue
            num_leaks += 1
            if len(leaks) < _MAX_PLACES:
                here, there = training.places.name(item.row), validation.places.name(row)
                leaks.append(f"{here} is in {there}")
        kept = clean
        shared = len(_answers(held) & _answers(kept))
    return Checked(
        tuple(item.example for item in kept),
        tuple(item.example for item in held),
        DataReport(
            kind=training.kind,
            rows=len(training.examples),
            kept=len(kept),
            validation_rows=len(validation.examples) if validation else 0,
            validation_kept=len(held),
            duplicates=found.duplicates,
            conflicts=found.conflicts,
            false_negatives=found.false_negatives,
            leaks=num_leaks,
            leak_places=tuple(leaks),
            shared_documents=shared,
        ),
    )


def _clean(examples: Sequence[Example], found: _Found) -> list[_Kept]:
    """Leave out duplicates, contradictions and false negatives."""
    first: dict[Hashable, _Kept] = {}
    values: dict[Hashable, set[Hashable]] = defaultdict(set)
    counts: Counter[Hashable] = Counter()
    negatives: dict[Hashable, dict[bytes, Item]] = defaultdict(dict)
    positives: dict[bytes, set[bytes]] = defaultdict(set)
    for row, example in enumerate(examples):
        key, value = _identity(example)
        counts[key] += 1
        values[key].add(value)
        first.setdefault(key, _Kept(row, example))
        if isinstance(example, Pair):
            anchor = text_key(example.anchor)
            positives[anchor].update((anchor, text_key(example.positive)))
            for text in example.negatives:
                negatives[key].setdefault(text_key(text), text)
    kept = []
    for key, item in first.items():
        if len(values[key]) > 1:
            found.conflicts += counts[key]
            continue
        found.duplicates += counts[key] - 1
        if isinstance(item.example, Pair) and (texts := negatives.get(key)):
            known = positives[text_key(item.example.anchor)]
            good = tuple(text for text_key_, text in texts.items() if text_key_ not in known)
            found.false_negatives += len(texts) - len(good)
            item = _Kept(item.row, replace(item.example, negatives=good))
        kept.append(item)
    return kept


def _identity(example: Example) -> tuple[Hashable, Hashable]:
    """Return what makes two examples the same, and what they must then agree in."""
    match example:
        case Pair(anchor, positive):
            return (text_key(anchor), text_key(positive)), None
        case Scored(first, second, score):
            return frozenset((text_key(first), text_key(second))), score
        case Labelled(text, label):
            return text_key(text), label
    assert_never(example)


def _asked(example: Example) -> tuple[Hashable, ...]:
    """Return what training must not have seen, of an example to measure with."""
    return (text_key(example.anchor),) if isinstance(example, Pair) else (_identity(example)[0],)


def _told(example: Example) -> tuple[Hashable, ...]:
    """Return what an example gives away to training."""
    if isinstance(example, Pair):
        return text_key(example.anchor), text_key(example.positive)
    return (_identity(example)[0],)


def _answers(items: Sequence[_Kept]) -> set[bytes]:
    """Return the positives, or the texts of scored pairs: they may be on both sides."""
    return {
        text_key(text)
        for item in items
        for text in (
            (item.example.positive,) if isinstance(item.example, Pair) else item.example.texts
        )
    }
