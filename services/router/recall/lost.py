"""Live searches that lost hits, for an operator to look at; in memory only, and bounded.

The one place where a query's text outlives its search. It is written to no disk, log or metric, and
goes when the collection is calibrated anew or deleted.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.plan import Plan
from services.router.recall.live import Live
from services.router.storage.store import Store, point_uuid

MAX_TEXT_CHARS = 1000
"""Kept of a query's text."""
_MAX_IDS = 20


@dataclass(frozen=True, slots=True)
class LostSearch:
    """A search whose plan did not find all that exact search finds."""

    at: float
    """Unix time, seconds, of when it was repeated."""
    slice: str
    plan: Plan
    recall: float
    text: str | None
    """Its beginning; None: it was a search by vector."""
    is_cut: bool
    """Whether the text was longer than what is kept of it."""
    lost_ids: tuple[str, ...]
    """Exact hits that the plan did not find, the best first, at most 20."""
    found_ids: tuple[str, ...]
    """Exact hits that it found, as many at most."""
    num_lost: int
    num_found: int


class LostSearches:
    """Those of all collections.

    Args:
        store: tells the ids of hits.
        max_searches: of one collection, the last ones; 0 keeps none.
        max_collections: that any are kept of, the last ones that lost something.
    """

    def __init__(self, store: Store, max_searches: int, max_collections: int) -> None:
        self._store = store
        self._max_searches = max_searches
        self._max_collections = max_collections
        self._kept: OrderedDict[str, deque[LostSearch]] = OrderedDict()

    async def observe(
        self, live: Live, recall: float, found: Sequence[str], exact: Sequence[str], at: float
    ) -> None:
        """Keep a search that lost hits.

        Args:
            live: the search.
            recall: share of the exact hits that its plan finds.
            found: keys of what the plan finds.
            exact: keys of what there is to be found, best first.
            at: Unix time, seconds.

        Raises:
            NotFound, Unavailable: the collection or the engine is away.
        """
        if not self._max_searches:
            return
        missing = [key for key in exact if key not in set(found)]
        # Others that are missing tie with the last hit: by them nothing is lost.
        lost = missing[: round((1.0 - recall) * len(exact))]
        kept = [key for key in exact if key not in set(lost)]
        name, text = live.collection.name, live.text
        ids = await self._ids(name, lost[:_MAX_IDS] + kept[:_MAX_IDS])
        search = LostSearch(
            at=at,
            slice=live.slice,
            plan=live.plan,
            recall=recall,
            text=None if text is None else text[:MAX_TEXT_CHARS],
            is_cut=text is not None and len(text) > MAX_TEXT_CHARS,
            lost_ids=tuple(ids[key] for key in lost if key in ids),
            found_ids=tuple(ids[key] for key in kept if key in ids),
            num_lost=len(lost),
            num_found=len(kept),
        )
        self._kept.setdefault(name, deque(maxlen=self._max_searches)).append(search)
        self._kept.move_to_end(name)
        while len(self._kept) > self._max_collections:
            self._kept.popitem(last=False)

    def of(self, name: str, slice_: str | None = None) -> list[LostSearch]:
        """Return a collection's, the newest first; of one slice, if one is named."""
        searches = reversed(self._kept.get(name, ()))
        return [search for search in searches if slice_ in (None, search.slice)]

    def forget(self, name: str) -> None:
        """Drop a collection's."""
        self._kept.pop(name, None)

    async def _ids(self, name: str, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: the user's own id} of points, of those that are still there."""
        page = await self._store.read(name, keys)
        return {point_uuid(point.id, point.tenant): point.id for point in page.points}
