"""How many points each of several shards hands on: what it may be, and how sure it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from services.router.storage.shard_limits import per_shard, poisson_quantile

CANDIDATES = st.integers(1, 20_000)
SHARDS = st.integers(1, 64)
PROPERTIES = settings(max_examples=200, database=None, derandomize=True, deadline=None)


@PROPERTIES
@given(CANDIDATES, SHARDS, st.floats(0, 1))
def test_a_limit_is_within_its_bounds(candidates, shards, share):
    """No shard hands on more than all are asked for, nor fewer than there may be hits in it, and
    all together hand on what is asked for."""
    least = max(1, round(share * candidates))
    limit = per_shard(candidates, shards, least)
    assert least <= limit <= candidates
    assert shards * limit >= candidates
    if shards == 1:
        assert limit == candidates


@PROPERTIES
@given(CANDIDATES, SHARDS)
def test_more_candidates_never_mean_a_lower_limit(candidates, shards):
    """A longer shortlist holds all that a shorter one holds."""
    assert per_shard(candidates + 1, shards, 1) >= per_shard(candidates, shards, 1)


@PROPERTIES
@given(st.floats(1e-3, 20_000), st.floats(0.5, 0.999999))
def test_the_quantile_is_a_poisson_s(mean, probability):
    """As another implementation has it, also where the density at 0 is no longer a float."""
    expected = poisson.ppf(probability, mean)
    # A sum of thousands of densities may end on the other side of the probability.
    is_near = abs(poisson.cdf(expected - 1, mean) - probability) < 1e-9
    assert abs(poisson_quantile(probability, mean) - expected) <= is_near


@pytest.mark.parametrize(
    ("candidates", "shards", "limit"), [(1000, 10, 163), (200, 12, 39), (2000, 6, 474)]
)
def test_some_limits_are_these(candidates, shards, limit):
    """Far below what every shard would be asked for, and above an even part."""
    assert per_shard(candidates, shards, 10) == limit


@pytest.mark.parametrize("shards", [2, 3, 6, 16, 64])
@pytest.mark.parametrize("candidates", [10, 100, 1000, 10_000])
def test_the_best_of_all_are_kept_with_the_stated_probability(candidates, shards):
    """Over random shardings no shard holds more of the best K than it hands on, 0.999 of the time,
    even where each is as full as is assumed; what the limit is for, it does."""
    trials = 20_000
    rng = np.random.default_rng(candidates * shards)
    limit = per_shard(candidates, shards, 1)
    even = rng.multinomial(candidates, [1 / shards] * shards, size=trials)
    assert (even.max(axis=1) <= limit).mean() >= 0.999
    if limit == candidates:
        return
    # Independent shards, each with a fifth more than its even part: what the quantile is of.
    full = rng.poisson(1.2 * candidates / shards, size=(trials, shards))
    kept = (full.max(axis=1) <= limit).mean()
    error = 4 * np.sqrt(0.001 * 0.999 / trials)
    assert kept >= 0.999 - error
    # And it is the least such limit: with one point less it would not hold.
    assert poisson.cdf(limit - 1, 1.2 * candidates / shards) ** shards < 0.999
