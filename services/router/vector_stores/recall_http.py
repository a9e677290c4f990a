"""Calibrations and the live recall of vector stores, as HTTP routes: ours, in OpenAI's style."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.router.recall.calibrate import DEFAULT_CONFIDENCE, DEFAULT_TARGET, Calibrate
from services.router.recall.calibration import Calibration, PlanRow
from services.router.recall.queries import QuerySource
from services.router.recall.watched import Watched
from services.router.vector_stores.body import CalibrateBody, QueryBody, read_body_as
from services.router.vector_stores.recall import StoreRecall
from services.router.vector_stores.routing import write_plan
from services.router.vector_stores.stores_http import store_id
from services.shared.auth import caller
from services.shared.http import while_connected

_STORE = "/v1/vector_stores/{vector_store_id}"
OPEN_TO_TENANTS = frozenset({f"GET {_STORE}/recall"})
"""As the RPCs are: what was measured of everybody's chunks is for operators."""


class VectorStoreRecallHttp:
    """The routes.

    Args:
        recall: returns what does what they ask for; called once the router has started.
        max_body_bytes: longest body.
    """

    def __init__(self, recall: Callable[[], StoreRecall], max_body_bytes: int) -> None:
        self._recall = recall
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        return [
            Route(f"{_STORE}/calibrate", self._calibrate, methods=["POST"]),
            Route(f"{_STORE}/calibration", self._get, methods=["GET"]),
            Route(f"{_STORE}/recall", self._seen, methods=["GET"]),
        ]

    async def _calibrate(self, request: Request) -> Response:
        body = await read_body_as(CalibrateBody, request, self._max_body_bytes)
        id_ = store_id(request)
        measuring = self._recall().calibrate(id_, _read(body), caller().tenant)
        return JSONResponse(write_calibration(id_, await while_connected(request, measuring)))

    async def _get(self, request: Request) -> Response:
        id_ = store_id(request)
        calibration = await self._recall().calibration(id_, caller().tenant)
        return JSONResponse(write_calibration(id_, calibration))

    async def _seen(self, request: Request) -> Response:
        seen = await self._recall().seen(store_id(request), caller().tenant)
        data = [_write_watched(slice_, watched) for slice_, watched in seen.items()]
        return JSONResponse({"object": "list", "data": data, "has_more": False})


def _read(body: CalibrateBody) -> Calibrate:
    queries = [
        query if isinstance(query, QueryBody) else QueryBody(text=query)
        for query in body.queries or []
    ]
    return Calibrate(
        collection="",  # found by the store
        limit=body.max_num_results,
        target=body.recall_target or DEFAULT_TARGET,
        objective=body.objective,
        confidence=body.confidence or DEFAULT_CONFIDENCE,
        queries=QuerySource(
            texts=[query.text for query in queries], slices=[query.slice for query in queries]
        ),
    )


def write_calibration(store_id: str, calibration: Calibration) -> dict[str, object]:
    """Write what was measured of a store; see `Calibration` in router.proto."""
    return {
        "object": "vector_store.calibration",
        "vector_store_id": store_id,
        "created_at": calibration.created_at,
        "num_points": calibration.num_points,
        "max_num_results": calibration.limit,
        "confidence": calibration.confidence,
        "source": calibration.source,
        "num_queries": calibration.num_queries,
        "slice_queries": calibration.slice_queries,
        "recall_target": calibration.target,
        "objective": calibration.objective,
        "plans": [_write_row(row, calibration.limit) for row in calibration.plans],
        "chosen": calibration.plans.index(calibration.choose(calibration.target).row),
        "slice_chosen": calibration.slice_chosen(),
        "curves": {
            size: [{"candidates": k, "recall": recall} for k, recall in curve]
            for size, curve in calibration.curves.items()
        },
    }


def _write_row(row: PlanRow, limit: int) -> dict[str, object]:
    return {
        "plan": write_plan(row.plan(limit)),
        "p50_ms": row.seconds_p50 * 1000,
        "p99_ms": row.seconds_p99 * 1000,
        "bytes_per_point": row.memory_bytes,
        "recalls": {
            slice_: {
                "mean": recall.mean,
                "bound": recall.bound,
                "promised_by_latency": recall.promised.get("latency"),
                "promised_by_memory": recall.promised.get("memory"),
            }
            for slice_, recall in row.recalls.items()
        },
    }


def _write_watched(slice_: str, watched: Watched) -> dict[str, object]:
    return {
        "object": "vector_store.slice_recall",
        "slice": slice_,
        "num_searches": watched.num_searches,
        "num_measured": watched.num_measured,
        "mean": watched.mean if watched.num_measured else None,
        "lower": watched.lower,
        "upper": watched.upper,
        "recall_target": watched.target,
        "alarm": watched.is_alarmed,
        "lost_to": watched.losses,
    }
