"""A collection's rotation on disk under Qdrant Edge: what the router writes and workers read."""

import io
from pathlib import Path

import numpy as np

from services.router.rotation import Rotation


def rotation_name(nesting: str) -> str:
    """Return the file's name, in the collection's folder."""
    return f"rotation-{nesting}.npy"


def rotation_bytes(rotation: Rotation) -> bytes:
    """Return what is written: the rows, little-endian float32, in numpy's own format."""
    buffer = io.BytesIO()
    np.save(buffer, rotation.rows_MD.astype("<f4"), allow_pickle=False)
    return buffer.getvalue()


def read_rotation(folder: Path, nesting: str) -> Rotation | None:
    """Read the rotation with this id; None, if it is "": there are no nested sizes."""
    if not nesting:
        return None
    rows_MD = np.load(folder / rotation_name(nesting), allow_pickle=False)
    return Rotation(nesting, rows_MD.astype(np.float32))
