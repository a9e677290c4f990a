"""A plan as queries to a Qdrant server.

On one shard a plan is one query, its stages nested. On more of them a server runs nested stages in
each shard by itself and merges only what comes out of the last one (qdrant/qdrant,
lib/collection/src/collection/query.rs and lib/collection/src/shards/local_shard/query.rs): S shards
hand on S times as many points as the plan says, and what is found depends on their number. So there
each stage is a query of its own, whose list the server merges and cuts as a whole; the next one is
told who is left. That is a round trip more for each, and finds the same however many shards there
are, so a plan that was measured holds on. Only lists too long to be sent back and forth are left
nested, each shard's part of them cut so that the best of all are in it (`shard_limits.py`).

Codes are rescored in each shard too, so that is a query of its own as well, where it decides who
is left or what the hits score.

Shapes: D full width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import AsyncQdrantClient, models
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import RestToGrpc

from services.router.filters import Filter
from services.router.plan import Plan, Stage, oversampling
from services.router.rotation import Rotation
from services.router.sizes import Size, cut
from services.router.storage.qdrant_query import to_filter
from services.router.storage.qdrant_retry import Retry
from services.router.storage.shard_limits import per_shard
from services.router.storage.store import Collection, is_plain_rescoring
from services.shared.trace import span
from services.shared.vectors import Array

MOST_IDS = 10_000
"""Longest list that is sent back to the server: 5,000 ids took 200 KB and some 6 ms of this
process. Twice the longest shortlist that a calibration tries by default, as it asks for one more
and codes for oversampling; a plan that scores more than that anew is left nested."""

_Vectors = dict[str, list[float]]


class QdrantSearch:
    """Runs plans on a server.

    Args:
        client: of the server; what it raises passes.
        timeout_s: longest wait for one answer.
        retry: repeats a query of which there was none.
    """

    def __init__(self, client: AsyncQdrantClient, timeout_s: int, retry: Retry) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._retry = retry

    async def run(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        rotation: Rotation | None,
        condition: Filter | None,
        with_points: bool,
    ) -> list[models.ScoredPoint]:
        """Return the hits, best first; see `Store.search`."""
        rows = cut(query_D[None], collection.sizes, rotation)
        vectors = {name: row_1M[0].tolist() for name, row_1M in rows.items()}
        query_filter = to_filter(condition)
        steps = list(_steps(plan, collection.sizes))
        is_short = all(step.limit <= MOST_IDS for step in steps[:-1])
        is_staged = collection.spread.shards > 1 and is_short and len(steps) > 1
        if collection.spread.shards > 1 and is_short:
            query = await self._left(collection.name, steps, vectors, query_filter)
        else:
            query = nested_query(collection, plan, vectors, query_filter)
        if query is None:
            return []
        with span("rerank" if is_staged else "query"):
            response = await self._client.query_points(
                collection.name, limit=plan.limit, with_payload=with_points, **query
            )
        return response.points

    async def _left(
        self,
        name: str,
        steps: "Sequence[_Step]",
        vectors: _Vectors,
        query_filter: models.Filter | None,
    ) -> dict[str, Any] | None:
        """Take all steps but the last; return that one's query, or None if nobody is left."""
        wanted = RestToGrpc.convert_filter(query_filter) if query_filter else None
        for number, step in enumerate(steps[:-1]):
            request = RestToGrpc.convert_query_request(
                models.QueryRequest(
                    query=vectors[step.size.vector_name],
                    using=step.size.vector_name,
                    params=step.params,
                    limit=step.limit,
                    with_payload=False,
                ),
                name,
            )
            if wanted is not None:
                request.filter.CopyFrom(wanted)
            with span("rerank" if number else "shortlist"):
                response = await self._retry.run("query_points", lambda: self._ask(request))  # noqa: B023
            ids = [point.id for point in response.result]
            if not ids:
                return None
            # Who is left fulfils the condition already.
            wanted = q.Filter(must=[q.Condition(has_id=q.HasIdCondition(has_id=ids))])
        last = steps[-1]
        return {
            "query": vectors[last.size.vector_name],
            "using": last.size.vector_name,
            "search_params": last.params,
            "query_filter": wanted,
        }

    async def _ask(self, request: q.QueryPoints) -> q.QueryResponse:
        # Of each hit the client's own method makes an object, which takes ten times as long.
        response: q.QueryResponse = await self._client.grpc_points.Query(
            request, timeout=self._timeout_s
        )
        return response


@dataclass(frozen=True, slots=True)
class _Step:
    """One cut: the best of those who are left, by one kind of number."""

    size: Size
    limit: int
    params: models.SearchParams


def _steps(plan: Plan, sizes: Sequence[Size]) -> Iterator[_Step]:
    by_key = {size.key: size for size in sizes}
    for place, stage in enumerate(plan.stages):
        size, is_last = by_key[stage.key], place == len(plan.stages) - 1
        is_exact = stage.exact or is_plain_rescoring(stage, size, is_first=place == 0)
        times = oversampling(stage, size)
        # Rescoring as many as are handed on changes their order only.
        is_rescored = times > 1 or (times > 0 and is_last)
        limit = math.ceil(max(1.0, times) * stage.candidates)
        yield _Step(size, limit, _params(stage.ef, is_exact, stage.ignore_quantization, 0.0))
        if is_rescored:
            params = _params(0, size.hnsw_m > 0, ignore=True, times=0.0)
            yield _Step(size, stage.candidates, params)


def nested_query(
    collection: Collection, plan: Plan, vectors: _Vectors, query_filter: models.Filter | None
) -> dict[str, Any]:
    """Return arguments of `query_points`: each stage around the one before it."""
    sizes = {size.key: size for size in collection.sizes}
    inner: list[models.Prefetch] = []
    for stage in plan.stages[:-1]:
        size = sizes[stage.key]
        inner = [
            models.Prefetch(
                query=vectors[size.vector_name],
                using=size.vector_name,
                params=_stage_params(stage, size, is_first=not inner),
                limit=per_shard(stage.candidates, collection.spread.shards, plan.limit),
                # What the first stage hands on is filtered already.
                filter=None if inner else query_filter,
                prefetch=inner or None,
            )
        ]
    size = sizes[plan.stages[-1].key]
    return {
        "query": vectors[size.vector_name],
        "using": size.vector_name,
        "search_params": _stage_params(plan.stages[-1], size, is_first=not inner),
        "query_filter": None if inner else query_filter,
        "prefetch": inner or None,
    }


def _stage_params(stage: Stage, size: Size, is_first: bool) -> models.SearchParams:
    is_exact = stage.exact or is_plain_rescoring(stage, size, is_first)
    times = oversampling(stage, size)
    return _params(stage.ef, is_exact, stage.ignore_quantization, times)


def _params(ef: int, is_exact: bool, ignore: bool, times: float) -> models.SearchParams:
    return models.SearchParams(
        hnsw_ef=ef or None,
        exact=is_exact,
        quantization=models.QuantizationSearchParams(
            ignore=ignore, rescore=times > 0, oversampling=times if times > 1 else None
        ),
    )
