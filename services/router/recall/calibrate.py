"""Measure a collection, and which plans keep which recall on it: the heart of the product.

Four steps. Read: every vector passes once, and each query's true neighbours and their ranks at
each size come out (`ranks.py`). Screen: the plans that could be good (`candidates.py`) answer
some queries on the engine, and what another plan beats at every cost is dropped, and what is
slower than exact search. Select: the rest answer more of them; that gives the order, from safest
to boldest. Certify: those that are left answer the other queries, which took no part in choosing
them, and that gives the bounds (`calibration.py`).

Plans take turns query by query, so that a busy moment of the machine hits all alike. Searches of
others go on between any two of these.

Shapes: Q queries, D full width.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from services.router.plan import Plan, exact_plan, recall, scores_are_cosines
from services.router.recall.calibration import Calibration, Objective
from services.router.recall.candidates import candidate_plans
from services.router.recall.queries import Queries, QuerySource
from services.router.recall.ranks import Neighbours, Scan
from services.router.recall.trials import (
    OBJECTIVES,
    ROUNDS,
    Trial,
    bytes_needed,
    front,
    is_near,
    plan_rows,
    screen,
    thin,
)
from services.router.sizes import label
from services.router.storage.store import Collection, Store
from services.shared.errors import InvalidRequest, WrongState

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told the step, how much of it is done, and of how much."""

DEFAULT_TARGET = 0.95
DEFAULT_CONFIDENCE = 0.95
_PAGE = 1000
_MAX_CERTIFIED = 18
_MIN_CERTIFYING = 500
_CURVE_STEP = 1.3
_RANKED_QUERIES = 400


@dataclass(frozen=True, slots=True)
class Calibrate:
    """What is asked for."""

    collection: str
    """Name or alias."""
    limit: int = 10
    target: float = DEFAULT_TARGET
    objective: Objective = "latency"
    confidence: float = DEFAULT_CONFIDENCE
    queries: QuerySource = field(default_factory=QuerySource)


@dataclass(frozen=True, slots=True)
class _Truth:
    """The exact hits of each query: keys and scores, best first."""

    keys: list[list[str]]
    scores: list[list[float]]


class Calibrator:
    """Runs calibrations, one at a time for each collection.

    Args:
        store: where the collections are.
        queries: finds the queries to measure with.
        max_points: vectors that are read; of a larger collection a random sample is.
        max_candidates: longest shortlist.
        max_limit: most hits of one search.
    """

    def __init__(
        self,
        store: Store,
        queries: Queries,
        max_points: int,
        max_candidates: int,
        max_limit: int,
    ) -> None:
        self._store = store
        self._queries = queries
        self._max_points = max_points
        self._max_candidates = max_candidates
        self._max_limit = max_limit
        self._running: set[str] = set()

    async def run(self, wanted: Calibrate, on_progress: Progress) -> Calibration:
        """Measure a collection and keep the result with it.

        Raises:
            InvalidRequest: a number is out of bounds, or there are too few points or queries.
            NotFound: no such collection.
            WrongState: it is being calibrated already.
        """
        self.check(wanted)
        collection = await self._store.find(wanted.collection)
        if collection.name in self._running:
            raise WrongState(f"collection {collection.name!r} is being calibrated already")
        self._running.add(collection.name)
        log.info("calibrating %s for a recall of %g", collection.name, wanted.target)
        try:
            calibration = await _Run(
                self._store, self._queries, collection, wanted, on_progress,
                self._max_points, self._max_candidates,
            ).run()  # fmt: skip
            await self._store.annotate(
                collection.name, "calibration", calibration.model_dump(mode="json")
            )
        finally:
            self._running.discard(collection.name)
        choice = calibration.choose(wanted.target)
        log.info(
            "calibrated %s with %d queries (%s): sure of %.3f in %.2f ms and %d bytes a point",
            collection.name, calibration.num_queries, calibration.source, choice.promised,
            choice.row.seconds_p50 * 1000, choice.row.memory_bytes,
        )  # fmt: skip
        return calibration

    def check(self, wanted: Calibrate) -> None:
        """Refuse numbers and queries that are out of bounds; InvalidRequest."""
        self._queries.check(wanted.queries)
        if not 1 <= wanted.limit <= self._max_limit:
            raise InvalidRequest(
                f"limit must be between 1 and {self._max_limit}, got {wanted.limit}", "limit"
            )
        if not 0 < wanted.target < 1:
            raise InvalidRequest(
                f"target must be above 0 and below 1, got {wanted.target:g}; exact search keeps 1",
                "target",
            )
        if not 0.5 <= wanted.confidence < 1:
            raise InvalidRequest(
                f"confidence must be at least 0.5 and below 1, got {wanted.confidence:g}",
                "confidence",
            )


class _Run:
    """One calibration, from top to bottom."""

    def __init__(
        self,
        store: Store,
        queries: Queries,
        collection: Collection,
        wanted: Calibrate,
        on_progress: Progress,
        max_points: int,
        max_candidates: int,
    ) -> None:
        self._store = store
        self._source = queries
        self._collection = collection
        self._wanted = wanted
        self._on_progress = on_progress
        self._max_points = max_points
        self._max_candidates = max_candidates

    async def run(self) -> Calibration:
        wanted, collection = self._wanted, self._collection
        num_points = await self._store.count(collection.name)
        if num_points <= wanted.limit:
            raise InvalidRequest(
                f"collection {collection.name!r} has {num_points} points; a calibration for "
                f"{wanted.limit} hits needs more than that",
                "collection",
            )
        self._asked = await self._source.gather(collection, wanted.queries)
        neighbours = await self._read(num_points)
        choosing, certifying = self._asked.split()

        trials = await self._screen(neighbours, num_points, choosing)
        await self._measure("select", trials, choosing[max(ROUNDS) :])
        sequences = {
            objective: thin(front(trials, objective), _MAX_CERTIFIED) for objective in OBJECTIVES
        }
        kept = {id(trial) for sequence in sequences.values() for trial in sequence}
        trials = [trial for trial in trials if id(trial) in kept]
        trials.sort(key=lambda trial: (-trial.recall, -trial.p50))
        for trial in trials:
            trial.recall_chosen = trial.recall
        await self._certify(trials, certifying)
        slices = self._asked.slices_of(certifying)
        return Calibration(
            created_at=int(time.time()),
            space_id=collection.space_id,
            num_points=num_points,
            shards=collection.spread.shards,
            limit=wanted.limit,
            confidence=wanted.confidence,
            source=self._asked.source,
            num_queries=len(certifying),
            slice_queries={name: len(places) for name, places in slices.items()},
            target=wanted.target,
            objective=wanted.objective,
            plans=plan_rows(self._exact, trials, sequences, slices, wanted.confidence),
            curves=_curves(neighbours, collection, wanted.limit, self._max_candidates),
        )

    async def _certify(self, trials: list[Trial], queries: Sequence[int]) -> None:
        """Let queries that chose nothing answer for the plans.

        Where many targets are asked for, near one, all of them do; elsewhere some are enough.
        """
        for trial in trials:
            trial.recalls.clear()
        near = [t for t in trials if is_near(1.0 - t.recall_chosen, self._wanted.target)]
        count = max(_MIN_CERTIFYING, len(queries) // 4)
        await self._measure("certify", trials, queries[:count])
        await self._measure("certify closely", near, queries[count:])

    async def _screen(
        self, neighbours: Neighbours, num_points: int, queries: Sequence[int]
    ) -> list[Trial]:
        """Return the plans that are neither slower than exact search nor beaten by others."""
        sizes, limit = self._collection.sizes, self._wanted.limit
        plans = candidate_plans(sizes, neighbours, num_points, limit, self._max_candidates)
        exact = exact_plan(sizes, limit)
        self._exact, *trials = (
            Trial(plan, bytes_needed(plan, sizes, num_points), [], []) for plan in [exact, *plans]
        )
        begin = 0
        for end, margin in ROUNDS.items():
            await self._measure("screen", [self._exact, *trials], queries[begin:end])
            begin = end
            trials = screen(trials, self._exact, margin)
        return trials

    async def _read(self, num_points: int) -> Neighbours:
        """Let all points pass, or a random sample of a collection that is too large for that."""
        collection = self._collection
        rotation = await self._store.rotation(collection)
        total = min(num_points, self._max_points)
        limit, asked = self._wanted.limit, self._asked
        # Ranks need few queries, being a guide only; the truth is needed of all.
        ranked = Scan(
            asked.vectors_QD[:_RANKED_QUERIES], asked.own_keys, collection.sizes,
            min(self._max_candidates, total), rotation,
        )  # fmt: skip
        true = Scan(asked.vectors_QD, asked.own_keys, collection.sizes[-1:], limit)
        after: str | None = None
        while true.num_points < total:
            page = await self._store.vectors(collection.name, after, _PAGE)
            if page.keys:
                await asyncio.to_thread(ranked.add, page.keys, page.vectors_BD)
                await asyncio.to_thread(true.add, page.keys, page.vectors_BD)
            self._on_progress("read", min(true.num_points, total), total)
            after = page.after
            if after is None:
                break
        found = await asyncio.to_thread(ranked.neighbours, limit)
        if num_points <= self._max_points:
            exact = await asyncio.to_thread(true.neighbours, limit)
            self._truth = _Truth(exact.keys, exact.scores)
            return found
        self._truth = await self._search_exactly()
        # Of a sample every rank stands for several.
        times = num_points / max(1, ranked.num_points)
        ranks = {
            size: [[math.ceil(rank * times) for rank in query] for query in queries]
            for size, queries in found.ranks.items()
        }
        return replace(found, ranks=ranks)

    async def _search_exactly(self) -> _Truth:
        truth = _Truth([], [])
        plan = exact_plan(self._collection.sizes, self._wanted.limit)
        total = len(self._asked.own_keys)
        for query in range(total):
            hits, _ = await self._ask(plan, query)
            truth.keys.append([key for key, _ in hits])
            truth.scores.append([score for _, score in hits])
            self._on_progress("search exactly", query + 1, total)
        return truth

    async def _measure(self, step: str, trials: list[Trial], queries: Sequence[int]) -> None:
        """Let every plan answer every query, in turns."""
        for done, query in enumerate(queries, start=1):
            exact = list(zip(self._truth.keys[query], self._truth.scores[query], strict=True))
            for trial in trials:
                hits, seconds = await self._ask(trial.plan, query)
                is_cosine = scores_are_cosines(trial.plan, self._collection.sizes[-1])
                trial.recalls.append(recall(hits, exact, is_cosine))
                trial.seconds.append(seconds)
            self._on_progress(step, done, len(queries))

    async def _ask(self, plan: Plan, query: int) -> tuple[list[tuple[str, float]], float]:
        """Search; a query that is a document's own vector does not find that document."""
        own = self._asked.own_keys[query]
        if own:
            stages = (replace(stage, candidates=stage.candidates + 1) for stage in plan.stages)
            plan = Plan(tuple(stages))
        answer = await self._store.search(
            self._collection, plan, self._asked.vectors_QD[query], with_points=False
        )
        hits = [(hit.key, hit.score) for hit in answer.hits if hit.key != own]
        return hits[: self._wanted.limit], answer.seconds


def _curves(
    neighbours: Neighbours, collection: Collection, limit: int, most: int
) -> dict[str, tuple[tuple[int, float], ...]]:
    steps = 1 + math.ceil(math.log(max(1.0, most / limit)) / math.log(_CURVE_STEP))
    lengths = accumulate(range(steps), lambda k, _: math.ceil(k * _CURVE_STEP), initial=limit)
    shortlists = sorted({min(most, length) for length in lengths})
    return {
        label(size.key): tuple((k, neighbours.recall(size.key, k)) for k in shortlists)
        for size in collection.sizes[:-1]
    }
