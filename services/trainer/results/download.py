"""Stored files in pieces: from the store to a caller, and from a job's folder to the store."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from services.shared.blobs import Blobs

_PIECE_BYTES = 2**20


async def read_pieces(blobs: Blobs, file_id: str) -> AsyncIterator[bytes]:
    """Give a stored file's bytes.

    It is fetched whole first: what the store cannot give is an error before the first piece.

    Raises:
        InvalidRequest: `file_id` is not an id.
        NotFound: there is no such file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        await asyncio.to_thread(blobs.fetch, file_id, path, "file_id")
        async for piece in file_pieces(path):
            yield piece


async def file_pieces(path: Path) -> AsyncIterator[bytes]:
    """Give a local file's bytes."""
    with path.open("rb") as stream:
        while piece := await asyncio.to_thread(stream.read, _PIECE_BYTES):
            yield piece
