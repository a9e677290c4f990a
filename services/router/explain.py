"""What each stage of a search did: how much it handed on, and how long it took.

Shapes: D full width.
"""

from dataclasses import dataclass

from services.router.filters import Filter
from services.router.plan import Plan
from services.router.sizes import Key
from services.router.storage.store import Answer, Collection, Store
from services.shared.vectors import Array


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did."""

    size: Key
    candidates: int
    """Points it really handed on."""
    seconds: float


async def explain(
    store: Store,
    collection: Collection,
    plan: Plan,
    query_D: Array,
    condition: Filter | None,
    whole: Answer,
) -> tuple[tuple[StageReport, ...], dict[str, int]]:
    """Time each beginning of a plan; a stage's time is what it adds to the one before.

    An engine runs the stages as one query and does not tell them apart. Noise may make a
    difference negative; it is shown as 0.

    Args:
        store: runs the beginnings.
        collection: as `find` returned it.
        plan: resolved.
        query_D: float32, of the full width.
        condition: as the search had it.
        whole: what the whole plan found.

    Returns:
        One report for each stage; and the place in the first stage, from 1, of each point that it
        handed on.
    """
    places: dict[str, int] = {}
    reports: list[StageReport] = []
    before_s = 0.0
    for number, stage in enumerate(plan.stages, start=1):
        handed_on = whole
        if number < len(plan.stages):
            beginning = plan.beginning(number)
            handed_on = await store.search(
                collection, beginning, query_D, condition, with_points=False
            )
        count, seconds = len(handed_on.hits), handed_on.seconds
        places = places or {hit.key: place for place, hit in enumerate(handed_on.hits, 1)}
        reports.append(StageReport(stage.key, count, max(0.0, seconds - before_s)))
        before_s = seconds
    return tuple(reports), places
