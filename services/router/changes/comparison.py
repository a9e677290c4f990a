"""Live searches of a collection that is being migrated, answered by its other half too.

Off the hot path, one at a time, for a bounded share of the time. How many hits the two have in
common says, slice by slice, for whom the new model changes what is found; which of the two is
better, labelled queries say (`recall/evaluate.py`). Both hold the same points under the same keys.
"""

import asyncio
import logging
import random
import time
from collections import Counter

from services.router.changes.agreements import OTHER, Agreements
from services.router.changes.change import Change, read_change
from services.router.encoder_client import EncoderClient
from services.router.metrics import RouterMetrics
from services.router.recall.live import Live
from services.router.recall.promise import Promises, Wish
from services.router.recall.recent import Recent
from services.router.space import check_space
from services.router.storage.store import Collection, Store
from services.router.translate import Translator
from services.shared.errors import ServiceError
from services.shared.vectors import Array

log = logging.getLogger(__name__)

# The first searches of a slice are all drawn, so that small tenants are seen.
_SEEN_FIRST = 50


class Comparison:
    """Compares the two halves of migrations on live searches.

    Args:
        store: runs the searches.
        encoder: encodes their texts for the other model.
        translator: turns their vectors, where that can be.
        promises: chooses the other collection's plan.
        recent: gets the other collection's queries.
        agreements: keeps what is seen.
        metrics: shows what is seen.
        share: of searches that are drawn.
        max_busy: share of the time that is spent on it.
        max_waiting: searches that wait; more are left out.
        max_slices: of one migration whose first searches are all drawn.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        translator: Translator,
        promises: Promises,
        recent: Recent,
        agreements: Agreements,
        metrics: RouterMetrics,
        share: float,
        max_busy: float,
        max_waiting: int,
        max_slices: int,
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._translator = translator
        self._promises = promises
        self._recent = recent
        self._agreements = agreements
        self._metrics = metrics
        self._share = share
        self._max_busy = max_busy
        self._max_slices = max_slices
        self._waiting: asyncio.Queue[Live] = asyncio.Queue(max_waiting)
        # By the two collections' names, so that both directions are one: {slice: searches}.
        self._offered: dict[frozenset[str], Counter[str]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compare."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; what waits is forgotten."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def offer(self, live: Live) -> None:
        """Draw a search of a collection that has another half, or not."""
        if live.collection.mirror is None or not self._share:
            return
        both = frozenset((live.collection.name, live.collection.mirror["to"]))
        offered = self._offered.setdefault(both, Counter())
        is_known = live.slice in offered or len(offered) < self._max_slices
        slice_ = live.slice if is_known else OTHER
        offered[slice_] += 1
        chance = max(self._share, _SEEN_FIRST / offered[slice_])
        if random.random() < chance and not self._waiting.full():
            self._waiting.put_nowait(live)

    async def _run(self) -> None:
        while True:
            live = await self._waiting.get()
            begin_s = time.monotonic()
            try:
                await self._compare(live)
            except ServiceError as error:
                log.info("a search could not be compared: %s", error.message)
            except Exception:  # our bug; it must not end the comparison for good
                log.exception("a search could not be compared")
            busy_s = time.monotonic() - begin_s
            await asyncio.sleep(busy_s * (1.0 / self._max_busy - 1.0))

    async def _compare(self, live: Live) -> None:
        assert live.collection.mirror is not None
        other = await self._store.find(live.collection.mirror["to"])
        change = _migration(live.collection, other)
        if change is None or not change.is_waiting:
            return  # the target does not hold everything yet
        query_D = await self._query(live, other)
        if query_D is None or not live.keys:
            return
        self._recent.observe(other, query_D, live.slice)
        wish = Wish(live.plan.limit, slice=live.slice, is_filtered=live.condition is not None)
        plan, _ = self._promises.plan(wish, other)
        answer = await self._store.search(other, plan, query_D, live.condition, with_points=False)
        common = len({hit.key for hit in answer.hits} & set(live.keys))
        overlap = common / max(len(live.keys), len(answer.hits))
        slice_, agreement = await asyncio.to_thread(
            self._agreements.observe, change.id, live.slice, overlap
        )
        self._metrics.show_agreement(other.name, slice_, agreement.overlap)

    async def _query(self, live: Live, other: Collection) -> Array | None:
        """Return the query in the other space; None, if it was a vector that cannot be turned."""
        if not await self._translator.needs_texts(live.collection, other):
            turned_1D = await self._translator.vectors(
                live.collection, other, [], live.query_D[None]
            )
            query_D: Array = turned_1D[0]
            return query_D
        if live.text is None:
            return None
        encoded = await self._encoder.embed_query(other.model, live.text)
        check_space(other, encoded.space_id, f"the encoder's model {other.model!r}")
        encoded_D: Array = encoded.vectors_BD[0]
        return encoded_D


def _migration(*halves: Collection) -> Change | None:
    """Return what is kept of a migration, whichever of the two is its target."""
    changes = [change for half in halves if (change := read_change(half)) is not None]
    return next((change for change in changes if change.kind == "migrate"), None)
