"""Quality with labelled queries, two contenders side by side: whose queries get worse, how much.

A contender is a collection with a plan or a recall target, with or without words and a
cross-encoder: two plans of one collection, or two models. Recall against exact search says what a
plan loses; labels say whether that matters.

Source of the measures: Järvelin and Kekäläinen 2002 (nDCG; gains are the grades, as in BEIR).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.router.cross_encoder import CrossEncoder
from services.router.hybrid.hybrid import Hybrid
from services.router.plan import Plan
from services.router.recall.queries import check_query_text
from services.router.search import Found, Search
from services.router.searcher import Searcher
from services.shared.errors import InvalidRequest

Progress = Callable[[int, int], None]

_WORST_QUERIES = 20
# Changes smaller than this are rounding.
_CHANGED = 1e-9


@dataclass(frozen=True, slots=True)
class Labelled:
    """A query and what should be found."""

    relevant: Mapping[str, float]
    """{id of a point: grade above 0}."""
    text: str | None = None
    vector: bytes | None = None
    slice: str = ""


@dataclass(frozen=True, slots=True)
class Contender:
    """What answers the queries."""

    collection: str
    plan: Plan | None = None
    recall_target: float | None = None
    space_id: str = ""
    """Of the queries that are vectors."""
    hybrid: Hybrid | None = None
    """How words take part; None: they do not."""
    cross_encoder: CrossEncoder | None = None
    """Who has the last word; None: nobody."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over queries, 0..1 each."""

    ndcg: float
    recall: float
    mrr: float


@dataclass(frozen=True, slots=True)
class SliceScores:
    """A slice's queries, as each contender answered them."""

    slice: str
    num_queries: int
    scores: tuple[Scores, ...]
    num_better: int
    """Queries with a higher nDCG at the second contender than at the first."""
    num_worse: int


@dataclass(frozen=True, slots=True)
class Change:
    """A query that got worse."""

    query: int
    """Its place in the request, from 0."""
    before: float
    """nDCG of the first contender."""
    after: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Contenders side by side."""

    found: tuple[Found, ...]
    """Each contender's last answer, for its plan and promise."""
    overall: SliceScores
    slices: tuple[SliceScores, ...]
    """Those that lose most at the second contender first; of one contender the lowest first."""
    worst: tuple[Change, ...]


class Evaluator:
    """Runs evaluations.

    Args:
        searcher: answers the queries, as it does those of others.
        max_queries: most of one evaluation.
        max_text_chars: longest query.
    """

    def __init__(self, searcher: Searcher, max_queries: int, max_text_chars: int) -> None:
        self._searcher = searcher
        self._max_queries = max_queries
        self._max_text_chars = max_text_chars

    async def run(
        self,
        queries: Sequence[Labelled],
        contenders: Sequence[Contender],
        limit: int,
        on_progress: Progress,
    ) -> Evaluation:
        """Let each contender answer every query, in turns.

        Raises:
            InvalidRequest: no queries or too many, one too long, labels that are none, not one or
                two contenders.
        """
        self._check(queries, contenders)
        scores: list[list[Scores]] = [[] for _ in contenders]
        found: list[Found] = []
        for done, query in enumerate(queries, start=1):
            found = [
                await self._searcher.search(_search(query, contender, limit))
                for contender in contenders
            ]
            for place, answer in enumerate(found):
                ids = [hit.point.id for hit in answer.hits]
                scores[place].append(score(ids, query.relevant, limit))
            on_progress(done, len(queries))
        return _compare(queries, scores, tuple(found))

    def _check(self, queries: Sequence[Labelled], contenders: Sequence[Contender]) -> None:
        if not 1 <= len(contenders) <= 2:
            raise InvalidRequest(
                f"contenders must be one or two, got {len(contenders)}", "contenders"
            )
        if any(contender.hybrid and contender.hybrid.text for contender in contenders):
            raise InvalidRequest(
                "contenders: the text of hybrid must be empty: each query is searched by its own",
                "contenders",
            )
        if not 1 <= len(queries) <= self._max_queries:
            raise InvalidRequest(
                f"queries must be 1 to {self._max_queries}, got {len(queries)}", "queries"
            )
        for number, query in enumerate(queries):
            if query.text is not None:
                check_query_text(query.text, self._max_text_chars, f"queries[{number}].text")
            grades = list(query.relevant.values())
            if not grades or not all(0 < grade < math.inf for grade in grades):
                raise InvalidRequest(
                    f"queries[{number}]: relevant needs at least one point, with a grade above 0",
                    f"queries[{number}]",
                )


def score(ids: Sequence[str], relevant: Mapping[str, float], limit: int) -> Scores:
    """Score one answer.

    >>> score(["b", "a"], {"a": 1.0}, 10).mrr
    0.5
    """
    gains = [relevant.get(id_, 0.0) for id_ in ids[:limit]]
    best = sorted(relevant.values(), reverse=True)[:limit]
    first = next((rank for rank, gain in enumerate(gains, start=1) if gain), 0)
    num_found = sum(gain > 0 for gain in gains)
    return Scores(
        ndcg=_discounted(gains) / _discounted(best),
        recall=num_found / len(relevant),
        mrr=1.0 / first if first else 0.0,
    )


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _search(query: Labelled, contender: Contender, limit: int) -> Search:
    return Search(
        collection=contender.collection,
        text=query.text,
        vector=query.vector,
        space_id=contender.space_id if query.vector is not None else "",
        limit=limit,
        plan=contender.plan,
        recall_target=contender.recall_target,
        slice=query.slice,
        is_live=False,
        hybrid=contender.hybrid,
        cross_encoder=contender.cross_encoder,
        tenant=None,
    )


def _compare(
    queries: Sequence[Labelled], scores: Sequence[Sequence[Scores]], found: tuple[Found, ...]
) -> Evaluation:
    by_slice: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        by_slice.setdefault(query.slice, []).append(place)
    slices = [_mean(name, places, scores) for name, places in by_slice.items()]
    slices.sort(key=lambda one: (_gain(one), one.slice))
    first, last = scores[0], scores[-1]
    changes = [
        Change(place, first[place].ndcg, last[place].ndcg)
        for place in range(len(queries))
        if last[place].ndcg < first[place].ndcg - _CHANGED
    ]
    changes.sort(key=lambda change: change.after - change.before)
    overall = _mean("", range(len(queries)), scores)
    return Evaluation(found, overall, tuple(slices), tuple(changes[:_WORST_QUERIES]))


def _mean(name: str, places: Sequence[int], scores: Sequence[Sequence[Scores]]) -> SliceScores:
    means = tuple(
        Scores(
            float(np.mean([contender[place].ndcg for place in places])),
            float(np.mean([contender[place].recall for place in places])),
            float(np.mean([contender[place].mrr for place in places])),
        )
        for contender in scores
    )
    gains = [scores[-1][place].ndcg - scores[0][place].ndcg for place in places]
    return SliceScores(
        name,
        len(places),
        means,
        sum(gain > _CHANGED for gain in gains),
        sum(gain < -_CHANGED for gain in gains),
    )


def _gain(one: SliceScores) -> float:
    """What to sort slices by: what the second contender gains; of one alone, how good it is."""
    if len(one.scores) == 1:
        return one.scores[0].ndcg
    return one.scores[1].ndcg - one.scores[0].ndcg
