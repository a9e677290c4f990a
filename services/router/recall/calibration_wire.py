"""Calibrations on the wire: protobuf on one side, the router's own types on the other."""

from services.router.recall.calibrate import DEFAULT_CONFIDENCE, DEFAULT_TARGET, Calibrate
from services.router.recall.calibration import Calibration, Objective, PlanRow, Recall, Source
from services.router.recall.queries import QuerySource
from services.router.recall.watched import Watched
from services.router.search import DEFAULT_LIMIT, read_vectors
from services.router.wire import write_plan
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.vectors import Array

_OBJECTIVES: dict[int, Objective] = {
    pb.OBJECTIVE_UNSPECIFIED: "latency",
    pb.OBJECTIVE_LATENCY: "latency",
    pb.OBJECTIVE_MEMORY: "memory",
}
_OBJECTIVE_VALUES: dict[Objective, "pb.Objective.ValueType"] = {
    "latency": pb.OBJECTIVE_LATENCY,
    "memory": pb.OBJECTIVE_MEMORY,
}
_SOURCES: dict[Source, "pb.QuerySource.ValueType"] = {
    "given": pb.QUERY_SOURCE_GIVEN,
    "recent": pb.QUERY_SOURCE_RECENT,
    "documents": pb.QUERY_SOURCE_DOCUMENTS,
}


def read_calibrate(request: pb.CalibrateRequest, full: int) -> Calibrate:
    """Read a request; `full` is the width of the collection's vectors."""
    if request.objective not in _OBJECTIVES:
        raise InvalidRequest(
            "objective must be unset, OBJECTIVE_LATENCY or OBJECTIVE_MEMORY", "objective"
        )
    return Calibrate(
        collection=request.collection,
        limit=request.limit or DEFAULT_LIMIT,
        target=request.recall_target or DEFAULT_TARGET,
        objective=_OBJECTIVES[request.objective],
        confidence=request.confidence or DEFAULT_CONFIDENCE,
        queries=QuerySource(
            texts=list(request.texts),
            vectors_QD=_read_queries(request.vectors, full) if request.vectors else None,
            space_id=request.space_id,
            slices=list(request.slices),
        ),
    )


def _read_queries(data: bytes, full: int) -> Array:
    return read_vectors(data, full, max(1, len(data) // (4 * full)), "vectors")


def write_calibration(calibration: Calibration, plot_png: bytes = b"") -> pb.Calibration:
    chosen = calibration.choose(calibration.target).row
    return pb.Calibration(
        created_at=calibration.created_at,
        num_points=calibration.num_points,
        shards=calibration.shards,
        limit=calibration.limit,
        confidence=calibration.confidence,
        source=_SOURCES[calibration.source],
        num_queries=calibration.num_queries,
        slice_queries=calibration.slice_queries,
        recall_target=calibration.target,
        objective=_OBJECTIVE_VALUES[calibration.objective],
        plans=[_write_row(row, calibration.limit) for row in calibration.plans],
        chosen=calibration.plans.index(chosen),
        slice_chosen=calibration.slice_chosen(),
        curves=[
            pb.Curve(size=size, candidates=[k for k, _ in curve], recalls=[r for _, r in curve])
            for size, curve in calibration.curves.items()
        ],
        plot_png=plot_png,
    )


def _write_row(row: PlanRow, limit: int) -> pb.MeasuredPlan:
    return pb.MeasuredPlan(
        plan=write_plan(row.plan(limit)),
        p50_ms=row.seconds_p50 * 1000,
        p99_ms=row.seconds_p99 * 1000,
        memory_bytes=row.memory_bytes,
        recalls={name: _write_recall(recall) for name, recall in row.recalls.items()},
    )


def _write_recall(recall: Recall) -> pb.MeasuredRecall:
    return pb.MeasuredRecall(
        mean=recall.mean,
        bound=recall.bound,
        promised_by_latency=recall.promised.get("latency"),
        promised_by_memory=recall.promised.get("memory"),
    )


def write_watched(slice_: str, watched: Watched) -> pb.SliceRecall:
    return pb.SliceRecall(
        slice=slice_,
        num_searches=watched.num_searches,
        num_measured=watched.num_measured,
        mean=watched.mean,
        lower=watched.lower,
        upper=watched.upper,
        recall_target=watched.target,
        alarm=watched.is_alarmed,
        lost_to_prefix=watched.losses["prefix"],
        lost_to_graph=watched.losses["graph"],
        lost_to_quantization=watched.losses["quantization"],
        lost_to_filter=watched.losses["filter"],
    )
