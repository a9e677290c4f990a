"""Rows of a file of training data: JSON lines, CSV, Parquet and Arrow, told by the name's ending.

A row is in memory by itself (of tables, some hundred). What cannot be read is a row with a reason,
which never holds the file's text; rows after it are read as long as the format lets one find where
they begin. Knows nothing of what the fields mean.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.data.tables import read_arrow, read_parquet

MAX_LINE_BYTES = 16 * 2**20
"""The longest text, each character escaped, has 12 MB."""
_BOM = b"\xef\xbb\xbf"

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Which of a table's columns to read, of their names."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or why there is none."""

    values: dict[str, Any]
    line: int
    """Where it begins, from 1; of tables, the row's number."""
    reason: str = ""
    """Not empty: it cannot be read."""


def read_rows(path: Path, suffix: str, choose: Choose) -> Iterator[Row]:
    """Read a file's rows; blank lines are skipped.

    Args:
        path: where it is.
        suffix: of the name that the user knows it by; one that is not in `SUFFIXES`: JSON lines.
        choose: asked once for tables; of JSON lines and CSV all fields come.
    """
    match suffix.lower():
        case ".csv":
            yield from _read_csv(path)
        case ".parquet" | ".arrow":
            read = read_parquet if suffix.lower() == ".parquet" else read_arrow
            for number, found in enumerate(read(path, choose), start=1):
                if isinstance(found, str):
                    yield Row({}, number, found)
                else:
                    yield Row(found, number)
        case _:
            yield from _read_jsonl(path)


def _read_jsonl(path: Path) -> Iterator[Row]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield Row({}, number, f"the line is over {MAX_LINE_BYTES:,} bytes")
                continue
            if line.strip():
                yield _json_row(line.removeprefix(_BOM) if number == 1 else line, number)


def _json_row(line: bytes, number: int) -> Row:
    try:
        values = json.loads(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return Row({}, number, f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Row({}, number, f"not JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return Row({}, number, "nested too deeply")
    except ValueError:  # of Python's own bound on digits
        return Row({}, number, "holds a number of too many digits")
    if not isinstance(values, dict):
        return Row({}, number, f"a JSON {type(values).__name__} instead of an object")
    return Row(values, number)


def _read_csv(path: Path) -> Iterator[Row]:
    """Read a table with a header; a broken quote makes the rest unreadable."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as raw:
        # Bytes that are not UTF-8 are told of the row that has them.
        text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        table = csv.reader(text, strict=True)
        line = 1
        try:
            header = next(table, [])
            if len(set(header)) < len(header):
                yield Row({}, line, "two columns of the header have the same name")
                return
            line = table.line_num + 1
            for cells in table:
                if cells:  # a blank line is no row
                    yield _csv_row(header, cells, line)
                line = table.line_num + 1
        except csv.Error as error:
            yield Row({}, line, f"not CSV, so the rest of the file cannot be read: {error}")


def _csv_row(header: list[str], cells: list[str], line: int) -> Row:
    if len(cells) != len(header):
        return Row({}, line, f"has {len(cells)} fields, and the header {len(header)}")
    return Row(dict(zip(header, cells, strict=True)), line)


SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet", ".arrow")
"""Endings of files that a folder of data is made of."""
