"""The pass before anything is written: every row read, and all that is wrong told at once.

In: parts of files. Out: how many documents, how many rows are none, the first of these with file,
line and reason; and ids that come twice, of which only one document would be left.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.cli.bulk.documents import Fields
from services.cli.bulk.sources import Part, Problem, read_part

SHOWN = 20
"""Problems kept with their reasons; the others are counted."""
_DIGEST_BYTES = 8


@dataclass(slots=True)
class Found:
    """What a reading of some parts found."""

    documents: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)
    """The first of them."""
    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """Eight bytes of each id: of 100 million two differing ones meet with a chance of 1 in 3,700,
    and are told apart when they do."""

    attributes: set[str] = field(default_factory=set)
    """Names that at least one document has."""

    def add(self, problem: Problem) -> None:
        self.bad += 1
        if len(self.problems) < SHOWN:
            self.problems.append(problem)

    def join(self, other: "Found") -> None:
        """Add what was found in the parts that come next."""
        self.documents += other.documents
        self.bad += other.bad
        self.problems = (self.problems + other.problems)[:SHOWN]
        self.digests += other.digests
        self.attributes |= other.attributes


def check_parts(
    parts: Iterable[Part], fields: Fields, on_progress: Callable[[int], None] = lambda _: None
) -> Found:
    """Read all rows of some parts, each from its beginning.

    Args:
        parts: as they were cut.
        fields: what is taken from a row.
        on_progress: called with the documents so far, part by part and every so many rows.

    Raises:
        OSError: a file cannot be read.
    """
    found = Found()
    for part in parts:
        for read in read_part(part, fields):
            if isinstance(read, Problem):
                found.add(read)
                continue
            found.documents += 1
            found.digests.append(_digest(read.document.id))
            found.attributes.update(read.document.attributes)
            if found.documents % 1000 == 0:
                on_progress(found.documents)
        on_progress(found.documents)
    return found


def find_doubles(parts: Sequence[Part], fields: Fields, found: Found) -> None:
    """Read again, if need be, to name the ids that come twice; adds them to the problems."""
    digests, counts = np.unique(np.frombuffer(found.digests, dtype=np.uint64), return_counts=True)
    suspects = set(digests[counts > 1].tolist())
    if not suspects:
        return
    first: dict[str, str] = {}
    for part in parts:
        for read in read_part(part, fields):
            if isinstance(read, Problem) or _digest(read.document.id) not in suspects:
                continue
            id_ = read.document.id
            if id_ in first:
                reason = f"the id {id_!r} is already that of {first[id_]}; each must be its own"
                found.add(Problem(read.where, reason, read.after))
            else:
                first[id_] = read.where


def _digest(id_: str) -> int:
    digest = hashlib.blake2b(id_.encode(), digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest, "little")
