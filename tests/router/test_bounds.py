"""Bounds of a mean recall, and the alarm: how often they are wrong, on distributions that are hard.

Shapes: T trials, Q queries.
"""

import itertools
import math

import numpy as np
import pytest

from services.router.recall.bounds import Alarm, lower_bound, upper_bound

CONFIDENCE = 0.95
NUM_TRIALS = 300
# Three standard deviations of the share of misses that a bound at 95 % has in so many trials.
MOST_MISSES = 0.05 + 3 * math.sqrt(0.05 * 0.95 / NUM_TRIALS)


def clopper_pearson(num_right: int, num_queries: int) -> float:
    """The exact lower bound of a share, by bisection."""

    def at_least(share: float) -> float:
        """The chance of as many right or more."""
        return sum(
            math.comb(num_queries, k) * share**k * (1 - share) ** (num_queries - k)
            for k in range(num_right, num_queries + 1)
        )

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at_least(middle) < 1 - CONFIDENCE else (low, middle)
    return low


@pytest.mark.parametrize(
    ("num_right", "num_queries"),
    [(0, 20), (1, 20), (19, 20), (20, 20), (95, 100), (100, 100), (290, 300), (299, 300)],
)
def test_of_right_and_wrong_alone_the_bound_is_exact(num_right, num_queries):
    """Recalls of 0 and 1 only get the bound of Clopper and Pearson."""
    recalls = [1.0] * num_right + [0.0] * (num_queries - num_right)
    # Half a percent: a quantile of 10,000 draws.
    exact = clopper_pearson(num_right, num_queries)
    assert lower_bound(recalls) == pytest.approx(exact, abs=0.005)


def rare(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Nearly all queries lose nothing, one in 600 most."""
    return np.where(rng.random(shape) < 1 / 600, 0.4, 1.0)


def tenths(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Recall@10 as it often is: a hit lost now and then."""
    return rng.binomial(10, 0.97, shape) / 10


def bimodal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A small group of queries that a plan finds little of."""
    lucky = rng.binomial(10, 0.99, shape) / 10
    return np.where(rng.random(shape) < 0.04, rng.binomial(10, 0.3, shape) / 10, lucky)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Any number, most near 1."""
    return rng.beta(8.0, 0.3, shape)


MEANS = {rare: 1 - 0.6 / 600, tenths: 0.97, bimodal: 0.96 * 0.99 + 0.04 * 0.3, skewed: 8 / 8.3}


@pytest.mark.parametrize(
    ("draw", "num_queries"),
    [(rare, 60), (rare, 500), (tenths, 60), (tenths, 500), (bimodal, 60), (bimodal, 500),
     (skewed, 60)],
)  # fmt: skip
def test_the_bound_is_above_the_true_mean_in_five_percent_at_most(draw, num_queries):
    """On samples of hard distributions it fails no more often than it says."""
    recalls_TQ = draw(np.random.default_rng(1), (NUM_TRIALS, num_queries))
    misses = np.mean([lower_bound(recalls_Q, CONFIDENCE) > MEANS[draw] for recalls_Q in recalls_TQ])
    assert misses <= MOST_MISSES


def test_a_normal_approximation_would_promise_too_much():
    """The case that the bound is for: where losses are rare, the textbook's bound often fails."""
    recalls_TQ = rare(np.random.default_rng(1), (NUM_TRIALS, 500))
    normal_T = recalls_TQ.mean(axis=1) - 1.645 * recalls_TQ.std(axis=1) / math.sqrt(500)
    assert np.mean(normal_T > MEANS[rare]) > 0.35


def test_the_bound_is_worth_something():
    """With more queries, and with less confidence, it comes close to the mean from below."""
    recalls_Q = tenths(np.random.default_rng(2), (1, 2000))[0]
    bounds = [lower_bound(recalls_Q[:count]) for count in (50, 200, 2000)]
    assert bounds == sorted(bounds)
    assert recalls_Q.mean() - 0.004 < bounds[-1] < recalls_Q.mean()
    assert lower_bound(recalls_Q[:200], 0.99) < bounds[1] < lower_bound(recalls_Q[:200], 0.6)
    assert lower_bound([]) == 0.0
    assert upper_bound([]) == 1.0


def test_the_same_recalls_have_the_same_bound():
    """In any order, as a list or an array: chance has no part in a promise."""
    recalls_Q = tenths(np.random.default_rng(3), (1, 200))[0]
    bound = lower_bound(recalls_Q)
    assert lower_bound(recalls_Q.tolist()) == bound
    assert lower_bound(np.random.default_rng(4).permutation(recalls_Q)) == bound


def test_better_recalls_have_no_worse_bound():
    """Raising the recall of some queries never costs more than the draws' noise."""
    rng = np.random.default_rng(5)
    for num_queries in (30, 300):
        recalls_Q = bimodal(rng, (1, num_queries))[0]
        bounds = [lower_bound(recalls_Q)]
        for _ in range(10):
            some = rng.integers(num_queries, size=num_queries // 10)
            recalls_Q[some] = np.minimum(1.0, recalls_Q[some] + 0.2)
            bounds.append(lower_bound(recalls_Q))
        assert all(after > before - 0.003 for before, after in itertools.pairwise(bounds))
        assert bounds[-1] > bounds[0] + 0.01


def test_the_upper_bound_mirrors_the_lower_one():
    """What is sure of the recall that is kept is sure of the recall that is lost."""
    for draw in MEANS:
        recalls_Q = draw(np.random.default_rng(6), (1, 150))[0]
        # The draws are the same, but belong to other values: half a percent, as above.
        mirrored = 1.0 - lower_bound(1.0 - recalls_Q)
        assert upper_bound(recalls_Q) == pytest.approx(mirrored, abs=0.005)
        assert lower_bound(recalls_Q) < recalls_Q.mean() <= upper_bound(recalls_Q)


def queries_until_it_rings(alarm: Alarm, recalls_Q: np.ndarray) -> int:
    for count, recall in enumerate(recalls_Q.tolist(), start=1):
        if alarm.observe(recall):
            return count
    return len(recalls_Q)


@pytest.mark.parametrize(("mean", "within"), [(0.9, 150), (0.8, 50), (0.5, 20)])
def test_a_broken_promise_rings_soon(mean, within):
    """The further the mean is below the target the sooner, after a good time or without one."""
    rng = np.random.default_rng(7)
    for num_good in (0, 5000):
        waits = []
        for _ in range(12):
            alarm = Alarm(0.95)
            for recall in rng.binomial(10, 0.99, num_good) / 10:
                assert not alarm.observe(recall)
            waits.append(queries_until_it_rings(alarm, rng.binomial(10, mean, 5000) / 10))
            assert alarm.rings
        assert np.median(waits) < within


@pytest.mark.parametrize("worst", [0.0, 0.5, 0.9])
def test_a_promise_that_is_kept_seldom_rings(worst):
    """With the mean exactly at the target, false alarms are as far apart as was asked, in the mean.

    Whether rare queries lose all or many lose little.
    """
    run_length, target = 300.0, 0.95
    rng = np.random.default_rng(8)
    lost = rng.random((60, 3000)) < (1 - target) / (1 - worst)
    waits = [
        queries_until_it_rings(Alarm(target, run_length), recalls_Q)
        for recalls_Q in np.where(lost, worst, 1.0)
    ]
    assert np.mean(waits) >= run_length


def test_an_alarm_goes_on_ringing():
    """Good queries after it do not take it back."""
    alarm = Alarm(0.9)
    queries_until_it_rings(alarm, np.zeros(1000))
    assert all(alarm.observe(1.0) for _ in range(1000))
