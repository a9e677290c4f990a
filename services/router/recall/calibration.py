"""What was measured of a collection, and which plan it promises for a recall target.

Plans are kept from the safest to the boldest, each with a lower bound of its recall. Those that
are the cheapest of their recall, in time or in memory, are a sequence each, and a promise is the
least bound of a plan and of all safer ones of its sequence: tested in that order, up to the first
that fails, no plan is promised only because many were tried (fixed sequence testing). So the
answer for any target is there, without a new measurement.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from services.router.plan import Plan, Stage

Source = Literal["given", "recent", "documents"]
Objective = Literal["latency", "memory"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageRow(_Frozen):
    """A stage of a measured plan; see `plan.Stage`."""

    dim: int
    candidates: int = 0
    exact: bool = False
    ef: int = 0
    ignore_quantization: bool = False
    oversampling: float | None = None
    is_nested: bool = False


class Recall(_Frozen):
    """Recall of a plan over some queries that took no part in choosing it."""

    mean: float
    bound: float
    """Lower bound of the true mean."""
    promised: dict[Objective, float]
    """Least bound of this plan and of all safer ones, in the sequences that it is part of."""


class PlanRow(_Frozen):
    """One plan, as measured on this collection and this engine."""

    stages: tuple[StageRow, ...]
    seconds_p50: float
    """In the engine."""
    seconds_p99: float
    memory_bytes: int
    """Per point: what its stages read, as far as it has to be in memory."""
    recalls: dict[str, Recall]
    """By slice; "" for all queries."""

    def plan(self, limit: int) -> Plan:
        """Return the plan for so many hits."""
        *first, last = (Stage(**vars(stage)) for stage in self.stages)
        return Plan((*first, replace(last, candidates=limit)))


class Calibration(_Frozen):
    """A measurement of a collection, stored with it."""

    version: Literal[1] = 1
    created_at: int
    """Unix time, seconds."""
    space_id: str
    num_points: int
    shards: int = 1
    """That the points lay in. Shortlists hold in any number of them, as each is cut as a whole; so
    do walks through graphs in more of them, each with a graph of its own, but not in fewer."""
    limit: int
    """Hits of a search; promises hold up to so many."""
    confidence: float
    source: Source
    """Whose vectors asked: queries that the caller gave, recent searches, or documents."""
    num_queries: int
    """That bounds were measured on; as many others chose the plans."""
    slice_queries: dict[str, int]
    """How many of them were of each slice."""
    target: float
    """Of searches that name none."""
    objective: Objective
    plans: tuple[PlanRow, ...]
    """From the safest, exact search, to the boldest."""
    curves: dict[str, tuple[tuple[int, float], ...]]
    """{size's label: (shortlist, recall)}: what cutting alone loses, without graph and codes."""

    def choose(
        self,
        target: float,
        slice_: str = "",
        max_seconds: float | None = None,
        max_bytes: int | None = None,
        objective: Objective | None = None,
    ) -> "Choice":
        """Choose the cheapest plan that meets a target within the budgets.

        If none does, the one within the budgets that promises most; if none is within them, the
        cheapest.
        """
        objective = objective or self.objective
        basis = slice_ if self._says_enough(slice_, target) else ""
        affordable = [
            (row, row.recalls[basis].promised)
            for row in self.plans
            if (max_seconds is None or row.seconds_p50 <= max_seconds)
            and (max_bytes is None or row.memory_bytes <= max_bytes)
        ]
        held = [row for row, promised in affordable if promised.get(objective, 0.0) >= target]
        if held:
            row = min(held, key=lambda row: _cost(row, objective))
            promise = row.recalls[basis].promised[objective]
        elif affordable:
            row, promise = max(
                ((row, max(promised.values())) for row, promised in affordable),
                key=lambda one: one[1],
            )
        else:
            by: Objective = "latency" if max_seconds is not None else "memory"
            row = min(self.plans, key=lambda row: _cost(row, by))
            promise = max(row.recalls[basis].promised.values())
        return Choice(
            row=row,
            promised=promise,
            slice=basis,
            is_met=bool(affordable) and promise >= target,
            is_affordable=bool(affordable),
        )

    def slice_chosen(self) -> dict[str, int]:
        """Return {slice: place of its plan}, of those with enough queries of their own."""
        choices = {slice_: self.choose(self.target, slice_) for slice_ in self.slice_queries}
        return {
            slice_: self.plans.index(choice.row)
            for slice_, choice in choices.items()
            if choice.slice == slice_
        }

    def _says_enough(self, slice_: str, target: float) -> bool:
        """Tell whether a slice had queries enough to hold any plan but the exact one to a target.

        One that had not takes the plan of all queries.
        """
        count = self.slice_queries.get(slice_, 0)
        # What `lower_bound` gives for so many recalls of 1, without its draws: every search asks.
        return count > 0 and (1.0 - self.confidence) ** (1.0 / count) >= target


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen plan."""

    row: PlanRow
    promised: float
    """Recall that it is sure to keep, at the calibration's confidence."""
    slice: str
    """Whose queries say so; "": all."""
    is_met: bool
    """Whether that is what was asked for."""
    is_affordable: bool
    """Whether it is within the budgets."""


def _cost(row: PlanRow, objective: Objective) -> tuple[float, float]:
    costs = (row.seconds_p50, float(row.memory_bytes))
    return costs if objective == "latency" else costs[::-1]


def promises(bounds: list[float]) -> Iterator[float]:
    """Give the running least of bounds, from the safest plan on."""
    least = 1.0
    for bound in bounds:
        least = min(least, bound)
        yield least
