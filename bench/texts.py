"""Real texts for the benches: short questions and long documents, the same ones on every run.

In: collections in the BEIR layout beside the repository where there are any, else the docstrings
of the standard library. Out: two lists of distinct texts. Knows nothing of models.
"""

import ast
import gzip
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"
COLLECTIONS = ("medquad", "squad-split")
_SEED = 7
_MIN_LONG_CHARS = 200  # shorter ones are no documents


@dataclass(frozen=True, slots=True)
class TextSets:
    """What is encoded.

    Args:
        source: where the texts are from, in words.
        short: questions, or first sentences.
        long: documents.
    """

    source: str
    short: list[str]
    long: list[str]


def collect(num_short: int, num_long: int) -> TextSets:
    """Draw texts at random, with a fixed seed."""
    folders = [DATA / name for name in COLLECTIONS if (DATA / name).is_dir()]
    if folders:
        source = " and ".join(folder.name for folder in folders) + ": questions and documents"
        short = [text for folder in folders for text in _read(folder, "queries.jsonl")]
        long = [text for folder in folders for text in _read(folder, "corpus.jsonl")]
    else:
        source = "docstrings of the standard library: first sentences and whole texts"
        docstrings = list(_docstrings())
        short = [re.split(r"(?<=[.?!])\s|\n\n", text, maxsplit=1)[0] for text in docstrings]
        long = docstrings
    long = [text for text in long if len(text) >= _MIN_LONG_CHARS]
    return TextSets(source, _draw(short, num_short), _draw(long, num_long))


def _draw(texts: list[str], number: int) -> list[str]:
    distinct = sorted({text.strip() for text in texts if text.strip()})
    return random.Random(_SEED).sample(distinct, min(number, len(distinct)))


def _read(folder: Path, name: str) -> Iterator[str]:
    path = folder / name
    with path.open() if path.exists() else gzip.open(f"{path}.gz", "rt") as lines:
        for line in lines:
            item = json.loads(line)
            # A title stands before its text.
            yield ". ".join(filter(None, (item.get("title"), item["text"])))


def _docstrings() -> Iterator[str]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in sorted(stdlib.rglob("*.py")):
        if {"test", "tests", "site-packages", "idlelib"} & set(path.relative_to(stdlib).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""
