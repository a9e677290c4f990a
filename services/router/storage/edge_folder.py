"""How collections lie on disk under Qdrant Edge, and how a change there survives a crash.

    collections/
      .lock             held by the one router that uses the folder
      .aliases.json     {alias: collection}
      <name>/
        collection.json   model, space, sizes, what was measured, and which shard counts
        queries.msgpack   vectors of recent queries, and their slices
        rotation-<id>.npy  what turns the vectors of nested sizes, if there are any
        shard-<id>/       Edge's own files
      .new-<id>/        a collection in the making
      .trash-<id>/      a collection being deleted

Each change has one rename that makes it true; what lies around before or after one is removed
when the folder is opened. Synchronous; knows nothing of workers.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from services.router.rotation import Rotation
from services.router.storage.edge_rotation import read_rotation, rotation_bytes, rotation_name
from services.router.storage.metadata import from_metadata, to_metadata
from services.router.storage.store import Collection, KeptQueries
from services.shared.errors import Unavailable
from services.shared.vectors import pack, unpack

_LOCK = ".lock"
_ALIASES = ".aliases.json"
_COLLECTION = "collection.json"
_QUERIES = "queries.msgpack"


@dataclass(frozen=True, slots=True)
class Stored:
    """A collection and its current shard."""

    collection: Collection
    shard: Path


class EdgeFolder:
    """The folder of all collections; one process may have it open.

    Args:
        root: created if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock: int | None = None

    def open(self) -> list[Stored]:
        """Take the folder, clean up after a crash, and return what it holds.

        Raises:
            Unavailable: another router has it open.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self._take()
        for pattern in (".new-*", ".trash-*", "*.tmp"):
            for leftover in self._root.glob(pattern):
                remove(leftover)
        return [self._read(path.parent) for path in sorted(self._root.glob(f"*/{_COLLECTION}"))]

    def check_free(self) -> None:
        """See whether it could be opened now, without doing so; Unavailable: it could not."""
        if (self._root / _LOCK).exists():
            self._take()
            self.close()

    def _take(self) -> None:
        self._lock = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise Unavailable(f"another router uses {self._root}; stop it first") from error

    def _read(self, folder: Path) -> Stored:
        metadata = json.loads((folder / _COLLECTION).read_bytes())
        stored = Stored(from_metadata(metadata), folder / metadata["shard"])
        rotation = folder / rotation_name(stored.collection.nesting)
        for path in folder.iterdir():
            if path not in (stored.shard, rotation, folder / _COLLECTION, folder / _QUERIES):
                remove(path)
        return stored

    def close(self) -> None:
        """Let another router have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin(self) -> Path:
        """Return where to create a new collection's shard; nobody sees it before `commit`."""
        folder = self._root / f".new-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder / _new_shard_name()

    def commit(self, collection: Collection, shard: Path) -> Stored:
        """Make a new collection visible, whole."""
        _write_metadata(shard.parent, collection, shard.name)
        folder = self._root / collection.name
        shard.parent.rename(folder)
        _sync(self._root)
        return Stored(collection, folder / shard.name)

    def drop(self, name: str) -> Path:
        """Make a collection disappear; returns what is left to be removed."""
        trash = self._root / f".trash-{uuid.uuid4().hex}"
        (self._root / name).rename(trash)
        _sync(self._root)
        return trash

    def copy_shard(self, stored: Stored) -> Path:
        """Copy a shard that was flushed and is not written to; returns the copy."""
        copy = self.new_shard(stored)
        shutil.copytree(stored.shard, copy)
        return copy

    def new_shard(self, stored: Stored) -> Path:
        """Return where to build another shard of a collection."""
        return stored.shard.with_name(_new_shard_name())

    def switch_shard(self, collection: Collection, shard: Path) -> Stored:
        """Let another shard of a collection count from now on, with what is written here of it."""
        _write_metadata(shard.parent, collection, shard.name)
        return Stored(collection, shard)

    def write_rotation(self, stored: Stored, rotation: Rotation) -> None:
        """Keep a rotation beside a collection's shard."""
        path = stored.shard.with_name(rotation_name(rotation.id))
        _write(path, rotation_bytes(rotation))

    def read_rotation(self, stored: Stored) -> Rotation | None:
        """Return the rotation of the nested sizes; None: there are none."""
        return read_rotation(stored.shard.parent, stored.collection.nesting)

    def drop_rotation(self, stored: Stored, nesting: str) -> None:
        """Remove a rotation that no size needs any more."""
        if nesting and nesting != stored.collection.nesting:
            stored.shard.with_name(rotation_name(nesting)).unlink(missing_ok=True)

    def describe(self, stored: Stored, collection: Collection) -> Stored:
        """Write what is known of a collection anew."""
        _write_metadata(stored.shard.parent, collection, stored.shard.name)
        return Stored(collection, stored.shard)

    def write_queries(self, stored: Stored, queries: KeptQueries) -> None:
        """Keep recent queries beside a collection's shard."""
        body: bytes = msgpack.packb({"vectors": pack(queries.vectors_QD), "slices": queries.slices})
        _write(stored.shard.parent / _QUERIES, body)

    def read_queries(self, stored: Stored) -> KeptQueries:
        """Return the kept queries; none, if there are none."""
        full = stored.collection.full
        path = stored.shard.parent / _QUERIES
        if not path.exists():
            return KeptQueries(np.empty((0, full), dtype=np.float32), [])
        kept = msgpack.unpackb(path.read_bytes())
        return KeptQueries(unpack(kept["vectors"], full), kept["slices"])

    def read_aliases(self) -> dict[str, str]:
        path = self._root / _ALIASES
        aliases: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
        return aliases

    def write_aliases(self, aliases: dict[str, str]) -> None:
        _write(self._root / _ALIASES, json.dumps(aliases, indent=2))


def remove(path: Path) -> None:
    """Remove a folder or a file, whatever is left of it."""
    if path.is_dir():
        # A worker of a dead router may still be ending in there.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _new_shard_name() -> str:
    return f"shard-{uuid.uuid4().hex[:12]}"


def _write_metadata(folder: Path, collection: Collection, shard_name: str) -> None:
    metadata = to_metadata(collection) | {"shard": shard_name}
    _write(folder / _COLLECTION, json.dumps(metadata, indent=2))


def _write(path: Path, content: str | bytes) -> None:
    """Replace a file's content: after a crash it holds the old or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
