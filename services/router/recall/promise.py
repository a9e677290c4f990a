"""Which plan a search runs, and what recall it is promised.

A search names a plan, or states a recall target, or says nothing and gets the collection's own.
Where nothing was measured a target is still kept: by exact search. A promise that cannot be kept
within the caller's budgets is said to be broken, never passed over. What was measured of a whole
collection holds for none of its tenants and is not theirs to know: to them nothing was measured.
"""

from dataclasses import dataclass
from typing import Any, Literal

from services.router.plan import Plan, default_plan, exact_plan, for_fewer_hits, resolve_plan
from services.router.recall.calibration import Calibration, Choice
from services.router.storage.store import Collection
from services.shared.errors import InvalidRequest, WrongState

Basis = Literal["measured", "exact"]

MAX_SLICE_CHARS = 64
"""Longest name of a slice: it becomes a label of metrics."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a search says of its plan."""

    limit: int
    plan: Plan | None = None
    recall_target: float | None = None
    slice: str = ""
    max_seconds: float | None = None
    """Median time in the engine."""
    max_bytes: int | None = None
    """Bytes in memory per point."""
    is_filtered: bool = False
    is_tenants: bool = False


@dataclass(frozen=True, slots=True)
class Promise:
    """The recall that a search can count on, in the mean over searches like it."""

    target: float
    recall: float
    """Lower bound, at the calibration's confidence; 1 for exact search."""
    is_met: bool
    basis: Basis
    slice: str = ""
    """Whose queries were measured; "": all."""
    note: str = ""
    """What to do, where something is missing."""


class Promises:
    """Turns wishes into plans.

    Args:
        max_candidates: longest shortlist of a plan that a caller gives.
    """

    def __init__(self, max_candidates: int) -> None:
        self._max_candidates = max_candidates
        # A calibration is read anew only when there is another one.
        self._read: dict[str, tuple[dict[str, Any], Calibration]] = {}

    def plan(self, wish: Wish, collection: Collection) -> tuple[Plan, Promise | None]:
        """Return the plan, and the promise if there is one.

        Raises:
            InvalidRequest: the wish is out of bounds.
            WrongState: a budget was given, and nothing is known of the costs.
        """
        _check(wish)
        if wish.plan is not None:
            plan = resolve_plan(wish.plan, collection.sizes, wish.limit, self._max_candidates)
            return plan, None
        calibration = None if wish.is_tenants else self.calibration(collection)
        if calibration is None or wish.limit > calibration.limit:
            return self._unmeasured(wish, collection, calibration)
        target = wish.recall_target or calibration.target
        choice = calibration.choose(target, wish.slice, wish.max_seconds, wish.max_bytes)
        note = _note(choice, calibration, target, wish.is_filtered, collection.spread.shards)
        basis: Basis = "exact" if choice.row is calibration.plans[0] else "measured"
        promise = Promise(target, choice.promised, choice.is_met, basis, choice.slice, note)
        measured = choice.row.plan(calibration.limit)
        return for_fewer_hits(measured, collection.sizes[-1], wish.limit), promise

    def calibration(self, collection: Collection) -> Calibration | None:
        """Return what was measured of a collection, if that was in its present space."""
        stored = collection.calibration
        if stored is None or stored["space_id"] != collection.space_id:
            return None
        # Compared whole: two may have been made in one second.
        known = self._read.get(collection.name)
        if known is None or known[0] != stored:
            known = self._read[collection.name] = (stored, Calibration.model_validate(stored))
        return known[1]

    def _unmeasured(
        self, wish: Wish, collection: Collection, calibration: Calibration | None
    ) -> tuple[Plan, Promise | None]:
        if wish.is_tenants:
            missing = "a tenant's points are not measured by themselves"
        elif calibration is None:
            missing = f"collection {collection.name!r} is not calibrated; run Calibrate"
        else:
            missing = (
                f"collection {collection.name!r} is calibrated for up to {calibration.limit} hits; "
                f"run Calibrate with limit {wish.limit}"
            )
        if wish.max_seconds is not None or wish.max_bytes is not None:
            raise WrongState(f"what a plan costs is not known: {missing}")
        if wish.recall_target is None:
            return default_plan(collection.sizes, wish.limit, self._max_candidates), None
        plan = exact_plan(collection.sizes, wish.limit)
        return plan, Promise(wish.recall_target, 1.0, True, "exact", note=missing)


def _note(
    choice: Choice, calibration: Calibration, target: float, is_filtered: bool, shards: int
) -> str:
    """Say what a caller should know of a plan that was chosen."""
    row = choice.row
    if not choice.is_affordable:
        return (
            f"no plan is within the budgets; the cheapest, which ran, takes "
            f"{row.seconds_p50 * 1000:.2f} ms and {row.memory_bytes} bytes a point, and is sure of "
            f"{choice.promised:.3f}"
        )
    if not choice.is_met:
        return (
            f"no plan within the budgets is sure of {target:g}; the best of them, which ran, is "
            f"sure of {choice.promised:.3f}"
        )
    if row is calibration.plans[0]:
        return ""
    notes = []
    if calibration.source == "documents":
        notes.append("measured with documents in place of queries; real ones may be harder")
    if is_filtered:
        notes.append("measured without a filter; GetRecall shows what live searches keep")
    if shards < calibration.shards:
        notes.append(
            f"measured in {calibration.shards} shards, and there are {shards}, whose larger graphs "
            "may find less; run Calibrate"
        )
    return "; ".join(notes)


def _check(wish: Wish) -> None:
    budgets = (wish.max_seconds, wish.max_bytes)
    if wish.plan is not None and (wish.recall_target is not None or any(budgets)):
        raise InvalidRequest("give a plan, or a recall_target and budgets, not both", "plan")
    if wish.recall_target is not None and not 0 < wish.recall_target <= 1:
        raise InvalidRequest(
            f"recall_target must be above 0 and at most 1, got {wish.recall_target:g}",
            "recall_target",
        )
    if any(budget is not None and not budget > 0 for budget in budgets):
        raise InvalidRequest("max_engine_ms and max_bytes_per_point must be above 0", "budget")
    if len(wish.slice) > MAX_SLICE_CHARS:
        raise InvalidRequest(f"slice must have at most {MAX_SLICE_CHARS} characters", "slice")
