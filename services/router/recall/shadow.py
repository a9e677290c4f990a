"""Shadow recall: some live searches are repeated exactly, so that lost recall is seen and named.

Off the hot path, one at a time, for a bounded share of the time. A search is drawn with a fixed
chance, and with a higher one while its slice has seldom been seen, so that small tenants are
watched too. The plan is run again beside the exact search, so that writes in between do not
count as loss. What is lost is attributed by changing one thing at a time: with the original
numbers in place of codes (quantisation), and then with a scan in place of the graph (the graph,
or, of a search with a filter, the filter); what a scan of originals still loses is the cut's own
(prefix). The three sum to the loss.

Shapes: D full width.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from services.router import tenants
from services.router.filters import Filter
from services.router.metrics import RouterMetrics
from services.router.plan import Plan, exact_plan, recall, scores_are_cosines
from services.router.recall.bounds import Alarm, lower_bound, upper_bound
from services.router.recall.watched import CAUSES, Watched
from services.router.storage.store import Collection, Store
from services.shared.errors import NotFound, ServiceError
from services.shared.vectors import Array

log = logging.getLogger(__name__)

_OTHER = "(other)"
# The first searches of a slice are all drawn, later ones so seldom that this many more are for
# each time that their number grows e-fold; until the fixed share is more.
_SEEN_FIRST = 50


@dataclass(frozen=True, slots=True)
class Live:
    """A search as it was answered."""

    collection: Collection
    plan: Plan
    query_D: Array
    condition: Filter | None
    slice: str
    target: float | None
    """Recall that it was promised; None: nothing was."""
    text: str | None = None
    """What was searched for, until it is no longer needed; None: a vector was."""
    keys: tuple[str, ...] = ()
    """Of the hits, best first."""


class Shadow:
    """Watches the recall of live searches.

    Args:
        store: runs the searches again.
        metrics: shows what is seen.
        share: of searches that are drawn.
        max_busy: share of the time that is spent on it.
        max_waiting: searches that wait to be repeated; more are left out, and counted.
        max_slices: of the operator, and of each tenant, that are told apart; all others are one.
        on_alarm: told the collection whose slice has fallen below its target, once.
    """

    def __init__(
        self,
        store: Store,
        metrics: RouterMetrics,
        share: float,
        max_busy: float,
        max_waiting: int,
        max_slices: int,
        on_alarm: Callable[[Collection], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._share = share
        self._max_busy = max_busy
        self._max_slices = max_slices
        self._on_alarm = on_alarm
        self._waiting: asyncio.Queue[Live] = asyncio.Queue(max_waiting)
        self._watched: dict[tuple[str, str], Watched] = {}
        self._num_watched: Counter[str] = Counter()
        """By owner: a tenant, or the operator."""
        self._measured_at: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to repeat searches."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; what waits is forgotten."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def offer(self, live: Live) -> None:
        """Draw a search, or not."""
        if not self._share:
            return
        watched = self._of(live.collection, live.slice)
        watched.num_searches += 1
        chance = max(self._share, _SEEN_FIRST / watched.num_searches)
        if random.random() >= chance:
            return
        try:
            self._waiting.put_nowait(live)
        except asyncio.QueueFull:
            self._metrics.shadow_dropped.inc()

    def seen(self, collection: Collection) -> dict[str, Watched]:
        """Return {slice: what is known of it} of a collection."""
        return {
            slice_: watched
            for (name, slice_), watched in sorted(self._watched.items())
            if name == collection.name
        }

    def _of(self, collection: Collection, slice_: str) -> Watched:
        at = (collection.calibration or {}).get("created_at", 0)
        if self._measured_at.get(collection.name, at) != at:
            self._forget(collection.name)  # other plans since: what was seen is not theirs
        self._measured_at[collection.name] = at
        key = self._key(collection, slice_)
        if key not in self._watched:
            self._watched[key] = Watched()
            self._num_watched[tenants.owner(key[1])] += 1
        return self._watched[key]

    def _key(self, collection: Collection, slice_: str) -> tuple[str, str]:
        """Return where a slice is counted: by itself, or with all that came too late for that."""
        key = (collection.name, slice_)
        # Of each tenant as many: how many slices others have must not decide what it is told.
        is_room = self._num_watched[tenants.owner(slice_)] < self._max_slices
        is_known = key in self._watched or is_room
        return key if is_known else (_OTHER, _OTHER)

    def _forget(self, name: str) -> None:
        for key in [key for key in self._watched if key[0] == name]:
            del self._watched[key]
            self._num_watched[tenants.owner(key[1])] -= 1
            self._metrics.forget_recall(*key)
        self._measured_at.pop(name, None)

    async def _run(self) -> None:
        while True:
            live = await self._waiting.get()
            start = time.monotonic()
            try:
                await self._measure(live)
            except NotFound:
                self._forget(live.collection.name)
            except ServiceError as error:
                log.warning("a search could not be repeated exactly: %s", error.message)
            except Exception:  # our bug; it must not end the watch for good
                log.exception("a search could not be repeated exactly")
            busy_s = time.monotonic() - start
            await asyncio.sleep(busy_s * (1.0 / self._max_busy - 1.0))

    async def _measure(self, live: Live) -> None:
        truth = exact_plan(live.collection.sizes, live.plan.limit)
        exact = await self._ask(live, truth)
        if not exact:
            return  # nothing to be found
        found = await self._recall(live, live.plan, exact)
        losses = dict.fromkeys(CAUSES, 0.0)
        if found < 1.0:
            plain = _without_codes(live)
            scanned = _without_graph(live, plain)
            by_plain = await self._recall(live, plain, exact) if plain != live.plan else found
            by_scan = await self._recall(live, scanned, exact) if scanned != plain else by_plain
            losses["quantization"] = by_plain - found
            losses["filter" if live.condition else "graph"] = by_scan - by_plain
            losses["prefix"] = 1.0 - by_scan
        await self._note(live, found, losses)

    async def _recall(self, live: Live, plan: Plan, exact: list[tuple[str, float]]) -> float:
        is_cosine = scores_are_cosines(plan, live.collection.sizes[-1])
        return recall(await self._ask(live, plan), exact, is_cosine)

    async def _ask(self, live: Live, plan: Plan) -> list[tuple[str, float]]:
        answer = await self._store.search(
            live.collection, plan, live.query_D, live.condition, with_points=False
        )
        return [(hit.key, hit.score) for hit in answer.hits]

    async def _note(self, live: Live, found: float, losses: dict[str, float]) -> None:
        watched = self._of(live.collection, live.slice)
        watched.num_measured += 1
        watched.recalls.append(found)
        for cause, lost in losses.items():
            watched.losses[cause] += (lost - watched.losses[cause]) / watched.num_measured
        recalls = list(watched.recalls)
        watched.lower = await asyncio.to_thread(lower_bound, recalls)
        watched.upper = await asyncio.to_thread(upper_bound, recalls)
        rings = False
        if live.target is not None and live.target < 1.0:
            if watched.alarm is None or watched.target != live.target:
                watched.alarm, watched.target = Alarm(live.target), live.target
            had_rung = watched.alarm.rings
            rings = watched.alarm.observe(found)
            if rings and not had_rung:
                log.warning(
                    "recall of %s, slice %r, is below its target of %g: %.3f over %d searches",
                    live.collection.name, live.slice, live.target, watched.mean, len(recalls),
                )  # fmt: skip
                self._on_alarm(live.collection)
        self._metrics.show_recall(*self._key(live.collection, live.slice), watched, rings)


def _without_codes(live: Live) -> Plan:
    sizes = {size.key: size for size in live.collection.sizes}
    return Plan(
        tuple(
            stage
            if sizes[stage.key].quantization == "none"
            else replace(stage, ignore_quantization=True, oversampling=None)
            for stage in live.plan.stages
        )
    )


def _without_graph(live: Live, plan: Plan) -> Plan:
    first, *rest = plan.stages
    has_graph = any(size.key == first.key and size.hnsw_m for size in live.collection.sizes)
    if first.exact or not has_graph:
        return plan
    return Plan((replace(first, exact=True, ef=0), *rest))
