"""The progress file: what of which file has been acknowledged, so that a killed run goes on.

One entry a line, each with a checksum, appended and flushed to the disk before the next batch
counts; the whole is written anew, at once or not at all, when it is opened and when it has grown.
A last line that a crash tore is left out; anything else that is not as it was written is refused.
"""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import orjson

from services.cli.bulk.batches import Advance
from services.cli.bulk.readers import Mark
from services.shared.errors import InvalidRequest

_VERSION = 1
_CHECKSUM_CHARS = 8
# Entries beyond the least that say the same, at which the file is written anew.
_SPARE_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a part of a file is."""

    begin: int
    """Offset of its first byte."""
    end: int
    """Offset after its last."""
    mark: Mark
    """Rows before this are acknowledged, or are no documents."""
    documents: int = 0
    """Documents acknowledged."""
    is_done: bool = False


@dataclass(slots=True)
class _Entry:
    """A file, as it was when its parts were cut."""

    fingerprint: str
    parts: list[Progress] = field(default_factory=list)
    options: str | None = None
    """By which it was read; None: not known."""


class Journal:
    """An open progress file. Build it with `open`; its own process is the only one to write it.

    Args:
        path: the file.
        collection: what is written to.
        key: digest of the key that writes, as tenants share names and not points; "": none.
    """

    def __init__(self, path: Path, collection: str, key: str = "") -> None:
        self._path = path
        self._collection = collection
        self._key = key
        self._entries: dict[str, _Entry] = {}
        self._checked: tuple[str, int] = ("", 0)
        self._num_lines = 0

    @classmethod
    def open(cls, path: Path, collection: str, key: str = "") -> Self:
        """Read a progress file, if there is one, and make it ready to be written.

        Raises:
            InvalidRequest: it is damaged, of another collection or key, or no progress file.
            OSError: it cannot be read or written.
        """
        journal = cls(path, collection, key)
        if path.exists():
            journal._read(path.read_bytes())
        journal._write_anew()
        return journal

    def parts(self, source: str, fingerprint: str) -> list[Progress]:
        """Return how far the parts of a file are; none if it is new, or has changed since."""
        entry = self._entries.get(source)
        return list(entry.parts) if entry and entry.fingerprint == fingerprint else []

    def knows(self, source: str) -> bool:
        """Say whether a file was begun, as it is or as it was."""
        return source in self._entries

    def options(self, source: str) -> str | None:
        """Return the options by which a file was read; None: not known."""
        return self._entries[source].options if source in self._entries else None

    @property
    def has_begun(self) -> bool:
        """Whether a file was ever taken up."""
        return bool(self._entries)

    @property
    def num_documents(self) -> int:
        """Documents acknowledged, of all files."""
        return sum(part.documents for entry in self._entries.values() for part in entry.parts)

    def begin(
        self, source: str, fingerprint: str, marks: Sequence[Mark], end: int, options: str = ""
    ) -> None:
        """Take up a file from its beginning.

        Args:
            source: its name.
            fingerprint: what changes when it does, or what is taken from it.
            marks: where its parts begin.
            end: its length in bytes.
            options: what the user said should be taken from it.
        """
        ends = [*(mark.offset for mark in marks[1:]), end]
        parts = [[m.offset, e, m.rows] for m, e in zip(marks, ends, strict=True)]
        entry = {"source": source, "fingerprint": fingerprint, "parts": parts, "options": options}
        self._append(entry)

    def advance(self, advances: Iterable[Advance]) -> None:
        """Note what a batch brought; all of it is durable when it returns."""
        noted = [
            _advanced(a.part.source.name, a.part.number, a.mark, a.documents, a.is_done)
            for a in advances
        ]
        self._append({"advances": noted})

    def checked(self, digest: str) -> int | None:
        """Return how many documents a check of just these files found; None: there was none."""
        return self._checked[1] if self._checked[0] == digest else None

    def note_checked(self, digest: str, documents: int) -> None:
        """Keep what a check found, so that going on need not check again."""
        self._append({"checked": digest, "documents": documents})

    def forget(self) -> None:
        """Begin anew: the collection holds nothing of what was acknowledged."""
        self._entries = {}
        self._write_anew()

    def _read(self, content: bytes) -> None:
        *lines, _torn = content.split(b"\n")
        header = self._header()
        if not lines and header.startswith(content):
            return  # torn before it said anything
        first = _decode(lines[0]) if lines else None
        if first is None or "collection" not in first:
            raise InvalidRequest(
                f"{self._path} is not a progress file; name another one with --state"
            )
        if first != {**self._first(), "key": first.get("key")}:
            raise InvalidRequest(
                f"{self._path} is the progress of collection {first['collection']!r}, version "
                f"{first.get('version')}; name another file with --state"
            )
        if first != self._first():
            raise InvalidRequest(
                f"{self._path} is the progress of another key; name another file with --state"
            )
        for number, line in enumerate(lines[1:], start=2):
            entry = _decode(line)
            if entry is None and number == len(lines):
                return  # torn in its middle; nothing counts on it yet
            try:
                if entry is None:
                    raise ValueError("checksum")
                self._apply(entry)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise InvalidRequest(
                    f"{self._path}:{number} is damaged; delete the file to index from the "
                    "beginning: documents are known by their ids, none is doubled"
                ) from error

    def _apply(self, entry: dict[str, Any]) -> None:
        if "checked" in entry:
            self._checked = (str(entry["checked"]), int(entry["documents"]))
        elif "fingerprint" in entry:
            parts = [Progress(begin, end, Mark(rows, begin)) for begin, end, rows in entry["parts"]]
            self._entries[entry["source"]] = _Entry(
                entry["fingerprint"], parts, entry.get("options")
            )
        else:
            for source, number, rows, offset, documents, is_done in entry["advances"]:
                parts = self._entries[source].parts
                parts[number] = replace(
                    parts[number],
                    mark=Mark(rows, offset),
                    documents=parts[number].documents + documents,
                    is_done=is_done,
                )

    def _append(self, entry: dict[str, Any]) -> None:
        self._apply(entry)
        if self._num_lines > _SPARE_ENTRIES + 4 * len(self._entries):
            self._write_anew()
            return
        with self._path.open("ab") as file:
            file.write(_encode(entry))
            file.flush()
            os.fsync(file.fileno())
        self._num_lines += 1

    def _write_anew(self) -> None:
        lines = [self._header()]
        if self._checked[0]:
            lines.append(_encode({"checked": self._checked[0], "documents": self._checked[1]}))
        for source, entry in self._entries.items():
            lines.append(_encode(_planned(source, entry)))
            begun = [
                _advanced(source, number, part.mark, part.documents, part.is_done)
                for number, part in enumerate(entry.parts)
                if part.documents or part.is_done or part.mark.offset > part.begin
            ]
            lines.append(_encode({"advances": begun}))
        with tempfile.NamedTemporaryFile(
            dir=self._path.parent, prefix=f".{self._path.name}.", delete=False
        ) as file:
            try:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
        self._num_lines = len(lines)

    def _first(self) -> dict[str, Any]:
        return {"version": _VERSION, "collection": self._collection, "key": self._key}

    def _header(self) -> bytes:
        return _encode(self._first())


def _planned(source: str, entry: _Entry) -> dict[str, Any]:
    # Where a part began is in its plan, how many rows were before it too: all marks are from there.
    return {
        "source": source,
        "fingerprint": entry.fingerprint,
        "parts": [[part.begin, part.end, part.mark.rows] for part in entry.parts],
        "options": entry.options,
    }


def _advanced(
    source: str, number: int, mark: Mark, documents: int, is_done: bool
) -> tuple[object, ...]:
    return (source, number, mark.rows, mark.offset, documents, is_done)


def _encode(entry: dict[str, Any]) -> bytes:
    body = orjson.dumps(entry)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode(line: bytes) -> dict[str, Any] | None:
    """Read an entry's line; None: it is not as it was written."""
    checksum, body = line[:_CHECKSUM_CHARS], line[_CHECKSUM_CHARS + 1 :]
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        entry = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None
