"""Full vectors of texts that were encoded before, so that any size of them needs no model.

In: a model's space and what it is to read. Out: the full float32 vector, if it is held. Bounded
in bytes; what was not asked for the longest is dropped first. Holds no text: each is kept as a
keyed digest of its tokens. Each tenant finds its own texts only: a vector that comes sooner must
not tell it what others have sent. Called from several threads.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from services.shared.vectors import Array

_DIGEST_BYTES = 16
# Beside its numbers an entry costs two bytes objects and a place in the table: 173 bytes, measured
# over 10,000 entries (CPython 3.11).
_ENTRY_BYTES = 176


class VectorCache:
    """Keeps the vectors asked for last.

    Args:
        max_bytes: bound on what is kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Digests of other processes' texts must not be guessable from outside.
        self._secret = os.urandom(32)
        self._lock = threading.Lock()
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()
        self.num_bytes = 0

    def keys(
        self, space_id: str, contents: Iterable[tuple[str, bytes]], tenant: str | None = None
    ) -> list[bytes]:
        """Name each text: equal names mean equal vectors.

        Args:
            space_id: of the model.
            contents: what else decides a vector: which part of the model reads the text, and the
                bytes that it reads.
            tenant: who asks; None: an operator.
        """
        space = _space_digest(space_id)
        starts: dict[str, Any] = {}
        keys = []
        for part, content in contents:
            start = starts.get(part)
            if start is None:
                start = starts[part] = self._start(part, tenant)
            digest = start.copy()
            digest.update(content)
            keys.append(space + digest.digest())
        return keys

    def _start(self, part: str, tenant: str | None) -> Any:  # noqa: ANN401 (hashlib's types are private)
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=self._secret)
        # Length first: no tenant, part and content can be taken for another three. No tenant's
        # name is empty.
        for name in (tenant or "", part):
            digest.update(f"{len(name)}:{name}".encode())
        return digest

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the vectors that are held, each as its float32 bytes."""
        found = {}
        with self._lock:
            for key in keys:
                vector = self._vectors.get(key)
                if vector is not None:
                    self._vectors.move_to_end(key)
                    found[key] = vector
        return found

    def put(self, keys: Sequence[bytes], vectors_BD: Array) -> None:
        """Keep copies of the rows; the batch that they come from is not held."""
        if not self._max_bytes:
            return
        rows = [vector_D.tobytes() for vector_D in vectors_BD]
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                old = self._vectors.pop(key, None)
                self.num_bytes += _cost(row) - (_cost(old) if old is not None else 0)
                self._vectors[key] = row
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= _cost(self._vectors.popitem(last=False)[1])

    def forget(self, space_id: str) -> None:
        """Drop all vectors of a space."""
        space = _space_digest(space_id)
        with self._lock:
            for key in [key for key in self._vectors if key.startswith(space)]:
                self.num_bytes -= _cost(self._vectors.pop(key))


def join(vectors: Sequence[bytes]) -> Array:
    """Return float32 bytes of equal length as vectors_BD; not to be written to."""
    return np.frombuffer(b"".join(vectors), dtype=np.float32).reshape(len(vectors), -1)


def _space_digest(space_id: str) -> bytes:
    return hashlib.blake2b(space_id.encode(), digest_size=_DIGEST_BYTES).digest()


def _cost(vector: bytes) -> int:
    return len(vector) + _ENTRY_BYTES
