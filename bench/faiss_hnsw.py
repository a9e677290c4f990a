"""FAISS's HNSW as a peer: the library that most graphs are compared with, in this process.

It is no dependency of the suite: `pip install -c constraints.txt -e '.[bench]'` brings it. Graphs
are built as the engine builds its own (16 links, 100 candidates at a step), and with 32 links, as
benchmarks of FAISS have it; over float32 and over its codes of 8 bits. Searches run on one thread.

Shapes: N points, D full width.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.timed import LIMIT, Found, Setting
from services.router.storage.store import point_uuid
from services.shared.vectors import Array

try:
    import faiss
except ImportError:
    faiss = None

KINDS = ("HNSW16,Flat", "HNSW32,Flat", "HNSW16,SQ8")
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
_EF_CONSTRUCT = 200  # as our full size's graph
IS_INSTALLED = faiss is not None
ABSENT = "FAISS is left out, as it is not installed: pip install -c constraints.txt -e '.[bench]'"


class FaissHnsw:
    """One index; a point's key is that of the collections of `timed.build`."""

    def __init__(self, kind: str, documents_ND: Array, keys: Sequence[str]) -> None:
        self._kind, self._keys = kind, keys
        index: Any = faiss.index_factory(documents_ND.shape[1], kind)
        index.hnsw.efConstruction = _EF_CONSTRUCT
        self._index = index
        faiss.omp_set_num_threads(os.cpu_count())
        self._index.train(documents_ND)
        self._index.add(documents_ND)

    @property
    def memory_bytes(self) -> float:
        """Bytes for each point: its numbers or codes, and the graph's own arrays."""
        storage: Any = faiss.downcast_index(self._index.storage)
        hnsw = self._index.hnsw
        graph = 4 * hnsw.neighbors.size() + 8 * hnsw.offsets.size() + 4 * hnsw.levels.size()
        return float(storage.code_size + graph / self._index.ntotal)

    def settings(self) -> Iterator[Setting]:
        """Give the sweep over the width of its walk."""
        for ef in EFS:
            yield self._setting(ef)

    def _setting(self, ef: int) -> Setting:
        async def ask(query_D: Array) -> Found:
            self._index.hnsw.efSearch = ef
            begin_s = time.perf_counter()
            squares_1N, rows_1N = self._index.search(query_D[None], LIMIT)
            took_s = time.perf_counter() - begin_s
            # Squared distances of unit vectors.
            found = zip(rows_1N[0].tolist(), (1.0 - squares_1N[0] / 2.0).tolist(), strict=True)
            return [(self._keys[row], cosine) for row, cosine in found if row >= 0], took_s

        is_cosine = self._kind.endswith("Flat")
        return Setting(f"{self._kind} ef={ef}", ask, self.memory_bytes, is_cosine)


def faiss_settings(documents_ND: Array) -> list[Setting]:
    """Build all kinds; none, if FAISS is not installed."""
    if not IS_INSTALLED:
        return []
    keys = [point_uuid(str(row)) for row in range(len(documents_ND))]
    built = [FaissHnsw(kind, documents_ND, keys) for kind in KINDS]
    faiss.omp_set_num_threads(1)
    return [setting for index in built for setting in index.settings()]
