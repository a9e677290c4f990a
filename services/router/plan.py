"""Plans of a search: a shortlist on a short vector, reranked on longer ones.

A plan is stages of ascending size. The first looks at the whole collection, each next one only
at what it was handed. Knows sizes, not engines or wires.

Source: Kusupati et al. 2022, arXiv:2205.13147, section 4.3 ("adaptive retrieval").
Letters: K points handed on, N hits wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from services.router.sizes import Key, Size, label
from services.shared.errors import InvalidRequest

MAX_EF = 10_000
MAX_OVERSAMPLING = 100.0
# Shortlist of the default plan: ten times the hits, at least 100. Exact reranking keeps every
# true hit that it is handed, so K alone decides what a short vector can lose.
_SHORTLIST_FACTOR = 10
_MIN_SHORTLIST = 100
# Cosines of equal vectors differ by this much between two ways of summing float32.
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a search."""

    dim: int
    candidates: int = 0
    """Points handed on; in the last stage the limit, or 0 before the plan is resolved."""
    exact: bool = False
    """Compare with every point; first stage only."""
    ef: int = 0
    """Width of the walk through the graph; 0: the engine's default."""
    ignore_quantization: bool = False
    """Score with the original numbers even if the size is quantised."""
    oversampling: float | None = None
    """At a quantised size: the original numbers score this many times `candidates` anew, found by
    their codes. 0: the codes have the last word. None: 1 for codes of one or two bits, else 0."""
    is_nested: bool = False
    """Whether it is the nested size of that width."""

    @property
    def key(self) -> Key:
        """Which size of its collection it looks at."""
        return self.dim, self.is_nested


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages of a search, the first over the whole collection."""

    stages: tuple[Stage, ...]

    def beginning(self, num_stages: int) -> "Plan":
        """Return the plan of the first stages alone."""
        return Plan(self.stages[:num_stages])

    @property
    def limit(self) -> int:
        """Points that come out of the last stage."""
        return self.stages[-1].candidates


def default_plan(sizes: Sequence[Size], limit: int, max_candidates: int) -> Plan:
    """Shortlist on the shortest size with a graph, rerank on the full one."""
    full = sizes[-1]
    short = next((size for size in sizes if size.hnsw_m), full)
    if short.dim == full.dim:
        return Plan((Stage(full.dim, limit),))
    shortlist = min(max(_MIN_SHORTLIST, _SHORTLIST_FACTOR * limit), max_candidates)
    first = Stage(short.dim, max(shortlist, limit), is_nested=short.is_nested)
    return Plan((first, rerank(full, limit)))


def rerank(full: Size, limit: int) -> Stage:
    """Return the last stage after a shortlist: it has the last word, so it reads no codes."""
    return Stage(full.dim, limit, ignore_quantization=full.quantization != "none")


def exact_plan(sizes: Sequence[Size], limit: int) -> Plan:
    """Compare with every point at full size: the truth that recall is measured against."""
    return Plan((Stage(sizes[-1].dim, limit, exact=True),))


def resolve_plan(plan: Plan, sizes: Sequence[Size], limit: int, max_candidates: int) -> Plan:
    """Check a user's plan against a collection, and write the limit into its last stage.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    stages = plan.stages
    by_key = {size.key: size for size in sizes}
    if not 1 <= len(stages) <= len(sizes):
        raise _refuse(f"it needs 1 to {len(sizes)} stages, one a size at most, got {len(stages)}")
    for stage in stages:
        if stage.key not in by_key:
            allowed = ", ".join(map(label, by_key))
            raise _refuse(
                f"dim must be a size of this collection ({allowed}), got {label(stage.key)}"
            )
        if stage.ef > MAX_EF:
            raise _refuse(f"ef must be at most {MAX_EF}, got {stage.ef}")
    for stage in stages:
        _check_oversampling(stage, by_key[stage.key])
    if any(later.dim <= earlier.dim for earlier, later in pairwise(stages)):
        raise _refuse("the dims of its stages must ascend")
    if any(stage.exact or stage.ef for stage in stages[1:]):
        raise _refuse(
            "exact and ef belong to the first stage; later ones score all they are handed"
        )
    if stages[0].exact and stages[0].ef:
        raise _refuse("exact compares with every point, so ef must be 0 beside it")
    _check_candidates(stages, limit, max_candidates)
    return Plan((*stages[:-1], replace(stages[-1], candidates=limit)))


def _check_oversampling(stage: Stage, size: Size) -> None:
    if not stage.oversampling:
        return
    if not reads_codes(stage, size):
        raise _refuse(
            f"oversampling belongs to a stage that reads codes; leave it unset at {stage.dim}"
        )
    if not 1 <= stage.oversampling <= MAX_OVERSAMPLING:
        raise _refuse(
            f"oversampling must be 0, or 1 to {MAX_OVERSAMPLING:g}, got {stage.oversampling:g}"
        )


def reads_codes(stage: Stage, size: Size) -> bool:
    """Say whether a stage finds its candidates by codes."""
    return size.quantization != "none" and not (stage.ignore_quantization or stage.exact)


def oversampling(stage: Stage, size: Size) -> float:
    """Return how many times its candidates a stage scores with the original numbers; 0: none."""
    if not reads_codes(stage, size):
        return 0.0
    if stage.oversampling is None:
        return 1.0 if size.is_coarse else 0.0
    return stage.oversampling


def scores_are_cosines(plan: Plan, full: Size) -> bool:
    """Say whether a plan's hits carry cosines at full size, and not what codes make of them."""
    last = plan.stages[-1]
    codes_decide = reads_codes(last, full) and not oversampling(last, full)
    return last.dim == full.dim and not codes_decide


def for_fewer_hits(plan: Plan, full: Size, limit: int) -> Plan:
    """Return a plan for fewer hits whose last stage scores as many points as it did.

    Where codes find them, fewer hits alone would mean fewer points scored anew: measured on codes
    of two bits, 40 points keep 0.99 of the nearest ten, and four only 0.92 of the nearest one.
    """
    last = plan.stages[-1]
    times = last.oversampling
    if reads_codes(last, full) and limit < plan.limit:
        times = max(1.0, oversampling(last, full)) * plan.limit / limit
    return Plan((*plan.stages[:-1], replace(last, candidates=limit, oversampling=times)))


def _check_candidates(stages: tuple[Stage, ...], limit: int, max_candidates: int) -> None:
    if stages[-1].candidates not in (0, limit):
        raise _refuse(
            f"candidates of the last stage is the limit ({limit}); leave it 0, "
            f"got {stages[-1].candidates}"
        )
    handed_on = max_candidates
    for stage in stages[:-1]:
        if not limit <= stage.candidates <= handed_on:
            raise _refuse(
                f"candidates of the stage at {stage.dim} must be between the limit ({limit}) and "
                f"{handed_on}, got {stage.candidates}"
            )
        handed_on = stage.candidates


def _refuse(reason: str) -> InvalidRequest:
    return InvalidRequest(f"plan: {reason}", "plan")


def recall(
    found: Sequence[tuple[str, float]],
    exact: Sequence[tuple[str, float]],
    is_cosine: bool = True,
) -> float:
    """Return the share of the exact hits that a plan found, 0..1; 1 where there are none.

    Args:
        found: (id, score) of the plan's hits.
        exact: (id, score) of the exact ones, as many as were asked for, best first.
        is_cosine: the plan's scores are cosines at full size too (`scores_are_cosines`). Then a hit
            that ties with the last exact one counts as found: which of two equal documents comes
            first is chance.

    >>> recall([("a", 0.9), ("c", 0.5)], [("a", 0.9), ("b", 0.8)])
    0.5
    """
    if not exact:
        return 1.0
    exact_ids = {id_ for id_, _ in exact}
    worst = exact[-1][1] - _TIE if is_cosine else float("inf")
    kept = sum(id_ in exact_ids or score >= worst for id_, score in found)
    return min(1.0, kept / len(exact))
