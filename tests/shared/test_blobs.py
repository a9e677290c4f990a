"""Stored files: bounded where others send them."""

import pytest

from services.shared.blobs import Blobs
from services.shared.errors import TooLarge


async def pieces(*parts: bytes):
    for part in parts:
        yield part


async def test_only_what_others_send_is_bounded(tmp_path):
    """A report that is longer than any upload may be is stored all the same, and nothing half."""
    blobs = Blobs(str(tmp_path), max_bytes=10)
    with pytest.raises(TooLarge, match="at most 10 bytes"):
        await blobs.store(pieces(b"123456", b"78901"))
    assert not list(tmp_path.iterdir())
    stored = await blobs.store(pieces(b"123456", b"78901"), is_bounded=False)
    assert stored.num_bytes == 11
    blobs.fetch(stored.id, tmp_path / "copy", "file")
    assert (tmp_path / "copy").read_bytes() == b"12345678901"
