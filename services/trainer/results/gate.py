"""The gate: a model goes live only if nobody it was asked about loses more than was allowed.

In: what each held-out query scored with the model that is live and with the new one. Out: whether
it may pass, and if not, every reason. It fails closed: a slice or a size that cannot be judged is
a reason too.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.trainer.results.evaluate import Scores, kind_of
from services.trainer.results.slices import SliceQuality, compare

MIN_QUERIES = 30
"""Fewer held-out queries, or scored pairs, say nothing about a model."""
ALL = ""
"""Stands for all queries together."""


class Rule(BaseModel):
    """What a new model must keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_drop: float = Field(default=0.01, ge=0, le=1)
    """Most that the score that decides, nDCG@10 or Spearman, may fall on the mean at any served
    size, of all queries and of each slice."""
    dims: tuple[int, ...] = ()
    """Sizes that are served; empty: all that were measured."""
    slices: tuple[str, ...] = ()
    """Slices that must not lose either, beside all queries together."""
    min_queries: int = Field(default=MIN_QUERIES, ge=1)
    """Fewer held-out queries of a slice say nothing about it; or scored pairs."""


class Verdict(BaseModel):
    """What the gate says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reasons: tuple[str, ...]
    """Why it may not pass, one sentence each; empty: it may."""
    judged: tuple[SliceQuality, ...]
    """All queries together, then each slice that was asked about."""

    @property
    def passes(self) -> bool:
        return not self.reasons


def caution(num_queries: int, counted: str) -> str:
    """Say what so few held-out queries, or scored pairs, are worth; empty: they are enough."""
    if num_queries >= MIN_QUERIES:
        return ""
    return (
        f"too few held-out {counted} ({num_queries}): with fewer than {MIN_QUERIES} any change "
        "may be chance, and the gate refuses to judge by them; give more examples, or a "
        "validation_file"
    )


def judge(
    before_QKS: Scores,
    after_QKS: Scores,
    slices_Q: Sequence[str],
    dims: Sequence[int],
    rule: Rule,
) -> Verdict:
    """Judge a new model by the queries of both.

    Args:
        before_QKS: of the live model, as `evaluate.measure`.
        after_QKS: of the new one, of the same queries and the same kind.
        slices_Q: the slice of each query; empty: nobody knows.
        dims: the sizes, ascending.
        rule: see there.
    """
    reasons = [
        f"size {dim} was not measured; measured were {', '.join(map(str, dims))}"
        for dim in rule.dims
        if dim not in dims
    ]
    served = [dim for dim in dims if not rule.dims or dim in rule.dims]
    is_judged_Q = ~np.isnan(before_QKS[:, 0, 0])
    names_Q = np.array(slices_Q or [""] * len(before_QKS), dtype=object)
    counted = kind_of(after_QKS).COUNTED
    judged = []
    for name in (ALL, *rule.slices):
        rows = np.flatnonzero(is_judged_Q & ((names_Q == name) | (name == ALL)))
        if len(rows) < rule.min_queries:
            reasons.append(_too_few(name, len(rows), rule.min_queries, counted))
            continue
        quality = compare(name, before_QKS[rows], after_QKS[rows], dims)
        judged.append(quality)
        reasons += _falls(quality, served, rule.max_drop)
    return Verdict(reasons=tuple(reasons), judged=tuple(judged))


def _falls(quality: SliceQuality, served: Sequence[int], max_drop: float) -> Iterator[str]:
    for before, change in zip(quality.before, quality.changes, strict=True):
        counted = before.COUNTED
        if change.dim in served and change.mean < -max_drop:
            yield (
                f"{_named(quality.name, counted)}: {quality.metric} at {change.dim} falls by "
                f"{-change.mean:.3f}, from {before.score:.3f} to {before.score + change.mean:.3f} "
                f"({quality.num_queries} {counted}, 95% between {change.low:+.3f} and "
                f"{change.high:+.3f}); at most {max_drop:g} was allowed"
            )


def _too_few(name: str, count: int, at_least: int, counted: str) -> str:
    return (
        f"{_named(name, counted)}: {count} held-out {counted} are too few to judge by; give "
        f"at least {at_least}, or lower min_queries"
    )


def _named(name: str, counted: str) -> str:
    return f"slice {name!r}" if name else f"all {counted}"
