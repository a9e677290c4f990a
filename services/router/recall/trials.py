"""Plans while they are being measured: which are dropped, and what is promised of the others.

Shapes: T trials.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from services.router.plan import Plan, reads_codes
from services.router.recall.bounds import lower_bound
from services.router.recall.calibration import Objective, PlanRow, Recall, StageRow, promises
from services.router.sizes import Size, memory

OBJECTIVES: tuple[Objective, ...] = ("latency", "memory")
# Bolder plans than this are worth no promise.
_LEAST_RECALL = 0.88
# What is near a demanding target: it loses this share of what the target allows to lose.
_DEMANDING = 0.99
_NEAR = (0.35, 1.6)


@dataclass(frozen=True, slots=True)
class Margin:
    """How much faster a plan must be to beat another; 1: just faster.

    Recalls and times of few queries are noisy. Recalls that are equal are so most often because
    either plan lost nothing yet: a bold plan's luck must not leave exact search alone to
    promise much.
    """

    ahead: float
    """Its time is less than this share of the other's, where its recall is higher ..."""
    tied: float
    """... and where the recalls are equal."""


CERTAIN = Margin(1.0, 1.0)
# After so many queries of each plan, what others beat by so much is dropped. What the plans that
# are chosen then cost beside the cheapest that would do is what bench/promises.py measures.
ROUNDS = {
    16: Margin(0.6, 0.2),
    48: Margin(0.8, 0.3),
    120: Margin(0.95, 0.4),
    300: Margin(1.0, 0.5),
}


@dataclass(slots=True, eq=False)
class Trial:
    """A plan and how it did so far."""

    plan: Plan
    memory_bytes: int
    recalls: list[float]
    seconds: list[float]
    recall_chosen: float = 0.0
    """Over the queries that chose it."""

    @property
    def recall(self) -> float:
        return float(np.mean(self.recalls))

    @property
    def p50(self) -> float:
        return float(np.median(self.seconds))


def bytes_needed(plan: Plan, sizes: Sequence[Size], num_points: int) -> int:
    """Return the bytes per point that a plan's stages need in memory.

    The first stage reads so much of what it looks at that all of it has to be there, wherever it
    was put; later ones read a few points of what is left on the disk.
    """
    by_key = {size.key: size for size in sizes}
    costs = {cost.key: cost for cost in memory(sizes, num_points)}
    total = 0
    for number, stage in enumerate(plan.stages):
        size, cost, is_first = by_key[stage.key], costs[stage.key], number == 0
        if is_first and not stage.exact:
            total += cost.graph_bytes
        if reads_codes(stage, size):
            total += cost.vector_bytes if is_first or size.codes_placement != "cold" else 0
        elif is_first or size.placement == "cached":
            total += 4 * size.dim
    return total


def front(trials: Sequence[Trial], objective: Objective, margin: Margin = CERTAIN) -> list[Trial]:
    """Drop what another plan beats: it has as much recall and is cheaper, in time by the margin.

    Where memory is what counts, less of it beats at more recall however slow, and at equal recall
    once that is certain.
    """
    recall_T = np.array([trial.recall for trial in trials]).round(9)  # ties are ties
    p50_T = np.array([trial.p50 for trial in trials])
    memory_T = np.array([trial.memory_bytes for trial in trials])
    # Of the first over the second.
    is_ahead_TT = recall_T[:, None] > recall_T
    is_tied_TT = recall_T[:, None] == recall_T
    is_faster_TT = p50_T[:, None] < np.where(is_tied_TT, margin.tied, margin.ahead) * p50_T
    beats_TT = (is_ahead_TT | is_tied_TT) & is_faster_TT
    if objective == "memory":
        is_smaller_TT = memory_T[:, None] < memory_T
        is_same_TT = memory_T[:, None] == memory_T
        is_clear_TT = is_ahead_TT | (is_tied_TT if margin == CERTAIN else False)
        beats_TT = beats_TT & (is_smaller_TT | is_same_TT) | is_clear_TT & is_smaller_TT
    return [trial for trial, is_beaten in zip(trials, beats_TT.any(axis=0), strict=True)
            if not is_beaten]  # fmt: skip


def screen(trials: Sequence[Trial], exact: Trial, margin: Margin) -> list[Trial]:
    """Drop what is no faster than exact search, and what others beat at every cost."""
    trials = [trial for trial in trials if trial.p50 < exact.p50]
    kept = {id(trial) for objective in OBJECTIVES for trial in front(trials, objective, margin)}
    return [trial for trial in trials if id(trial) in kept]


def is_near(lost: float, target: float) -> bool:
    """Tell whether a plan's lost recall is about what a demanding target allows."""
    return any(_NEAR[0] < lost / (1.0 - demanding) < _NEAR[1] for demanding in (_DEMANDING, target))


def thin(trials: list[Trial], most: int) -> list[Trial]:
    """Keep plans spread evenly over the recall that they lose, the fastest of each step."""
    trials = [trial for trial in trials if trial.recall >= _LEAST_RECALL]
    kept, step = trials, 1.05
    while len(kept) > most:
        fastest: dict[int, Trial] = {}
        for trial in trials:
            place = round(math.log(max(1.0 - trial.recall, 1e-4)) / math.log(step))
            if place not in fastest or trial.p50 < fastest[place].p50:
                fastest[place] = trial
        kept = list(fastest.values())
        step **= 1.25
    return kept


def plan_rows(
    exact: Trial,
    trials: Sequence[Trial],
    sequences: dict[Objective, list[Trial]],
    slices: dict[str, list[int]],
    confidence: float,
) -> tuple[PlanRow, ...]:
    """Return the exact plan, which needs no bound, and the certified ones, safest first."""
    sure = Recall(mean=1.0, bound=1.0, promised=dict.fromkeys(OBJECTIVES, 1.0))
    longest = max((len(trial.recalls) for trial in trials), default=0)
    places = {"": list(range(longest)), **slices}
    recalls: list[dict[str, Recall]] = [{} for _ in trials]
    for name, of_slice in places.items():
        measured = [
            [trial.recalls[place] for place in of_slice if place < len(trial.recalls)]
            for trial in trials
        ]
        means = [float(np.mean(some)) if some else 0.0 for some in measured]
        bounds = [lower_bound(some, confidence) for some in measured]
        promised: list[dict[Objective, float]] = [{} for _ in trials]
        for objective, sequence in sequences.items():
            tested = [number for number, trial in enumerate(trials) if trial in sequence]
            least = promises([bounds[number] for number in tested])
            for number, promise in zip(tested, least, strict=True):
                promised[number][objective] = promise
        for number, (mean, bound) in enumerate(zip(means, bounds, strict=True)):
            recalls[number][name] = Recall(mean=mean, bound=bound, promised=promised[number])
    return (
        _row(exact, dict.fromkeys(places, sure)),
        *(_row(trial, found) for trial, found in zip(trials, recalls, strict=True)),
    )


def _row(trial: Trial, recalls: dict[str, Recall]) -> PlanRow:
    return PlanRow(
        stages=tuple(StageRow(**asdict(stage)) for stage in trial.plan.stages),
        seconds_p50=trial.p50,
        seconds_p99=float(np.quantile(trial.seconds, 0.99)),
        memory_bytes=trial.memory_bytes,
        recalls=recalls,
    )
