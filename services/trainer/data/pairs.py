"""Training pairs: JSON lines in, checked pairs and a held-out split out.

A line is an object with the strings "anchor" (what is asked) and "positive" (what should be
found). Every problem is reported with file and line, many at once, before a job is queued.
Knows nothing of models or jobs.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.shared.errors import InvalidRequest

MIN_PAIRS = 4
_MAX_PROBLEMS = 20  # enough to see a pattern, short enough to read
_MAX_HELD_OUT = 1000
_ACCEPTED = 'each line must be {"anchor": "...", "positive": "..."} with two non-empty strings'


@dataclass(frozen=True, slots=True)
class Pair:
    """What is asked, and what should be found."""

    anchor: str
    positive: str
    negatives: tuple[str, ...] = ()
    """What should not be found, though it looks as if it might."""
    slice: str = ""
    """Group of queries that the anchor belongs to, a language or a tenant for example; or empty."""


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs to train on and pairs to measure on; no text is in both."""

    training: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """What quality is measured on: each query against all documents."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[dict[int, float], ...]
    """For each query: rows of `documents` that answer it, with their grades."""
    slices: tuple[str, ...] = ()
    """For each query, the slice that it was first named with; empty: nobody knows."""


def read_pairs(path: Path, filename: str, param: str = "training_file") -> tuple[Pair, ...]:
    """Read and check a file of pairs; blank lines are skipped.

    Args:
        path: where it is.
        filename: what the user calls it, for the error.
        param: the request's field, for the error.

    Raises:
        InvalidRequest: lists up to 20 problems as `file:line: what is wrong`.
    """
    pairs: list[Pair] = []
    problems: list[str] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            pair = _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            if isinstance(pair, Pair):
                pairs.append(pair)
            else:
                problems.append(f"{filename}:{number}: {pair}")
                if len(problems) == _MAX_PROBLEMS:
                    problems.append("and perhaps more")
                    break
    if problems:
        raise InvalidRequest("\n".join([*problems, _ACCEPTED]), param)
    if len(pairs) < MIN_PAIRS:
        raise InvalidRequest(
            f"{filename} has {len(pairs)} pairs, at least {MIN_PAIRS} are needed; {_ACCEPTED}",
            param,
        )
    return tuple(pairs)


def _parse(line: bytes) -> Pair | str:
    """Return the pair, or what is wrong with the line (never its text)."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not JSON at column {error.colno}: {error.msg}"
    except RecursionError:
        return "nested too deeply"
    if not isinstance(value, dict):
        return f"a JSON {type(value).__name__} instead of an object"
    for key in ("anchor", "positive"):
        if key not in value:
            return f'"{key}" is missing'
        if not isinstance(value[key], str):
            return f'"{key}" is not a string'
        if not value[key].strip():
            return f'"{key}" is empty'
        # json accepts lone surrogates, which no tokenizer can encode.
        if any("\ud800" <= char <= "\udfff" for char in value[key]):
            return f'"{key}" holds half of a surrogate pair'
    return Pair(value["anchor"], value["positive"])


def digest(pairs: Iterable[Pair]) -> str:
    """Return the sha256 of the pairs in their order, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for pair in pairs:
        more = [list(pair.negatives), pair.slice] if pair.negatives or pair.slice else []
        state.update(json.dumps([pair.anchor, pair.positive, *more]).encode() + b"\n")
    return state.hexdigest()


def digest_questions(asked: Questions) -> str:
    """Return the sha256 of what quality is measured on, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in (asked.queries, asked.documents, asked.slices):
        state.update(json.dumps(part).encode() + b"\n")
    for grades in asked.relevant:
        state.update(json.dumps(sorted(grades.items())).encode() + b"\n")
    return state.hexdigest()


def split(pairs: Sequence[Pair], seed: int) -> Split:
    """Hold out a tenth of the pairs, 1000 at most, so that no text is on both sides.

    Pairs that share a text, directly or through others, stay together. The same pairs and seed
    always give the same split.

    Raises:
        InvalidRequest: every pair is tied to most others by shared texts.
    """
    held_out = split_rows(pairs, seed)
    return Split(
        tuple(pair for row, pair in enumerate(pairs) if row not in held_out),
        tuple(pairs[row] for row in sorted(held_out)),
    )


def split_rows(pairs: Sequence[Pair], seed: int) -> set[int]:
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


def _tied(pairs: Sequence[Pair]) -> list[list[int]]:
    """Group the rows of pairs that share a text, directly or through others (union-find)."""
    parent = list(range(len(pairs)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    for row, pair in enumerate(pairs):
        for text in (pair.anchor, pair.positive):
            parent[find(row)] = find(first.setdefault(text, row))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(pairs)):
        groups[find(row)].append(row)
    return list(groups.values())


def questions(data: Split) -> Questions:
    """Ask the held-out anchors against every positive, those of the training pairs too.

    A small corpus of held-out positives alone would make each question too easy.
    """
    everything = (*data.held_out, *data.training)
    documents = number_texts(pair.positive for pair in everything)
    queries = number_texts(pair.anchor for pair in data.held_out)
    relevant: list[dict[int, float]] = [{} for _ in queries]
    for pair in everything:
        if pair.anchor in queries:
            relevant[queries[pair.anchor]][documents[pair.positive]] = 1.0
    slices = {pair.anchor: pair.slice for pair in reversed(data.held_out)}
    named = tuple(slices[query] for query in queries)
    return Questions(tuple(queries), tuple(documents), tuple(relevant), named)


def number_texts(texts: Iterable[str]) -> dict[str, int]:
    """Number distinct texts from 0 in the order of their first appearance."""
    numbers: dict[str, int] = {}
    for text in texts:
        numbers.setdefault(text, len(numbers))
    return numbers
