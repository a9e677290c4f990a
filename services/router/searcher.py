"""One search, from a text or vector to hits, and what it cost.

Resolve the name once, encode, run the plan as one query. On request: search by words too, time
each stage, and compare with the exact search at full size.

Shapes: D full width.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from services.router import tenants
from services.router.cross_encoder import (
    CrossEncoder,
    check_cross_encoder,
    cross_encode,
)
from services.router.encoder_client import EncoderClient
from services.router.explain import StageReport, explain
from services.router.filters import Filter, check_filter
from services.router.hybrid.hybrid import (
    Fused,
    HybridSearcher,
    TextSide,
    check_hybrid,
    check_text_side,
)
from services.router.metrics import RouterMetrics
from services.router.plan import Plan, exact_plan, recall, scores_are_cosines
from services.router.recall.live import Live
from services.router.recall.promise import Promises, Wish
from services.router.search import Found, Search, TextReport, read_vectors
from services.router.space import check_space
from services.router.storage.store import Answer, Collection, ScoredPoint, Store
from services.shared.errors import InvalidRequest, NotFound
from services.shared.trace import span
from services.shared.vectors import Array


class Searcher:
    """Runs searches.

    Args:
        store: where the collections are.
        encoder: turns query texts into vectors.
        metrics: gets stage times and shortlist sizes.
        promises: chooses plans.
        hybrid: searches by words.
        max_limit: most hits of one search.
        max_candidates: most hits of one side of a hybrid search.
        max_text_chars: longest query.
        on_live: told of each search that was answered.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        metrics: RouterMetrics,
        promises: Promises,
        hybrid: HybridSearcher,
        max_limit: int,
        max_candidates: int,
        max_text_chars: int,
        on_live: Callable[[Live], None] = lambda _: None,
    ) -> None:
        self._on_live = on_live
        self._promises = promises
        self._store = store
        self._encoder = encoder
        self._metrics = metrics
        self._hybrid = hybrid
        self._max_limit = max_limit
        self._max_candidates = max_candidates
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
            found = await self._search(search, collection)
        except NotFound:
            # While the query was encoded the alias may have moved and the old collection gone.
            moved_to = await tenants.find(self._store, search.collection, search.tenant)
            if moved_to == collection:
                raise
            found = await self._search(search, moved_to)
        if search.cross_encoder is not None:
            return await self._have_the_last_word(search, search.cross_encoder, found)
        return found

    async def _have_the_last_word(
        self, search: Search, wanted: CrossEncoder, found: Found
    ) -> Found:
        query = search.text or search.words
        with self._metrics.stage("cross_encode"):
            order, scores, report = await cross_encode(
                self._encoder, wanted, query, found.hits, search.tenant
            )
        order = order[: search.limit]
        return replace(
            found,
            hits=[
                replace(found.hits[place], score=score)
                for place, score in zip(order, scores, strict=False)
            ],
            sides=tuple(found.sides[place] for place in order if found.sides),
            shortlist_ranks=tuple(
                found.shortlist_ranks[place] for place in order if found.shortlist_ranks
            ),
            cross_encoder=report,
        )

    async def _search(self, search: Search, collection: Collection) -> Found:
        if search.hybrid is not None:
            check_text_side(collection)
        # From here on for everything that is searched, here and when it is repeated.
        condition = tenants.own(search.condition, search.tenant)
        plan, promise = self._promises.plan(_wish(search), collection)
        query_D, encode_seconds = await self._query(search, collection)
        self._metrics.shortlist_candidates.observe(plan.stages[0].candidates)
        text: TextSide | None = None
        if search.hybrid is None:
            answer = await self._by_plan(collection, plan, query_D, condition)
        else:
            answer, text = await asyncio.gather(
                self._by_plan(collection, plan, query_D, condition),
                self._by_words(search, collection, condition),
            )
        self._metrics.stage_seconds.labels("search").observe(answer.seconds)
        fused = await self._fuse(search, collection, plan, query_D, answer, text)
        stages: tuple[StageReport, ...] = ()
        ranks: tuple[int, ...] = ()
        if search.explain:
            stages, places = await explain(
                self._store, collection, plan, query_D, condition, answer
            )
            ranks = tuple(places.get(hit.key, 0) for hit in fused.hits)
        share, exact_seconds = None, 0.0
        if search.measure_recall:
            truth = exact_plan(collection.sizes, plan.limit)
            with span("exact"):
                exact = await self._store.search(collection, truth, query_D, condition)
            best = await self._fuse(search, collection, truth, query_D, exact, text)
            # Fused scores hang on what was found, so ties between two searches mean nothing.
            is_cosine = text is None and scores_are_cosines(plan, collection.sizes[-1])
            share = recall(_ranking(fused.hits), _ranking(best.hits), is_cosine)
            exact_seconds = exact.seconds
        if search.is_live and not search.explain:
            target = promise.target if promise else None
            slice_ = tenants.to_slice(search.slice, search.tenant)
            keys = tuple(hit.key for hit in answer.hits)
            live = Live(collection, plan, query_D, condition, slice_, target, search.text, keys)
            # Not now: first the answer is sent.
            asyncio.get_running_loop().call_soon(self._on_live, live)
        return Found(
            fused.hits, plan, collection, encode_seconds, answer.seconds,
            promise, stages, ranks, share, exact_seconds, fused.sides,
            _report(text, fused) if text else None,
        )  # fmt: skip

    async def _by_plan(
        self, collection: Collection, plan: Plan, query_D: Array, condition: Filter | None
    ) -> Answer:
        with span("search"):
            return await self._store.search(collection, plan, query_D, condition)

    async def _by_words(
        self, search: Search, collection: Collection, condition: Filter | None
    ) -> TextSide:
        with span("text"):
            found = await self._hybrid.search_text(
                collection, search.words, search.candidates, condition, search.tenant
            )
        self._metrics.stage_seconds.labels("text").observe(found.answer.seconds)
        return found

    async def _fuse(
        self,
        search: Search,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        found: Answer,
        text: TextSide | None,
    ) -> Fused:
        if text is None or search.hybrid is None:
            return Fused(found.hits, (), 0.0)
        with span("fuse"):
            return await self._hybrid.fuse(
                collection, plan, query_D, found, text, search.hybrid, search.depth
            )

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
        if search.cross_encoder is not None:
            check_cross_encoder(search.cross_encoder, search.limit, self._max_limit)
            if not search.words.strip():
                raise InvalidRequest(
                    "cross_encoder: needs a text to read: give one, or hybrid.text beside a vector",
                    "cross_encoder",
                )
        if search.hybrid is not None:
            hybrid = search.hybrid
            check_hybrid(hybrid, search.depth, self._max_candidates, self._max_text_chars)
            if search.text is None and not hybrid.text.strip():
                raise InvalidRequest(
                    "hybrid: text must say what to look for by words, beside a query vector",
                    "hybrid",
                )
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


def _report(text: TextSide, fused: Fused) -> TextReport:
    seconds = text.answer.seconds + fused.seconds
    return TextReport(len(text.weights), len(text.answer.hits), seconds)


def _wish(search: Search) -> Wish:
    return Wish(
        search.candidates, search.plan, search.recall_target, search.slice,
        search.max_seconds, search.max_bytes, search.condition is not None,
        search.tenant is not None,
    )  # fmt: skip


def _ranking(hits: list[ScoredPoint]) -> list[tuple[str, float]]:
    return [(hit.key, hit.score) for hit in hits]
