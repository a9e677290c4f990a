"""A rotation that nests a collection: turned by it, each prefix ranks as the full vector does.

The trainer learns it from the collection's own vectors (`training/nest.py` there). Documents and
queries are turned alike, so cosines of whole vectors stay what they were; only short sizes need
it, and of its rows only as many as the longest of them has numbers.

Shapes: B vectors, M the longest nested size, D full width.
"""

import hashlib
from dataclasses import dataclass

from services.shared.vectors import Array, pack


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """The first rows of an orthogonal matrix."""

    id: str
    """Digest of the rows: vectors turned by two rotations never meet under one name."""
    rows_MD: Array
    """float32, orthonormal."""

    @classmethod
    def of(cls, rows_MD: Array) -> "Rotation":
        """Name a rotation by its rows."""
        return cls(hashlib.sha256(pack(rows_MD)).hexdigest()[:12], rows_MD)

    def turn(self, vectors_BD: Array) -> Array:
        """Return the first M numbers of the turned vectors, [B, M]."""
        turned_BM: Array = vectors_BD @ self.rows_MD.T
        return turned_BM
