"""Uploaded files: bytes under an id, in a folder or an object store.

A file is there as a whole or not at all: it is written under a temporary name and moved into
place after its last byte. Knows nothing of what the bytes mean.
"""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from services.shared.errors import InvalidRequest, NotFound, TooLarge

_ID = re.compile(r"file-[0-9a-f]{32}")
_TEMPORARY = ".upload-"
_PIECE_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored file."""

    id: str
    num_bytes: int


def check_id(file_id: str, param: str) -> None:
    """Refuse what is no id of a stored file; InvalidRequest."""
    if not _ID.fullmatch(file_id):
        raise InvalidRequest(f"{param} must be an id that UploadFile returned", param)


class Blobs:
    """Stored files.

    Args:
        url: a folder or an object store, as fsspec names it.
        max_bytes: longest file.
        owner: a name of letters and digits that no other who stores files there has; "": there is
            no other.
    """

    def __init__(self, url: str, max_bytes: int, owner: str = "") -> None:
        # Typed loosely: fsspec ships no types.
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._max_bytes = max_bytes
        self._temporary = f"{_TEMPORARY}{owner}-" if owner else _TEMPORARY
        self._files.makedirs(self._root, exist_ok=True)

    def clean(self) -> None:
        """Remove what its own uploads that were cut off left behind; only while none is running."""
        for path in self._files.ls(self._root, detail=False):
            if path.rsplit("/", 1)[-1].startswith(self._temporary):
                self._files.rm_file(path)

    async def store(self, pieces: AsyncIterator[bytes], is_bounded: bool = True) -> Blob:
        """Store a file from its pieces.

        Args:
            pieces: its bytes.
            is_bounded: False for what a service has made itself.

        Raises:
            TooLarge: longer than `max_bytes`; nothing is kept.
            InvalidRequest: no bytes at all.
        """
        name = uuid.uuid4().hex
        temporary = f"{self._root}/{self._temporary}{name}"
        num_bytes = 0
        try:
            stream = await asyncio.to_thread(self._files.open, temporary, "wb")
            try:
                async for piece in pieces:
                    num_bytes += len(piece)
                    if is_bounded and num_bytes > self._max_bytes:
                        raise TooLarge(f"a file must be at most {self._max_bytes} bytes")
                    await asyncio.to_thread(stream.write, piece)
            finally:
                await asyncio.to_thread(stream.close)
            if not num_bytes:
                raise InvalidRequest("the file is empty; send its bytes after its name", "data")
            await asyncio.to_thread(self._files.mv, temporary, self._path(f"file-{name}"))
        except BaseException:
            # Also when the caller left: whatever was written goes. No await: we may be cancelled.
            if self._files.exists(temporary):
                self._files.rm_file(temporary)
            raise
        return Blob(f"file-{name}", num_bytes)

    def fetch(self, file_id: str, target: Path, param: str) -> None:
        """Copy a stored file to a local path.

        Raises:
            InvalidRequest: `file_id` is not an id.
            NotFound: there is no such file.
        """
        check_id(file_id, param)
        path = self._path(file_id)
        if not self._files.exists(path):
            raise NotFound(f"there is no file {file_id}; upload it first", param)
        self._files.get_file(path, str(target))

    async def read(self, file_id: str) -> AsyncIterator[bytes]:
        """Yield a stored file's bytes, piece by piece."""
        stream = await asyncio.to_thread(self._files.open, self._path(file_id), "rb")
        try:
            while piece := await asyncio.to_thread(stream.read, _PIECE_BYTES):
                yield piece
        finally:
            stream.close()

    def remove(self, file_id: str) -> None:
        """Delete a stored file, if it is there."""
        if _ID.fullmatch(file_id) and self._files.exists(self._path(file_id)):
            self._files.rm_file(self._path(file_id))

    def _path(self, file_id: str) -> str:
        return f"{self._root}/{file_id}"
