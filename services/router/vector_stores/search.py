"""One search of a vector store: its queries side by side, their hits joined, and whose they are.

A chunk that several queries find has its best score. A hit whose file is gone, or not to be shown,
is left out: its point is just being deleted.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.attributes import Attributes
from services.router.filters import Filter
from services.router.hybrid.hybrid import Hybrid
from services.router.search import Found, Search
from services.router.searcher import Searcher
from services.router.storage.store import ScoredPoint
from services.router.vector_stores.chunk_points import file_of
from services.router.vector_stores.files import StoreFiles
from services.router.vector_stores.routing import Routing, write_routing
from services.router.vector_stores.stores import VectorStore
from services.shared.errors import InvalidRequest
from services.shared.files import Files


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    queries: tuple[str, ...]
    limit: int
    threshold: float = 0.0
    """Least score of a result."""
    condition: Filter | None = None
    routing: Routing | None = None
    hybrid: Hybrid | None = None
    """As OpenAI's `hybrid_search` says; `routing` may say more."""


@dataclass(frozen=True, slots=True)
class Result:
    """One chunk that was found."""

    file_id: str
    filename: str
    score: float
    """0..1: a negative one counts as 0."""
    attributes: Attributes
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found."""

    queries: tuple[str, ...]
    results: list[Result]
    routing: dict[str, object] | None


class StoreSearcher:
    """Searches vector stores.

    Args:
        searcher: searches their collections.
        store_files: tells which files are to be shown.
        files: tells their names.
        max_text_chars: longest query.
    """

    def __init__(
        self, searcher: Searcher, store_files: StoreFiles, files: Files, max_text_chars: int
    ) -> None:
        self._searcher = searcher
        self._store_files = store_files
        self._files = files
        self._max_text_chars = max_text_chars

    async def search(self, store: VectorStore, wanted: Wanted) -> Answer:
        """Answer one search.

        Raises:
            InvalidRequest: a query, the plan or the filter is out of bounds.
        """
        for query in wanted.queries:
            if not query.strip() or len(query) > self._max_text_chars:
                raise InvalidRequest(
                    f"query: each must have 1 to {self._max_text_chars} characters that are not "
                    "all blank",
                    "query",
                )
        routing = wanted.routing or Routing()
        found = await asyncio.gather(
            *(
                self._searcher.search(
                    Search(
                        store.collection,
                        query,
                        limit=wanted.limit,
                        condition=wanted.condition,
                        plan=routing.plan,
                        recall_target=routing.recall_target,
                        slice=routing.slice,
                        max_seconds=routing.max_seconds,
                        max_bytes=routing.max_bytes,
                        explain=routing.explain,
                        measure_recall=routing.measure_recall,
                        hybrid=routing.hybrid or wanted.hybrid,
                        cross_encoder=routing.cross_encoder,
                        tenant=store.tenant,
                    )
                )
                for query in wanted.queries
            )
        )
        hits = [hit for hit in _join(found, wanted.limit) if _score(hit) >= wanted.threshold]
        results = await self._name(store, hits)
        return Answer(wanted.queries, results, write_routing(found) if wanted.routing else None)

    async def _name(self, store: VectorStore, hits: Sequence[ScoredPoint]) -> list[Result]:
        """Say of which file each hit is."""
        file_ids = {file_of(hit.point.id) for hit in hits}
        shown = await asyncio.to_thread(self._store_files.find, store.id, file_ids)
        names = await self._files.names(list(shown))
        return [
            Result(file.file_id, name, _score(hit), file.attributes, hit.point.text)
            for hit in hits
            if (file := shown.get(file_of(hit.point.id))) is not None
            and (name := names.get(file.file_id)) is not None
        ]


def _score(hit: ScoredPoint) -> float:
    return max(0.0, hit.score)


def _join(found: Sequence[Found], limit: int) -> list[ScoredPoint]:
    best: dict[str, ScoredPoint] = {}
    for hit in (hit for one in found for hit in one.hits):
        if (other := best.get(hit.point.id)) is None or hit.score > other.score:
            best[hit.point.id] = hit
    return sorted(best.values(), key=lambda hit: hit.score, reverse=True)[:limit]
