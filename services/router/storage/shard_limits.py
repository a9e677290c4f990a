"""How many points each shard must hand on so that together they surely hold the best of all.

A server hashes points to shards, so how many of the best K of all lie in one shard is Binomial(K,
1/S), which a Poisson of the same mean lies above. Each shard is asked for so many that, jointly
over the shards, none of the best K is left out with a probability of 0.999, and a fifth more is
assumed to lie in each, as shards are not quite equal.

Source: the same rule of Qdrant's for root limits, `modify_shard_query_for_undersampling_limits` in
lib/collection/src/collection/query.rs; it leaves prefetches as they are.
Letters: K points handed on, S shards.
"""

import math
from functools import lru_cache

_SURE = 0.999
_MORE = 1.2
# Of a Poisson so many standard deviations below its mean there is nothing that a float could tell.
_DEVIATIONS = 12.0


@lru_cache(maxsize=1024)
def per_shard(candidates: int, shards: int, least: int) -> int:
    """Return how many points each shard hands on.

    Args:
        candidates: K, of all shards together.
        shards: S.
        least: what every shard must hand on, as it may hold all hits; at most `candidates`.

    Returns:
        `least` to `candidates`; `candidates` on one shard.
    """
    if shards <= 1:
        return candidates
    quantile = poisson_quantile(_SURE ** (1.0 / shards), _MORE * candidates / shards)
    return min(candidates, max(least, quantile))


def poisson_quantile(probability: float, mean: float) -> int:
    """Return the least k for which a Poisson variable is at most k with that probability.

    Args:
        probability: above 0 and below 1.
        mean: above 0.

    >>> poisson_quantile(0.5, 1.0), poisson_quantile(0.999, 120.0)
    (1, 155)
    """
    k = max(0, math.floor(mean - _DEVIATIONS * math.sqrt(mean)))
    density = math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))
    total = density
    while total < probability:
        k += 1
        density *= mean / k
        total += density
        if not density:  # rounding keeps the sum below
            break
    return k
