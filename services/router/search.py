"""One search, from a text or vector to hits, and what it cost.

Resolve the name once, encode, run the plan as one query. On request: time each stage, and
compare with the exact search at full size.

Shapes: D full width.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.router import tenants
from services.router.encoder_client import EncoderClient
from services.router.filters import Filter, check_filter
from services.router.metrics import RouterMetrics
from services.router.plan import Plan, exact_plan, recall, scores_are_cosines
from services.router.recall.promise import Promise, Promises, Wish
from services.router.recall.shadow import Live
from services.router.sizes import Key
from services.router.space import check_space
from services.router.storage.store import Answer, Collection, ScoredPoint, Store
from services.shared.errors import InvalidRequest, NotFound
from services.shared.vectors import Array, unpack

DEFAULT_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for; a text, or a vector with its space."""

    collection: str
    text: str | None = None
    vector: bytes | None = None
    """One full-size vector, little-endian float32."""
    space_id: str = ""
    limit: int = DEFAULT_LIMIT
    condition: Filter | None = None
    plan: Plan | None = None
    """None: the plan that keeps the recall target; see `promise.py`."""
    recall_target: float | None = None
    """None: the collection's own, if it was calibrated."""
    slice: str = ""
    """Group of queries that this one belongs to: a tenant, a language; "": none."""
    max_seconds: float | None = None
    max_bytes: int | None = None
    is_live: bool = True
    """Whether a user waits for it; other searches are not watched, and not kept as recent ones."""
    explain: bool = False
    measure_recall: bool = False
    tenant: str | None = field(kw_only=True)
    """Whose points are searched; None: all, for an operator. Nobody may forget to say it."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did."""

    size: Key
    candidates: int
    """Points it really handed on."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """The answer."""

    hits: list[ScoredPoint]
    plan: Plan
    collection: Collection
    encode_seconds: float
    search_seconds: float
    promise: Promise | None = None
    stages: tuple[StageReport, ...] = ()
    shortlist_ranks: tuple[int, ...] = ()
    """With `explain`: each hit's place in the first stage, from 1."""
    recall: float | None = None
    exact_seconds: float = 0.0


class Searcher:
    """Runs searches.

    Args:
        store: where the collections are.
        encoder: turns query texts into vectors.
        metrics: gets stage times and shortlist sizes.
        promises: chooses plans.
        max_limit: most hits of one search.
        max_text_chars: longest query.
        on_live: told of each search that was answered.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        metrics: RouterMetrics,
        promises: Promises,
        max_limit: int,
        max_text_chars: int,
        on_live: Callable[[Live], None] = lambda _: None,
    ) -> None:
        self._on_live = on_live
        self._promises = promises
        self._store = store
        self._encoder = encoder
        self._metrics = metrics
        self._max_limit = max_limit
        self._max_text_chars = max_text_chars

    async def search(self, search: Search) -> Found:
        """Answer one search.

        Raises:
            InvalidRequest: something is out of bounds; nothing was encoded or searched.
            NotFound: no such collection or alias.
            WrongState: the query is of another space than the collection.
        """
        self._check(search)
        collection = await tenants.find(self._store, search.collection, search.tenant)
        try:
            return await self._search(search, collection)
        except NotFound:
            # While the query was encoded the alias may have moved and the old collection gone.
            moved_to = await tenants.find(self._store, search.collection, search.tenant)
            if moved_to == collection:
                raise
            return await self._search(search, moved_to)

    async def _search(self, search: Search, collection: Collection) -> Found:
        # From here on for everything that is searched, here and when it is repeated.
        condition = tenants.own(search.condition, search.tenant)
        plan, promise = self._promises.plan(_wish(search), collection)
        query_D, encode_seconds = await self._query(search, collection)
        self._metrics.shortlist_candidates.observe(plan.stages[0].candidates)
        answer = await self._run(collection, plan, query_D, condition)
        hits, search_seconds = answer.hits, answer.seconds
        self._metrics.stage_seconds.labels("search").observe(search_seconds)
        stages: tuple[StageReport, ...] = ()
        ranks: tuple[int, ...] = ()
        if search.explain:
            stages, ranks = await self._explain(collection, plan, query_D, condition, answer)
        share, exact_seconds = None, 0.0
        if search.measure_recall:
            truth = exact_plan(collection.sizes, plan.limit)
            exact = await self._run(collection, truth, query_D, condition)
            exact_seconds = exact.seconds
            is_cosine = scores_are_cosines(plan, collection.sizes[-1])
            share = recall(_ranking(hits), _ranking(exact.hits), is_cosine)
        if search.is_live:
            target = promise.target if promise else None
            slice_ = tenants.to_slice(search.slice, search.tenant)
            keys = tuple(hit.key for hit in hits)
            live = Live(collection, plan, query_D, condition, slice_, target, search.text, keys)
            # Not now: first the answer is sent.
            asyncio.get_running_loop().call_soon(self._on_live, live)
        return Found(
            hits, plan, collection, encode_seconds, search_seconds,
            promise, stages, ranks, share, exact_seconds,
        )  # fmt: skip

    def _check(self, search: Search) -> None:
        if not 1 <= search.limit <= self._max_limit:
            raise InvalidRequest(
                f"limit must be between 1 and {self._max_limit}, got {search.limit}", "limit"
            )
        if (search.text is None) == (search.vector is None):
            raise InvalidRequest("give either a query text or a query vector", "query")
        if search.text is not None and not 1 <= len(search.text.strip()) <= self._max_text_chars:
            raise InvalidRequest(
                f"text must have 1 to {self._max_text_chars} characters that are not blank",
                "text",
            )
        if search.vector is not None and not search.space_id:
            raise InvalidRequest("a query vector needs the space_id it is from", "space_id")
        if search.condition is not None:
            check_filter(search.condition)
        if search.is_live:
            tenants.to_slice(search.slice, search.tenant)

    async def _query(self, search: Search, collection: Collection) -> tuple[Array, float]:
        """Return the full query vector, and the seconds it took to encode it."""
        if search.vector is not None:
            check_space(collection, search.space_id, "the query vector")
            return read_vectors(search.vector, collection.full, 1, "vector")[0], 0.0
        assert search.text is not None
        start = time.perf_counter()
        with self._metrics.stage("encode"):
            encoded = await self._encoder.embed_query(collection.model, search.text, search.tenant)
        check_space(collection, encoded.space_id, f"the encoder's model {collection.model!r}")
        return encoded.vectors_BD[0], time.perf_counter() - start

    async def _run(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None,
        with_points: bool = True,
    ) -> Answer:
        return await self._store.search(collection, plan, query_D, condition, with_points)

    async def _explain(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None,
        whole: Answer,
    ) -> tuple[tuple[StageReport, ...], tuple[int, ...]]:
        """Time each beginning of the plan; a stage's time is what it adds to the one before.

        An engine runs the stages as one query and does not tell them apart. Noise may make a
        difference negative; it is shown as 0.

        Returns:
            One report for each stage; and each hit's place in the first stage, from 1, or 0 for
            one that came in meanwhile.
        """
        places: dict[str, int] = {}
        reports: list[StageReport] = []
        before_s = 0.0
        for number, stage in enumerate(plan.stages, start=1):
            if number < len(plan.stages):
                beginning = plan.beginning(number)
                handed_on = await self._run(
                    collection, beginning, query_D, condition, with_points=False
                )
            else:
                handed_on = whole
            count, seconds = len(handed_on.hits), handed_on.seconds
            places = places or {hit.key: place for place, hit in enumerate(handed_on.hits, 1)}
            reports.append(StageReport(stage.key, count, max(0.0, seconds - before_s)))
            before_s = seconds
        return tuple(reports), tuple(places.get(hit.key, 0) for hit in whole.hits)


def read_vectors(data: bytes, dim: int, rows: int, param: str) -> Array:
    """Read exactly `rows` vectors of the full width; none may be zero, which has no direction.

    Returns:
        vectors_BD: float32, finite.

    Raises:
        InvalidRequest: says what would be accepted.
    """
    if len(data) != rows * dim * 4:
        raise InvalidRequest(
            f"{param} must hold {rows} x {dim} little-endian float32 numbers "
            f"({rows * dim * 4} bytes), got {len(data)} bytes",
            param,
        )
    vectors_BD = unpack(data, dim, param)
    if not vectors_BD.any(axis=1).all():
        raise InvalidRequest(f"{param} must not hold a vector of zeros", param)
    return vectors_BD


def _wish(search: Search) -> Wish:
    return Wish(
        search.limit, search.plan, search.recall_target, search.slice,
        search.max_seconds, search.max_bytes, search.condition is not None,
        search.tenant is not None,
    )  # fmt: skip


def _ranking(hits: list[ScoredPoint]) -> list[tuple[str, float]]:
    return [(hit.key, hit.score) for hit in hits]
