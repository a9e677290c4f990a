"""What searches of a collection found for a job's anchors, kept in the job's folder.

Anchors go in chunks; each finished chunk is a file, JSON with the texts that it found, each once,
and for each of its anchors the rows of them, best first. So a killed service asks again for one
chunk at most. An empty file says that all of them are there.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from services.trainer.data.checks import text_key
from services.trainer.data.pairs import number_texts
from services.trainer.data.pictures import Item
from services.trainer.training.checkpoint import write_atomic

CHUNK = 256
"""Anchors of a file."""
_WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Finds:
    """What was found for all anchors."""

    texts: tuple[str, ...]
    """Each once."""
    rows: tuple[tuple[int, ...], ...]
    """For each anchor the rows of `texts`, best first."""

    def without(self, others: Iterable[Item]) -> "Finds":
        """Leave out texts that count as one of others; of those that count as equal keep one."""
        known = {text_key(text) for text in others}
        keys = [text_key(text) for text in self.texts]
        firsts = number_texts(key for key in keys if key not in known)
        texts = dict(zip(reversed(keys), reversed(self.texts), strict=True))
        rows = (
            dict.fromkeys(firsts[keys[row]] for row in found if keys[row] in firsts)
            for found in self.rows
        )
        return Finds(tuple(texts[key] for key in firsts), tuple(tuple(found) for found in rows))

    def best(self, most: int) -> "Finds":
        """Keep so many texts at most: the best of every anchor, then the second of every one."""
        kept: dict[int, int] = {}
        for rank in zip_longest(*self.rows):
            for row in rank:
                if row is not None and len(kept) < most:
                    kept.setdefault(row, len(kept))
        rows = (tuple(kept[row] for row in found if row in kept) for found in self.rows)
        return Finds(tuple(self.texts[row] for row in kept), tuple(rows))


def chunk_path(folder: Path, begin: int) -> Path:
    """Return the file of the chunk that begins with an anchor."""
    return folder / f"{begin:09d}.json"


def write_chunk(path: Path, found: Sequence[Sequence[str]]) -> None:
    """Write the texts found for each anchor of a chunk."""
    numbers = number_texts(text for texts in found for text in texts)
    rows = [[numbers[text] for text in texts] for texts in found]
    values = json.dumps({"texts": list(numbers), "rows": rows}, ensure_ascii=False)
    write_atomic(path, values.encode())


def say_whole(folder: Path) -> None:
    """Say that all chunks are there."""
    write_atomic(folder / _WHOLE, b"")


def is_whole(folder: Path) -> bool:
    """Whether all chunks are there."""
    return (folder / _WHOLE).exists()


def read_finds(folder: Path, num_anchors: int) -> Finds:
    """Read all chunks; FileNotFoundError: one is not there."""
    numbers: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    for begin in range(0, num_anchors, CHUNK):
        values = json.loads(chunk_path(folder, begin).read_bytes())
        ours = [numbers.setdefault(text, len(numbers)) for text in values["texts"]]
        rows.extend(tuple(ours[row] for row in found) for found in values["rows"])
    return Finds(tuple(numbers), tuple(rows))
