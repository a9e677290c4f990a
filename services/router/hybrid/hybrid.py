"""Search by vectors and by words at once: each side finds its best, and both are fused.

The vectors' side is a plan like any other, with its promise. What only one side found the other
scores too, exactly, before scores are weighed: a point that just missed a side's best is not taken
for one that has nothing to do with the query.

Shapes: D full width.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.router.filters import Filter, OfKeys
from services.router.hybrid.fusion import by_rank, by_score
from services.router.hybrid.idf import Rarity
from services.router.hybrid.text_index import query_terms
from services.router.plan import Plan, exact_plan, scores_are_cosines
from services.router.storage.store import Answer, Collection, Point, ScoredPoint, Store
from services.shared.errors import InvalidRequest, WrongState
from services.shared.vectors import Array

Fusion = Literal["score", "rank"]

DEFAULT_WEIGHT: dict[Fusion, float] = {"score": 0.7, "rank": 0.5}


LEAST_CANDIDATES = 10
"""What is fourth on both sides may be among the best three of both."""


@dataclass(frozen=True, slots=True)
class Hybrid:
    """How words take part in a search."""

    text: str = ""
    """What to look for by its words; "": the query's own text."""
    fusion: Fusion = "score"
    weight: float | None = None
    """Of the vectors' side, 0..1; None: `DEFAULT_WEIGHT`."""
    candidates: int = 0
    """Hits of each side that are fused; 0: as many as are wanted, and ten at least, unless the
    search names its plan."""


@dataclass(frozen=True, slots=True)
class TextSide:
    """What was found by words."""

    answer: Answer
    weights: Mapping[int, float]
    """{term of the query: its weight}."""


@dataclass(frozen=True, slots=True)
class SideScores:
    """What each side says of a hit; None: it did not find it, and was not asked."""

    cosine: float | None
    text_score: float | None


@dataclass(frozen=True, slots=True)
class Fused:
    """Both sides as one."""

    hits: list[ScoredPoint]
    sides: tuple[SideScores, ...]
    """Of each hit."""
    seconds: float
    """The engine's own time, of what had to be scored once more."""


def check_hybrid(hybrid: Hybrid, limit: int, max_candidates: int, max_text_chars: int) -> None:
    """Refuse what is out of bounds; InvalidRequest."""
    if len(hybrid.text) > max_text_chars:
        raise InvalidRequest(
            f"hybrid: text must have at most {max_text_chars} characters", "hybrid"
        )
    if hybrid.weight is not None and not 0 <= hybrid.weight <= 1:
        raise InvalidRequest(
            f"hybrid: weight must be between 0 and 1, got {hybrid.weight:g}", "hybrid"
        )
    if hybrid.candidates and not limit <= hybrid.candidates <= max_candidates:
        raise InvalidRequest(
            f"hybrid: candidates must be 0, or between the limit ({limit}) and {max_candidates}, "
            f"got {hybrid.candidates}",
            "hybrid",
        )


def check_text_side(collection: Collection) -> None:
    """Refuse a search by words where there is no text index; WrongState."""
    if collection.text_index is None:
        raise WrongState(
            f"collection {collection.name!r} has no text index; search without hybrid, or let an "
            "operator give it one: the gRPC call ResizeCollection with text_index"
        )


class HybridSearcher:
    """Finds by words, and fuses.

    Args:
        store: where the points are.
        rarity: weighs terms.
    """

    def __init__(self, store: Store, rarity: Rarity) -> None:
        self._store = store
        self._rarity = rarity

    async def search_text(
        self,
        collection: Collection,
        text: str,
        limit: int,
        condition: Filter | None,
        tenant: str | None,
    ) -> TextSide:
        """Find the points whose texts fit a query best, in a collection with a text index."""
        assert collection.text_index is not None
        terms = query_terms(text, collection.text_index)
        if not terms:
            return TextSide(Answer([], 0.0), {})
        weights = await self._rarity.weigh(terms, collection, tenant)
        return TextSide(
            await self._store.search_text(collection, weights, limit, condition), weights
        )

    async def fuse(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        found: Answer,
        text: TextSide,
        hybrid: Hybrid,
        limit: int,
    ) -> Fused:
        """Make one ranking of two.

        Args:
            collection: as `find` returned it.
            plan: what found `found`.
            query_D: float32, of the full width.
            found: by vectors.
            text: by words.
            hybrid: how.
            limit: of hits.
        """
        cosines = {hit.key: hit.score for hit in found.hits}
        text_scores = {hit.key: hit.score for hit in text.answer.hits}
        weight = DEFAULT_WEIGHT[hybrid.fusion] if hybrid.weight is None else hybrid.weight
        seconds = 0.0
        if hybrid.fusion == "rank":
            ranking = by_rank(list(cosines), list(text_scores), weight)
        else:
            is_cosine = scores_are_cosines(plan, collection.sizes[-1])
            cosines, text_scores, seconds = await self._complete(
                collection, query_D, cosines, text_scores, text.weights, is_cosine
            )
            ranking = by_score(cosines, text_scores, weight)
        points: dict[str, Point] = {
            hit.key: hit.point for answer in (text.answer, found) for hit in answer.hits
        }
        best = ranking[:limit]
        return Fused(
            [ScoredPoint(key, points[key], score) for key, score in best],
            tuple(SideScores(cosines.get(key), text_scores.get(key)) for key, _ in best),
            seconds,
        )

    async def _complete(
        self,
        collection: Collection,
        query_D: Array,
        cosines: Mapping[str, float],
        text_scores: Mapping[str, float],
        weights: Mapping[int, float],
        is_cosine: bool,
    ) -> tuple[dict[str, float], dict[str, float], float]:
        """Return both scores of all that was found, and the engine's seconds.

        A point that is gone meanwhile is left out.
        """
        both = tuple(dict.fromkeys((*cosines, *text_scores)))
        unscored = tuple(key for key in both if key not in cosines) if is_cosine else both
        wordless = tuple(key for key in both if key not in text_scores) if weights else ()
        near, worded = await asyncio.gather(
            self._score(collection, query_D, unscored),
            self._score_text(collection, weights, wordless),
        )
        known = cosines if is_cosine else {}
        return (
            {**known, **{hit.key: hit.score for hit in near.hits}},
            {**text_scores, **{hit.key: hit.score for hit in worded.hits}},
            near.seconds + worded.seconds,
        )

    async def _score(self, collection: Collection, query_D: Array, keys: tuple[str, ...]) -> Answer:
        if not keys:
            return Answer([], 0.0)
        plan = exact_plan(collection.sizes, len(keys))
        return await self._store.search(collection, plan, query_D, OfKeys(keys), with_points=False)

    async def _score_text(
        self, collection: Collection, weights: Mapping[int, float], keys: tuple[str, ...]
    ) -> Answer:
        if not keys:
            return Answer([], 0.0)
        return await self._store.search_text(
            collection, weights, len(keys), OfKeys(keys), with_points=False
        )
