"""Ways to keep and search a collection: what a point takes, and how long a search.

Memory is the router's own cost model (`sizes.memory`, `trials.bytes_needed`); times are measured
ones, carried over to the user's numbers by rules that `report.py` prints.
"""

import math
from dataclasses import dataclass

from services.cli.capacity import figures
from services.cli.capacity.figures import Timing
from services.cli.capacity.need import Need
from services.router.plan import Plan, Stage, rerank
from services.router.recall.trials import bytes_needed
from services.router.sizes import DEFAULT_M, Quantization, Size, memory

_HITS = 10
# Of a normal distribution: so many standard deviations of the logarithm lie between p50 and p99.
_P99_DEVIATIONS = 2.3263


@dataclass(frozen=True, slots=True)
class Layout:
    """What a collection keeps, and the plan that runs on it."""

    name: str
    sizes: tuple[Size, ...]
    plan: Plan
    timing: Timing
    source: str
    """Where the timing is from."""
    is_shortlist: bool
    """Whether a short size makes a shortlist, which grows with the collection."""

    def memory_bytes(self, num_points: int) -> int:
        """Return the bytes per point that a search needs in memory."""
        return bytes_needed(self.plan, self.sizes, num_points)

    def disk_bytes(self, num_points: int, payload_bytes: int) -> int:
        """Return the bytes per point on the disk: originals of all sizes, codes, links, payload."""
        costs = memory(self.sizes, num_points)
        codes = sum(
            cost.vector_bytes
            for size, cost in zip(self.sizes, costs, strict=True)
            if size.quantization != "none"
        )
        links = sum(cost.graph_bytes for cost in costs)
        return sum(4 * size.dim for size in self.sizes) + codes + links + payload_bytes

    def scored(self, need: Need) -> int:
        """Return how many points' full vectors a search reads, of all shards together."""
        return math.ceil(self.timing.scored * self._shortlist_growth(need))

    def search_ms(self, need: Need) -> tuple[float, float]:
        """Return p50 and p99 of a search of one shard.

        As if the shard held all points, which is a little too much: a walk through a graph takes as
        long as the logarithm of its points.
        """
        width = 1.0 if self.source == YOURS else need.dims / figures.DIM
        walk = max(1.0, math.log(max(2, need.vectors)) / math.log(self.timing.points))
        times = width * walk * self._shortlist_growth(need)
        return self.timing.p50_ms * times, self.timing.p99_ms * times

    def mean_ms(self, need: Need) -> float:
        """Return the mean of a log-normal distribution with these two quantiles."""
        p50_ms, p99_ms = self.search_ms(need)
        return p50_ms * math.exp(spread(p50_ms, p99_ms) ** 2 / 2)

    def _shortlist_growth(self, need: Need) -> float:
        """Return how much longer a shortlist is than where it was measured."""
        if not self.is_shortlist or need.vectors <= self.timing.points:
            return 1.0
        return float((need.vectors / self.timing.points) ** growth(need.measured_target))


YOURS = "yours"


def spread(p50: float, p99: float) -> float:
    """Return the standard deviation of the logarithm of a log-normal distribution."""
    return math.log(p99 / p50) / _P99_DEVIATIONS


def growth(target: float) -> float:
    """Return the exponent by which a shortlist grows with a collection: points ** exponent."""
    longer = figures.NESTED[target].scored / figures.NESTED_SHORTLISTS[target]
    return math.log(longer) / math.log(figures.POINTS_NESTED / figures.POINTS_SHORTLISTS)


def layouts(need: Need) -> list[Layout]:
    """Return the ways there are; the first is the one that all others are compared with."""
    target, dims = need.measured_target, need.dims
    fastest = figures.FASTEST_SINGLE[target]
    source = "bench/results/router.txt"
    found = [
        _single("full float32", dims, "none", fastest, source),
        _single("full int8", dims, "int8", fastest, source),
        _single("full turbo2", dims, "turbo2", figures.TURBO2_SINGLE[target], source),
    ]
    short = max(8, dims // 3 // 8 * 8)
    if short < dims:
        found.append(
            _staged(f"{short} nested turbo4 > full", dims, short, "turbo4",
                    figures.NESTED[target], "bench/results/million.txt")
        )  # fmt: skip
    if own := need.own_plan:
        timing = Timing(own.p50_ms, own.p99_ms, own.points, own.scored)
        name = f"yours: {own.dim} {own.quantization}"
        if own.dim == dims:
            found.append(_single(name, dims, own.quantization, timing, YOURS))
        else:
            found.append(_staged(f"{name} > full", dims, own.dim, own.quantization, timing, YOURS))
    return found


def _single(name: str, full: int, codes: Quantization, timing: Timing, source: str) -> Layout:
    size = Size(full, codes, DEFAULT_M, "cached" if codes == "none" else "cold")
    return Layout(name, (size,), Plan((Stage(full, _HITS),)), timing, source, is_shortlist=False)


def _staged(
    name: str, full: int, short: int, codes: Quantization, timing: Timing, source: str
) -> Layout:
    first = Size(short, codes, DEFAULT_M, "cached" if codes == "none" else "cold")
    last = Size(full, "none", 0, "cold")
    plan = Plan((Stage(short, max(_HITS, timing.scored)), rerank(last, _HITS)))
    return Layout(name, (first, last), plan, timing, source, is_shortlist=True)
