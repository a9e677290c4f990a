"""Whose queries got better or worse: scores before and after, per slice, the losers first.

Shapes: Q queries, or scored pairs; K sizes; S scores, as `evaluate.py`.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.shared.card import AnyScores
from services.trainer.results.evaluate import Scores, means

_RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)
TELLING = 10
"""Queries of a slice: the mean of fewer is chance, and no interval drawn from them says so."""


class Change(BaseModel):
    """How far the score that decides moved at one size: the mean over the queries, in pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int
    mean: float
    """After minus before; below 0 it got worse."""
    low: float
    """With `high`, where the mean lies in 95 of 100 draws of as many such queries (bootstrap)."""
    high: float


class SliceQuality(BaseModel):
    """One slice; the name "" stands for the queries that have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_queries: int = Field(ge=1)
    before: tuple[AnyScores, ...]
    after: tuple[AnyScores, ...]
    changes: tuple[Change, ...]

    @property
    def worst(self) -> Change:
        """The size that lost most, or gained least."""
        return min(self.changes, key=lambda change: change.mean)

    @property
    def metric(self) -> str:
        """What people call the score that moved."""
        return self.after[0].metric


def compare_slices(
    before_QKS: Scores, after_QKS: Scores, slices_Q: Sequence[str], dims: Sequence[int]
) -> tuple[SliceQuality, ...]:
    """Compare each slice's queries before and after, the slices that lost most first.

    Slices of fewer than `TELLING` queries come behind all others.

    Args:
        before_QKS: as `evaluate.measure`.
        after_QKS: of the same queries.
        slices_Q: the slice of each; empty: all are of the slice "".
        dims: the sizes.
    """
    is_judged_Q = ~np.isnan(before_QKS[:, 0, 0])
    names_Q = np.array(slices_Q or [""] * len(before_QKS), dtype=object)
    found = []
    for name in dict.fromkeys(names_Q[is_judged_Q]):
        rows = np.flatnonzero(is_judged_Q & (names_Q == name))
        found.append(compare(name, before_QKS[rows], after_QKS[rows], dims))
    return tuple(
        sorted(found, key=lambda one: (one.num_queries < TELLING, one.worst.mean, one.name))
    )


def compare(name: str, before_QKS: Scores, after_QKS: Scores, dims: Sequence[int]) -> SliceQuality:
    """Compare some queries before and after; each of them has a relevant document."""
    moved_QK = after_QKS[:, :, 0] - before_QKS[:, :, 0]
    draws_RQ = np.random.default_rng(0).integers(len(moved_QK), size=(_RESAMPLES, len(moved_QK)))
    # One size at a time: all at once would take a gigabyte for some ten thousand queries.
    changes = []
    for place, dim in enumerate(dims):
        moved_Q = moved_QK[:, place]
        low, high = np.percentile(moved_Q[draws_RQ].mean(axis=1), _INTERVAL)
        mean = float(moved_Q.mean())
        changes.append(Change(dim=dim, mean=mean, low=float(low), high=float(high)))
    return SliceQuality(
        name=name,
        num_queries=len(moved_QK),
        before=means(before_QKS, dims),
        after=means(after_QKS, dims),
        changes=tuple(changes),
    )
