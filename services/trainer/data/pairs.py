"""Training pairs: what is asked and what should be found, and a split that is held out.

The split is that of other examples too, see `examples.py`. Knows nothing of files, models or jobs.
What is said of texts holds for pictures too.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from services.shared.errors import InvalidRequest
from services.trainer.data.pictures import Item, as_json

T = TypeVar("T", bound=Hashable)

Kind = Literal["pairs", "scored", "labelled"]
"""What is learned from."""

MIN_PAIRS = 4
_MAX_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Pair:
    """What is asked, and what should be found."""

    anchor: Item
    positive: Item
    negatives: tuple[Item, ...] = ()
    """What should not be found, though it looks as if it might."""
    slice: str = ""
    """Group of queries that the anchor belongs to, a language or a tenant for example; or empty."""

    @property
    def texts(self) -> tuple[Item, ...]:
        """Those that tie it to other pairs."""
        return self.anchor, self.positive


class Tied(Protocol):
    """An example that shared texts tie to others."""

    @property
    def texts(self) -> tuple[Item, ...]:
        """Those that count."""


E = TypeVar("E", bound=Tied)


@dataclass(frozen=True, slots=True)
class Split(Generic[E]):
    """Examples to train on and examples to measure on; no text is in both."""

    training: tuple[E, ...]
    held_out: tuple[E, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """What quality is measured on: each query against all documents.

    Of scored pairs only those that have a score: the first texts are the queries.
    """

    queries: tuple[Item, ...]
    documents: tuple[Item, ...]
    relevant: tuple[dict[int, float], ...]
    """For each query: rows of `documents` that answer it, with their grades; or the scores."""
    slices: tuple[str, ...] = ()
    """For each query, the slice that it was first named with; empty: nobody knows."""
    kind: Kind = "pairs"
    """Of what was learned from."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is scored, for people: each query, or each pair in the order of the grades."""
        if self.kind != "scored":
            return tuple(map(str, self.queries))
        return tuple(
            f"{query} ↔ {self.documents[row]}"
            for query, scores in zip(self.queries, self.relevant, strict=True)
            for row in scores
        )


def digest(pairs: Iterable[Pair]) -> str:
    """Return the sha256 of the pairs in their order, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for pair in pairs:
        more = [list(pair.negatives), pair.slice] if pair.negatives or pair.slice else []
        values = [pair.anchor, pair.positive, *more]
        state.update(json.dumps(values, default=as_json).encode() + b"\n")
    return state.hexdigest()


def digest_questions(asked: Questions) -> str:
    """Return the sha256 of what quality is measured on, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in (asked.queries, asked.documents, asked.slices):
        state.update(json.dumps(part, default=as_json).encode() + b"\n")
    # Texts of one class share their grades, which may be many.
    written: dict[int, bytes] = {}
    for grades in asked.relevant:
        if id(grades) not in written:
            written[id(grades)] = json.dumps(sorted(grades.items())).encode() + b"\n"
        state.update(written[id(grades)])
    if asked.kind != "pairs":
        state.update(asked.kind.encode())
    return state.hexdigest()


def split(pairs: Sequence[E], seed: int) -> Split[E]:
    """Hold out a tenth of the pairs, 1000 at most, so that no text is on both sides.

    Pairs that share a text, directly or through others, stay together. The same pairs and seed
    always give the same split. Other examples are split the same way.

    Raises:
        InvalidRequest: every pair is tied to most others by shared texts.
    """
    held_out = split_rows(pairs, seed)
    return Split(
        tuple(pair for row, pair in enumerate(pairs) if row not in held_out),
        tuple(pairs[row] for row in sorted(held_out)),
    )


def split_rows(pairs: Sequence[Tied], seed: int) -> set[int]:
    """Return the rows that `split` holds out.

    Raises:
        InvalidRequest: as `split`.
    """
    groups = _tied(pairs)
    random.Random(seed).shuffle(groups)
    wanted = min(max(1, len(pairs) // 10), _MAX_HELD_OUT)
    held_out: set[int] = set()
    for group in groups:
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    if not held_out:
        raise InvalidRequest(
            "no pairs can be held out, as shared texts tie all of them together; "
            "give a validation_file",
            "validation_file",
        )
    return held_out


def _tied(pairs: Sequence[Tied]) -> list[list[int]]:
    """Group the rows of pairs that share a text, directly or through others (union-find)."""
    parent = list(range(len(pairs)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[Item, int] = {}
    for row, pair in enumerate(pairs):
        for text in pair.texts:
            parent[find(row)] = find(first.setdefault(text, row))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(pairs)):
        groups[find(row)].append(row)
    return list(groups.values())


def questions(data: Split[Pair]) -> Questions:
    """Ask the held-out anchors against every positive and negative, those of training pairs too.

    A small corpus of held-out positives alone would make each question too easy.
    """
    everything = (*data.held_out, *data.training)
    documents = number_texts(
        text for pair in everything for text in (pair.positive, *pair.negatives)
    )
    queries = number_texts(pair.anchor for pair in data.held_out)
    relevant: list[dict[int, float]] = [{} for _ in queries]
    for pair in everything:
        if pair.anchor in queries:
            relevant[queries[pair.anchor]][documents[pair.positive]] = 1.0
    slices = {pair.anchor: pair.slice for pair in reversed(data.held_out)}
    named = tuple(slices[query] for query in queries)
    return Questions(tuple(queries), tuple(documents), tuple(relevant), named)


def number_texts(texts: Iterable[T]) -> dict[T, int]:
    """Number distinct texts, or keys of texts, from 0 in the order of their first appearance."""
    numbers: dict[T, int] = {}
    for text in texts:
        numbers.setdefault(text, len(numbers))
    return numbers
