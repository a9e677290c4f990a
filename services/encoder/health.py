"""Live prefix health: how much of a full vector its prefixes hold, on what is served now.

In: full vectors of real traffic, a small sample of them. Out: two figures for each size, as
metrics: the energy of the prefix, ||v[:d]||^2 / ||v||^2, and how many of a vector's nearest
neighbours within the sample the prefix finds too. Both need no labels. They fall where a size is
used that the model was not trained for, or for texts that are unlike those it was trained on.

Shapes: S vectors in the sample, D full width.
"""

import time

import numpy as np

from services.encoder.metrics import EncoderMetrics
from services.shared.vectors import Array

# A sample of 64 vectors takes about a millisecond to judge (384 dimensions, seven sizes, two
# cores); every ten seconds that is one part in ten thousand of the forward thread.
SAMPLE = 64
_INTERVAL_S = 10.0
_NEIGHBOURS = 10
# Declared sizes and the first ones asked for; any more would make labels without bound.
_MAX_DIMS = 16


class PrefixHealth:
    """Watches one model.

    Args:
        model_id: the metrics' label.
        full: width of its vectors.
        dims: sizes that it declares.
    """

    def __init__(
        self, model_id: str, full: int, dims: tuple[int, ...], metrics: EncoderMetrics
    ) -> None:
        self._model_id = model_id
        self._full = full
        self._dims = {dim for dim in dims if dim < full}
        self._metrics = metrics
        self._rows: list[Array] = []
        self._count = 0
        self._next_s = 0.0

    def watch(self, dim: int) -> str:
        """Judge a size that a caller asked for, from now on; return its label for metrics."""
        if dim == self._full or dim in self._dims:
            return str(dim)
        if len(self._dims) >= _MAX_DIMS:
            return "other"
        self._dims = self._dims | {dim}
        return str(dim)

    def sample(self, vectors_BD: Array) -> None:
        """Take from a batch what the sample still needs; judge the sample once it is full.

        Called on the forward thread, as its cost there is bounded and known.
        """
        now = time.monotonic()
        if now < self._next_s or not self._dims:
            return
        taken = vectors_BD[: SAMPLE - self._count]
        self._rows.append(taken.copy())
        self._count += len(taken)
        if self._count < SAMPLE:
            return
        vectors_SD = np.concatenate(self._rows)
        self._rows, self._count, self._next_s = [], 0, now + _INTERVAL_S
        for dim, energy, overlap in judge(vectors_SD, sorted(self._dims)):
            labels = (self._model_id, str(dim))
            self._metrics.prefix_energy.labels(*labels).set(energy)
            self._metrics.prefix_overlap.labels(*labels).set(overlap)

    def forget(self) -> None:
        """Take an unloaded model's figures away."""
        for gauge in (self._metrics.prefix_energy, self._metrics.prefix_overlap):
            gauge.remove_by_labels({"model": self._model_id})


def judge(vectors_SD: Array, dims: list[int]) -> list[tuple[int, float, float]]:
    """Return (dim, mean energy, mean overlap of neighbours) for each size, both in 0..1.

    Equal vectors are counted once: a text that is sent again and again is its own neighbour at
    every size.
    """
    vectors_SD = np.unique(vectors_SD, axis=0)
    squares_SD = np.square(vectors_SD, dtype=np.float64)
    totals_S = np.maximum(squares_SD.sum(axis=1), np.finfo(np.float64).tiny)
    neighbours = min(_NEIGHBOURS, (len(vectors_SD) - 1) // 2)
    near = _neighbours(vectors_SD, neighbours)
    judged = []
    for dim in dims:
        energy = float((squares_SD[:, :dim].sum(axis=1) / totals_S).mean())
        found = _neighbours(vectors_SD[:, :dim], neighbours)
        overlap = float((near & found).sum() / max(near.sum(), 1)) if neighbours else 1.0
        judged.append((dim, energy, overlap))
    return judged


def _neighbours(vectors_SD: Array, count: int) -> np.ndarray:
    """Mark each row's nearest others by cosine, as a matrix of S x S booleans."""
    norms_S1 = np.maximum(np.linalg.norm(vectors_SD, axis=1, keepdims=True), 1e-30)
    unit_SD = vectors_SD / norms_S1
    scores_SS = unit_SD @ unit_SD.T
    np.fill_diagonal(scores_SS, -np.inf)
    near = np.zeros(scores_SS.shape, dtype=bool)
    if count:
        rows = np.argpartition(-scores_SS, count - 1, axis=1)[:, :count]
        np.put_along_axis(near, rows, True, axis=1)
    return near
