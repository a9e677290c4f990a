"""How sure a measured recall is, and when a promise of recall is broken.

The recall of one query is a number in 0..1, mostly 1 and now and then far below. A normal
approximation promises too much just there: of 500 queries, each with a recall of 0.4 at a chance
of 1 in 600 and of 1 otherwise, its "95 %" lower bound is above the true mean in 43 % of samples.

Shapes: Q queries, V distinct values, R random weights, S stakes.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DRAWS = 10_000
_SEED = 0
# Shares of the wealth that the alarm stakes.
_STAKES_S: Floats = np.geomspace(0.01, 0.9, 12)


def lower_bound(recalls: Sequence[float] | Floats, confidence: float = 0.95) -> float:
    """Return what the true mean is above, in at least a share `confidence` of samples.

    One value of 0 is added, all values get random weights (uniform over all weights that sum to
    1), and the bound is that quantile of the weighted mean. For recalls of 0 and 1 only this is
    the exact bound of Clopper and Pearson. For others no distribution is known on which it fails,
    and that there is none is a conjecture; tests try distributions that are hard on other bounds.

    Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the
    mean of a nonnegative variable"; Learned-Miller and Thomas 2019, arXiv:1905.06208.

    Args:
        recalls: 0..1 each, of queries drawn independently; none gives 0.
        confidence: 0..1.

    >>> round(lower_bound([1.0] * 299), 2)
    0.99
    """
    return _quantile(np.asarray(recalls, dtype=np.float64), 0.0, 1.0 - confidence)


def upper_bound(recalls: Sequence[float] | Floats, confidence: float = 0.95) -> float:
    """Return what the true mean is below; see `lower_bound`."""
    return _quantile(np.asarray(recalls, dtype=np.float64), 1.0, confidence)


def _quantile(values: Floats, worst: float, share: float) -> float:
    values_V, counts_V = np.unique(np.append(values, worst), return_counts=True)
    # Weights of equal values need only their sum. A fixed seed: the same recalls, the same bound.
    weights_RV = np.random.default_rng(_SEED).standard_gamma(counts_V, (_DRAWS, len(counts_V)))
    means_R = weights_RV @ values_V / weights_RV.sum(axis=1)
    return float(np.quantile(means_R, share))


class Alarm:
    """Tells, while recalls come in one by one, that their mean is below a target.

    A gambler bets that the next query loses more than the target allows. While it does not, in
    the mean, no bet can make money. He is given a coin before each query, so that a long good
    time does not hide a bad one; then, as long as the target is met, at least `run_length`
    queries pass in the mean before the alarm rings for nothing, however often it is asked.

    Source: Waudby-Smith and Ramdas 2020, arXiv:2010.09686 (the bets); Shin, Ramdas and Rinaldo
    2022, arXiv:2203.03532 (the coins).

    Args:
        target: 0..1, below 1.
        run_length: queries between two false alarms, in the mean, at least.
    """

    def __init__(self, target: float, run_length: float = 100_000.0) -> None:
        self._allowed = 1.0 - target
        self._needed = math.log(run_length)
        self._bets_S = _STAKES_S / self._allowed
        self._log_wealth_S: Floats = np.full(len(_STAKES_S), -np.inf)
        self.rings = False

    def observe(self, recall: float) -> bool:
        """Take one query's recall into account; return whether the alarm has rung."""
        gain_S = np.log1p(self._bets_S * (1.0 - recall - self._allowed))
        self._log_wealth_S = np.logaddexp(self._log_wealth_S, 0.0) + gain_S
        wealth = float(np.logaddexp.reduce(self._log_wealth_S)) - math.log(len(_STAKES_S))
        self.rings = self.rings or wealth >= self._needed
        return self.rings
