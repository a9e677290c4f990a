"""A source of training data, read and checked as a whole: everything wrong is said at once.

A source is a file, or the files of a folder. Every problem has its file and line (of tables, row)
and a reason that never holds the user's text.
"""

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from services.shared.errors import InvalidRequest
from services.trainer.data.columns import ACCEPTED, Columns
from services.trainer.data.examples import Example
from services.trainer.data.pairs import MIN_PAIRS, Kind, Pair
from services.trainer.data.pictures import Pictures
from services.trainer.data.problems import MAX_PROBLEMS, Problem, tell
from services.trainer.data.rows import read_rows

MAX_EXAMPLES = 5_000_000
NAMES: dict[Kind, str] = {
    "pairs": "pairs", "scored": "scored pairs", "labelled": "labelled texts",
}  # fmt: skip
"""What the kinds are called, for people."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source."""

    path: Path
    name: str
    """What the user calls it; its ending tells the format."""
    folder: Path | None = None
    """Resolved; pictures may lie in it as files. None: the file came by itself."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where examples came from; small, as there may be millions."""

    names: list[str] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    """For each file, its first example."""
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    """For each example, its line."""

    def name(self, example: int) -> str:
        """Return `file:line` of an example."""
        file = bisect_right(self.begins, example) - 1
        return f"{self.names[file]}:{self.lines[example]}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one kind, and where each stands."""

    kind: Kind
    examples: list[Example]
    places: Places


def read_dataset(
    files: Sequence[SourceFile],
    columns: Mapping[str, str],
    param: str,
    max_examples: int = MAX_EXAMPLES,
    pictures: Pictures | None = None,
) -> Dataset:
    """Read and check a source.

    Args:
        files: all of one source, in their order.
        columns: from a field of the file to its role; empty: fields are told by their names.
        param: the request's field, for the error.
        max_examples: how many there may be.
        pictures: keeps those that are among them; None: none is taken.

    Raises:
        InvalidRequest: lists up to 20 problems as `file:line: what is wrong`; or there are too
            few examples, or too many, or pictures that are not taken or too large together.
    """
    reader = Columns(columns)
    pictures = pictures or Pictures(
        Path(), 0, "pictures are taken only to train a model that reads them"
    )
    examples: list[Example] = []
    places = Places()
    problems: list[Problem] = []
    for file in files:
        places.names.append(file.name)
        places.begins.append(len(examples))
        keep = partial(pictures.keep, beside=file.path.parent, within=file.folder)
        for row in read_rows(file.path, PurePath(file.name).suffix, reader.choose):
            try:
                found = row.reason or reader.read(row.values, keep)
            except InvalidRequest as error:  # of no picture by itself, so once is enough
                raise InvalidRequest(f"{file.name}:{row.line}: {error.message}", param) from error
            if isinstance(found, str):
                fields = reader.table or tuple(row.values)
                problems.append(Problem(file.name, row.line, found, fields))
                if len(problems) == MAX_PROBLEMS:
                    raise _wrong(problems, not examples, reader, param)
                continue
            examples.extend(found)
            places.lines.extend([row.line] * len(found))
            if len(examples) > max_examples:
                raise InvalidRequest(f"{param} must hold at most {max_examples:,} examples", param)
    if problems:
        raise _wrong(problems, not examples, reader, param)
    kind: Kind = reader.kind or "pairs"
    if len(examples) < MIN_PAIRS:
        raise InvalidRequest(
            f"{files[0].name} has {len(examples)} {NAMES[kind]}, at least {MIN_PAIRS} are needed; "
            f"{reader.accepted}",
            param,
        )
    return Dataset(kind, examples, places)


def _wrong(
    problems: Sequence[Problem], is_every_row: bool, reader: Columns, param: str
) -> InvalidRequest:
    return InvalidRequest("\n".join([*tell(problems, is_every_row), reader.accepted]), param)


def read_pairs(path: Path, filename: str, param: str = "training_file") -> tuple[Pair, ...]:
    """Read a file of pairs.

    Raises:
        InvalidRequest: as `read_dataset`, and for a file of another kind.
    """
    data = read_dataset([SourceFile(path, filename)], {}, param)
    if data.kind != "pairs":
        raise InvalidRequest(f"{filename} has {NAMES[data.kind]}; {ACCEPTED}", param)
    return tuple(example for example in data.examples if isinstance(example, Pair))
