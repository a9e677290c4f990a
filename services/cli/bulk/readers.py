"""Rows of a file, one by one, from any place where an earlier run stopped.

JSON lines, CSV, plain text and Markdown, Parquet where pyarrow is installed. Only one row is in
memory at a time (of Parquet, some hundred). What cannot be read is a row with a reason; the rows
after it are read as long as the format lets one find where they begin. Knows nothing of documents.
"""

import csv
import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

# The longest text, each character escaped, has 12 MB.
MAX_LINE_BYTES = 16 * 2**20
_PARQUET_ROWS = 256
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two rows."""

    rows: int = 0
    """Rows before it; of JSON lines, lines."""
    offset: int = 0
    """Bytes before it; 0 in formats whose rows can only be counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or why there is none."""

    value: object
    line: int
    """Where it begins, from 1; of Parquet, the row's number."""
    after: Mark
    reason: str = ""
    """Not empty: it cannot be read."""


def read_rows(path: Path, begin: Mark, end: int) -> Iterator[Row]:
    """Read a file's rows.

    Args:
        path: its suffix tells the format.
        begin: where to begin: a mark that an earlier reading gave.
        end: JSON lines: the offset at which the last line ends; other formats are read to the end.

    Raises:
        OSError: the file cannot be opened or read.
    """
    yield from _READERS[path.suffix.lower()](path, begin, end)


def can_split(path: Path) -> bool:
    """Say whether a file can be read from the middle without reading what is before it."""
    return path.suffix.lower() in JSONL


def _read_jsonl(path: Path, begin: Mark, end: int) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, after in _lines(file, begin):
            if line is None:
                yield Row(None, after.rows, after, f"the line is over {MAX_LINE_BYTES:,} bytes")
            elif line.strip():
                try:
                    yield Row(orjson.loads(line), after.rows, after)
                except orjson.JSONDecodeError as error:
                    yield Row(None, after.rows, after, f"must be one JSON object: {error.msg}")
            if after.offset >= end:
                return


def _read_text(path: Path, begin: Mark, end: int) -> Iterator[Row]:
    """Read paragraphs: lines up to an empty one."""
    paragraph: list[str] = []
    number, first, size = 0, 1, 0
    with path.open("rb") as file:
        for line, after in _lines(file, Mark()):
            text = None if line is None else line.decode("utf-8", "surrogateescape").rstrip()
            if text == "":
                if paragraph:
                    number += 1
                    if number > begin.rows:
                        yield _paragraph(paragraph, number, first, size)
                paragraph, first, size = [], after.rows + 1, 0
                continue
            if not paragraph:
                first = after.rows
            size += MAX_LINE_BYTES + 1 if text is None else len(text) + 1
            paragraph.append(text or "" if size <= MAX_LINE_BYTES else "")
    if paragraph and number + 1 > begin.rows:
        yield _paragraph(paragraph, number + 1, first, size)


def _paragraph(lines: list[str], number: int, line: int, size: int) -> Row:
    after = Mark(number)
    if size > MAX_LINE_BYTES:
        return Row(None, line, after, f"the paragraph is over {MAX_LINE_BYTES:,} bytes")
    return Row({"text": "\n".join(lines)}, line, after)


def _lines(file: BinaryIO, begin: Mark) -> Iterator[tuple[bytes | None, Mark]]:
    """Yield lines, None for one that is too long, and the mark after each."""
    file.seek(begin.offset)
    number, offset = begin.rows, begin.offset
    while line := file.readline(MAX_LINE_BYTES + 1):
        is_too_long = len(line) > MAX_LINE_BYTES
        start, offset = offset, offset + len(line)
        while is_too_long and not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
            offset += len(line)
        number += 1
        if start == 0 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        yield None if is_too_long else line, Mark(number, offset)


def _read_csv(path: Path, begin: Mark, end: int) -> Iterator[Row]:
    """Read a table with a header; a broken quote makes the rest unreadable."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as raw:
        # Bytes that are not UTF-8 are told of the row that has them.
        text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        table = csv.reader(text, strict=True)
        number, line = 0, 1
        try:
            header = next(table, [])
            if len(set(header)) < len(header):
                raise csv.Error("two columns of the header have the same name")
            line = table.line_num + 1
            for cells in table:
                if cells:  # a blank line is no row
                    number += 1
                    if number > begin.rows:
                        yield _csv_row(header, cells, line, Mark(number))
                line = table.line_num + 1
        except csv.Error as error:
            reason = f"must be CSV with a header; the rest of the file cannot be read: {error}"
            yield Row(None, line, Mark(number + 1), reason)


def _csv_row(header: list[str], cells: list[str], line: int, after: Mark) -> Row:
    if len(cells) != len(header):
        reason = f"has {len(cells)} fields, and the header {len(header)}"
        return Row(None, line, after, reason)
    return Row({k: v or None for k, v in zip(header, cells, strict=True)}, line, after)


def _read_parquet(path: Path, begin: Mark, end: int) -> Iterator[Row]:
    # Not at the top: it is installed with the extra `ray` only.
    parquet: Any = importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                if number + batch.num_rows > begin.rows:
                    for value in batch.slice(max(0, begin.rows - number)).to_pylist():
                        place = max(number, begin.rows) + 1
                        number = place
                        yield Row(value, place, Mark(place))
                else:
                    number += batch.num_rows
    except (ValueError, OSError) as error:  # pyarrow's errors are either
        yield Row(None, number + 1, Mark(number + 1), f"must be Parquet: {error}")


JSONL = (".jsonl", ".ndjson")
_READERS: dict[str, Callable[[Path, Mark, int], Iterator[Row]]] = {
    **dict.fromkeys(JSONL, _read_jsonl),
    **dict.fromkeys((".txt", ".md", ".rst"), _read_text),
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
