"""The files that a user named, and the documents in them.

A file is known by its name within what the user named, so that the same folder at another place
is the same source. It is read in parts, each of which can be taken up where it was left.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.bulk.documents import BadRow, Document, Fields, derive_id, to_document
from services.cli.bulk.readers import SUFFIXES, Mark, Row, can_split, read_rows
from services.shared.errors import InvalidRequest

_HEAD_BYTES = 65536
_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """One file."""

    name: str
    """What the user named it by: a file's name, or a folder's and the path in it."""
    path: Path


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file that is read from its beginning to its end."""

    source: Source
    number: int
    """Its place among the file's parts, from 0."""
    begin: Mark
    end: int
    """Offset of its last byte; of a file that is in one piece, its length."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that is no document."""

    where: str
    """File and line."""
    reason: str
    after: Mark


@dataclass(frozen=True, slots=True)
class Read:
    """A document, and where the next begins."""

    document: Document
    where: str
    after: Mark


def find_sources(paths: Sequence[Path]) -> tuple[list[Source], int]:
    """Find the files to be read, in order; and count those of other kinds in the folders.

    Raises:
        InvalidRequest: a path is not there or of no kind that is read, or two have one name.
    """
    found: list[Source] = []
    left_out = 0
    for path in paths:
        if path.is_dir():
            base = path.resolve().name
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not _is_hidden(p, path)]
            read = [p for p in inside if p.suffix.lower() in SUFFIXES]
            left_out += len(inside) - len(read)
            found += [
                Source(_printable(f"{base}/{p.relative_to(path).as_posix()}"), p) for p in read
            ]
        elif not path.is_file():
            raise InvalidRequest(f"{path} is neither a file nor a folder")
        elif path.suffix.lower() not in SUFFIXES:
            raise InvalidRequest(f"{path}: files must end in {', '.join(SUFFIXES)}")
        else:
            found.append(Source(_printable(path.name), path))
    if not found:
        raise InvalidRequest(
            f"there is nothing to index in {', '.join(map(str, paths))}: files must end in "
            f"{', '.join(SUFFIXES)}"
        )
    _check_names(found)
    _check_parquet(found)
    return found, left_out


def _printable(name: str) -> str:
    """Return a file's name as text, whatever bytes it has on the disk."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _check_names(sources: Sequence[Source]) -> None:
    paths: dict[str, Path] = {}
    for source in sources:
        if source.name in paths:
            raise InvalidRequest(
                f"{paths[source.name]} and {source.path} are both known as {source.name}; name the "
                "folder that holds both, or each once"
            )
        paths[source.name] = source.path


def _check_parquet(sources: Sequence[Source]) -> None:
    named = [source for source in sources if source.path.suffix.lower() == ".parquet"]
    if named and importlib.util.find_spec("pyarrow") is None:
        raise InvalidRequest(
            f"{named[0].path}: to read Parquet, install pyarrow; it comes with "
            "pip install 'matryoshka-suite[ray]'"
        )


def fingerprint(source: Source, fields: Fields) -> str:
    """Return what changes when a file, or what is taken from it, does: size, time and head count.

    Raises:
        OSError: the file cannot be read.
    """
    status = source.path.stat()
    with source.path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} {fields}\n".encode())
    digest.update(head)
    return digest.hexdigest()[:32]


def cut_points(source: Source, part_bytes: int) -> list[int]:
    """Return where the parts of a file end, ascending; the last is the file's length.

    Args:
        source: cut only if its rows can be found from the middle; at ends of lines.
        part_bytes: how long a part shall be, about; 0: the file is one part.
    """
    length = source.path.stat().st_size
    ends: list[int] = []
    if part_bytes and can_split(source.path):
        with source.path.open("rb") as file:
            while (ends[-1] if ends else 0) + part_bytes < length:
                file.seek((ends[-1] if ends else 0) + part_bytes)
                file.readline()
                ends.append(file.tell())
    return ends if ends and ends[-1] >= length else [*ends, length]


def count_lines(source: Source, begin: int, end: int) -> int:
    """Return how many lines end between two offsets: what a later part's first line is known by."""
    lines = 0
    with source.path.open("rb") as file:
        file.seek(begin)
        while begin < end and (data := file.read(min(_READ_BYTES, end - begin))):
            begin += len(data)
            lines += data.count(b"\n")
    return lines


def read_part(part: Part, fields: Fields) -> Iterator[Read | Problem]:
    """Read a part's documents, from its `begin` on, and tell what is none.

    Raises:
        OSError: the file cannot be read.
    """
    if part.begin.offset and part.begin.offset >= part.end:
        return
    for row in read_rows(part.source.path, part.begin, part.end):
        where = f"{part.source.name}:{row.line}"
        try:
            yield Read(_document(row, part.source, fields), where, row.after)
        except BadRow as error:
            yield Problem(where, str(error), row.after)


def _document(row: Row, source: Source, fields: Fields) -> Document:
    if row.reason:
        raise BadRow(row.reason)
    return to_document(row.value, fields, derive_id(source.name, row.after.rows))
