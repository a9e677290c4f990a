"""Vectors made of real ones, where no real collection is large or long enough.

More of them: each is one real vector moved by half the difference of two others, so that their
spectrum and their crowds stay. Longer ones: see `Longer`.

Shapes: N vectors, D their width, L the longer width.
"""

import numpy as np

from services.shared.vectors import Array, normalize

_MOVED = 0.5
_BLOCK = 50_000
_FITTED_FROM = 20_000
_SEED = 7


def more_of(real_ND: Array, count: int, seed: int) -> Array:
    """Make vectors of real ones: one, moved along the difference of two others."""
    random = np.random.default_rng(seed)
    made = np.empty((count, real_ND.shape[1]), dtype=np.float32)
    for begin in range(0, count, _BLOCK):
        rows = random.integers(len(real_ND), size=(3, min(_BLOCK, count - begin)))
        one, other, third = (real_ND[some] for some in rows)
        made[begin : begin + len(one)] = normalize(one + _MOVED * (other - third))
    return made


class Longer:
    """Gives real vectors the numbers that a model of a longer width might have added.

    Turned into a wider space they would be no harder than they are: all new axes would be empty,
    and codes and prefixes would have nothing to lose there. What a longer model adds is more of
    the same text, each axis varying less than the one before. So the new numbers depend on the
    real vector, smoothly, as near texts are near in either model, but not linearly: cosines of
    random projections (random Fourier features), made uncorrelated. Their variances go on falling
    where the real ones end, by the power law of those. A random rotation then spreads everything
    over all numbers, as a model does that is not trained for cutting.

    Source: Rahimi and Recht 2007, "Random features for large-scale kernel machines".

    Args:
        real_ND: real vectors, to learn the law from; of unit length.
        width: L, above D.
    """

    def __init__(self, real_ND: Array, width: int) -> None:
        random = np.random.default_rng(_SEED)
        sample_ND = real_ND[random.permutation(len(real_ND))[:_FITTED_FROM]]
        full, added = real_ND.shape[1], width - real_ND.shape[1]
        spread = float(np.sqrt(2 * (sample_ND - sample_ND.mean(axis=0)).var(axis=0).sum()))
        self._projection = (random.standard_normal((full, added)) / spread).astype(np.float32)
        self._phases = random.uniform(0, 2 * np.pi, added).astype(np.float32)
        features = np.cos(sample_ND @ self._projection + self._phases)
        self._centre = features.mean(axis=0)
        variances, axes = np.linalg.eigh(np.cov(features.T))
        wanted = _continued(sample_ND, width)
        # The widest first, as the wanted ones come.
        scales = np.sqrt(wanted / np.maximum(variances[::-1], 1e-9))
        self._axes = (axes[:, ::-1] * scales).astype(np.float32)
        turn, _ = np.linalg.qr(random.standard_normal((width, width)))
        self._turn = turn.astype(np.float32)

    def __call__(self, vectors_ND: Array) -> Array:
        """Return vectors of the longer width, of unit length."""
        made = np.empty((len(vectors_ND), len(self._turn)), dtype=np.float32)
        for begin in range(0, len(vectors_ND), _BLOCK):
            some = vectors_ND[begin : begin + _BLOCK]
            features = np.cos(some @ self._projection + self._phases) - self._centre
            whole = np.concatenate([some, features @ self._axes], axis=1)
            made[begin : begin + len(some)] = normalize(whole @ self._turn)
        return made


def _continued(sample_ND: Array, width: int) -> Array:
    """Return the variances of axes D + 1 to L, by the power law of the real ones."""
    variances = np.linalg.eigvalsh(np.cov(sample_ND.T))[::-1]
    full = len(variances)
    # Its middle: the first are topics, and the last fall faster, where a short model runs out.
    numbers = np.arange(full // 20, full // 2)
    slope, start = np.polyfit(np.log(numbers + 1), np.log(variances[numbers]), 1)
    law: Array = np.exp(start + slope * np.log(np.arange(full + 1, width + 1)))
    return law
