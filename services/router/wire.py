"""Protobuf on one side, the router's own types on the other. Nothing else knows both.

What the wire can say and our types cannot (a value that is not set, an unknown enum) is refused
here; all other checks are where the types are used.
"""

from collections.abc import Iterable, Mapping

from services.router import filters
from services.router.attributes import Attributes, Value
from services.router.catalog import Description
from services.router.changes.agreements import Agreement
from services.router.changes.change import Calibrated, read_change
from services.router.changes.migrate import Migrate
from services.router.changes.running import Running
from services.router.hybrid.hybrid import SideScores
from services.router.hybrid.hybrid_wire import (
    read_cross_encoder,
    read_hybrid,
    write_cross_encoder,
    write_text_index,
)
from services.router.plan import Plan, Stage
from services.router.recall.calibrate import DEFAULT_TARGET
from services.router.recall.promise import Promise
from services.router.search import DEFAULT_LIMIT, Found, Search, TextReport
from services.router.sizes import Placement, Quantization, SizeRequest
from services.router.spread import Spread
from services.router.storage.store import Point
from services.router.trainer_client import NestQuality
from services.router.upsert import Acknowledged, Batch
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb

_QUANTIZATION_VALUES: dict[Quantization, "pb.Quantization.ValueType"] = {
    "none": pb.QUANTIZATION_UNSPECIFIED,
    "int8": pb.QUANTIZATION_INT8,
    "binary": pb.QUANTIZATION_BINARY,
    "turbo4": pb.QUANTIZATION_TURBO4,
    "turbo2": pb.QUANTIZATION_TURBO2,
    "turbo1": pb.QUANTIZATION_TURBO1,
}
_PLACEMENTS: dict[int, Placement | None] = {
    pb.PLACEMENT_UNSPECIFIED: None,
    pb.PLACEMENT_CACHED: "cached",
    pb.PLACEMENT_COLD: "cold",
    pb.PLACEMENT_PINNED: "pinned",
}
_PLACEMENT_VALUES: dict[Placement | None, "pb.Placement.ValueType"] = {
    None: pb.PLACEMENT_UNSPECIFIED,
    "cached": pb.PLACEMENT_CACHED,
    "cold": pb.PLACEMENT_COLD,
    "pinned": pb.PLACEMENT_PINNED,
}
_QUANTIZATIONS: dict[int, Quantization] = {v: name for name, v in _QUANTIZATION_VALUES.items()}


def read_sizes(sizes: Iterable[pb.Size]) -> list[SizeRequest]:
    return [_read_size(size) for size in sizes]


def _read_size(size: pb.Size) -> SizeRequest:
    if size.quantization not in _QUANTIZATIONS:
        accepted = ", ".join(map(pb.Quantization.Name, _QUANTIZATION_VALUES.values()))
        raise InvalidRequest(f"sizes: quantization must be unset or one of {accepted}", "sizes")
    if not {size.placement, size.index_placement} <= _PLACEMENTS.keys():
        raise InvalidRequest(
            "sizes: placement must be unset, PLACEMENT_CACHED or PLACEMENT_COLD; index_placement "
            "may be PLACEMENT_PINNED too",
            "sizes",
        )
    return SizeRequest(
        size.dim,
        _QUANTIZATIONS[size.quantization],
        size.hnsw_m if size.HasField("hnsw_m") else None,
        _PLACEMENTS[size.placement],
        size.nested,
        _PLACEMENTS[size.index_placement],
    )


def read_spread(request: pb.CreateCollectionRequest | pb.MigrateCollectionRequest) -> Spread:
    return Spread(request.shards, request.replicas)


def read_calibrated(request: pb.NestCollectionRequest) -> Calibrated | None:
    """Read how a collection is calibrated after a change; None: as it was."""
    if not (request.limit or request.recall_target):
        return None
    return Calibrated(
        limit=request.limit or DEFAULT_LIMIT,
        target=request.recall_target or DEFAULT_TARGET,
    )


def write_change(running: Running) -> pb.Change:
    return pb.Change(
        kind=running.change.kind,
        step=running.progress.step or running.change.step,
        done=running.progress.done,
        total=running.progress.total,
    )


def write_quality(row: NestQuality) -> pb.NestedQuality:
    return pb.NestedQuality(dim=row.dim, plain=row.plain, pca=row.pca, nested=row.nested)


def write_collection(
    description: Description,
    running: Running | None = None,
    agreements: Mapping[str, Agreement] | None = None,
) -> pb.Collection:
    """Write a collection.

    Args:
        description: of the collection.
        running: its change, if this router is at it.
        agreements: what it has in common with the collection that it is migrated from.
    """
    collection = description.collection
    change = None
    if running is not None:
        change = write_change(running)
    elif kept := read_change(collection):
        change = pb.Change(
            kind=kept.kind,
            step=kept.step,
            error=kept.error,
            agreements=[
                pb.SliceAgreement(slice=slice_, num_compared=a.num_compared, overlap=a.overlap)
                for slice_, a in (agreements or {}).items()
            ],
        )
    return pb.Collection(
        name=collection.name,
        model=collection.model,
        space_id=collection.space_id,
        sizes=[
            pb.Size(
                dim=size.dim,
                quantization=_QUANTIZATION_VALUES[size.quantization],
                hnsw_m=size.hnsw_m,
                placement=_PLACEMENT_VALUES[size.placement],
                index_placement=_PLACEMENT_VALUES[size.index_placement],
                nested=size.is_nested,
            )
            for size in collection.sizes
        ],
        num_points=description.num_points,
        aliases=description.aliases,
        memory=[
            pb.SizeMemory(
                dim=m.key[0],
                nested=m.key[1],
                vector_bytes=m.vector_bytes,
                graph_bytes=m.graph_bytes,
            )
            for m in description.memory
        ],
        change=change,
        text_index=write_text_index(collection.text_index) if collection.text_index else None,
        shards=collection.spread.shards,
        replicas=collection.spread.replicas,
    )


def read_batch(request: pb.UpsertRequest) -> Batch:
    return Batch(
        request.collection,
        [
            Point(point.id, point.text, read_attributes(point.attributes.items()))
            for point in request.points
        ],
        request.vectors or None,
        request.space_id,
    )


def write_acknowledged(acknowledged: Acknowledged) -> pb.UpsertResponse:
    return pb.UpsertResponse(
        num_points=acknowledged.num_points,
        total_points=acknowledged.total_points,
        truncated_ids=acknowledged.truncated_ids,
    )


def read_attributes(items: Iterable[tuple[str, pb.AttributeValue]]) -> Attributes:
    return {key: _read_value(key, value) for key, value in items}


def _read_value(key: str, value: pb.AttributeValue) -> Value:
    kind = value.WhichOneof("value")
    if kind is None:
        raise InvalidRequest(
            f"the attribute {key!r} needs a string_value, int_value, double_value or bool_value"
        )
    read: Value = getattr(value, kind)
    return read


def _write_value(value: Value, message: pb.AttributeValue) -> None:
    if isinstance(value, bool):  # before int: a bool is one in Python
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    else:
        message.string_value = value


def read_filter(message: pb.Filter) -> filters.Filter:
    match message.WhichOneof("condition"):
        case "all":
            return filters.All(tuple(map(read_filter, message.all.filters)))
        case "any":
            return filters.Any(tuple(map(read_filter, message.any.filters)))
        case "negated":
            return filters.Negated(read_filter(message.negated))
        case "equals":
            key = message.equals.key
            return filters.Equals(key, _read_value(key, message.equals.value))
        case "range":
            return _read_range(message.range)
        case "any_of":
            key = message.any_of.key
            return filters.AnyOf(key, tuple(_read_value(key, v) for v in message.any_of.values))
        case _:
            raise InvalidRequest(
                "filter: each filter needs one of all, any, negated, equals, range and any_of",
                "filter",
            )


def _read_range(message: pb.Range) -> filters.Range:
    return filters.Range(
        message.key,
        gt=message.gt if message.HasField("gt") else None,
        gte=message.gte if message.HasField("gte") else None,
        lt=message.lt if message.HasField("lt") else None,
        lte=message.lte if message.HasField("lte") else None,
    )


def read_plan(message: pb.Plan) -> Plan:
    return Plan(
        tuple(
            Stage(
                s.dim, s.candidates, s.exact, s.ef, s.ignore_quantization,
                s.oversampling if s.HasField("oversampling") else None, s.nested,
            )
            for s in message.stages
        )
    )  # fmt: skip


def write_plan(plan: Plan) -> pb.Plan:
    return pb.Plan(
        stages=[
            pb.Stage(
                dim=stage.dim,
                candidates=stage.candidates,
                exact=stage.exact,
                ef=stage.ef,
                ignore_quantization=stage.ignore_quantization,
                oversampling=stage.oversampling,
                nested=stage.is_nested,
            )
            for stage in plan.stages
        ]
    )


def read_search(request: pb.SearchRequest, tenant: str | None) -> Search:
    query = request.WhichOneof("query")
    return Search(
        collection=request.collection,
        text=request.text if query == "text" else None,
        vector=request.vector if query == "vector" else None,
        space_id=request.space_id,
        limit=request.limit or DEFAULT_LIMIT,
        condition=read_filter(request.filter) if request.HasField("filter") else None,
        plan=read_plan(request.plan) if request.HasField("plan") else None,
        explain=request.explain,
        measure_recall=request.measure_recall,
        recall_target=request.recall_target if request.HasField("recall_target") else None,
        slice=request.slice,
        max_seconds=request.max_engine_ms / 1000 if request.HasField("max_engine_ms") else None,
        max_bytes=(
            request.max_bytes_per_point if request.HasField("max_bytes_per_point") else None
        ),
        hybrid=read_hybrid(request.hybrid) if request.HasField("hybrid") else None,
        cross_encoder=(
            read_cross_encoder(request.cross_encoder) if request.HasField("cross_encoder") else None
        ),
        tenant=tenant,
    )


def write_found(found: Found, tenant: str | None) -> pb.SearchResponse:
    """Write an answer for a tenant, or (None) for an operator, who is told whose each point is."""
    response = pb.SearchResponse(
        plan=write_plan(found.plan),
        collection=found.collection.name,
        space_id=found.collection.space_id,
        encode_seconds=found.encode_seconds,
        search_seconds=found.search_seconds,
        stages=[
            pb.StageReport(
                dim=s.size[0], nested=s.size[1], candidates=s.candidates, seconds=s.seconds
            )
            for s in found.stages
        ],
        recall=found.recall,
        exact_seconds=found.exact_seconds,
        promise=_write_promise(found.promise) if found.promise else None,
        text=_write_text(found.text) if found.text else None,
        cross_encoder=write_cross_encoder(found.cross_encoder) if found.cross_encoder else None,
    )
    # In place: messages that are given to another one are copied into it.
    for place, hit in enumerate(found.hits):
        point = hit.point
        rank = found.shortlist_ranks[place] if found.shortlist_ranks else 0
        sides = found.sides[place] if found.sides else SideScores(None, None)
        written = response.hits.add(
            id=point.id, score=hit.score, text=point.text, shortlist_rank=rank,
            cosine=sides.cosine, bm25=sides.text_score,
            tenant=(point.tenant or "") if tenant is None else "",
        )  # fmt: skip
        for key, value in point.attributes.items():
            _write_value(value, written.attributes[key])
    return response


def _write_text(text: TextReport) -> pb.TextReport:
    return pb.TextReport(terms=text.terms, candidates=text.candidates, seconds=text.seconds)


def _write_promise(promise: Promise) -> pb.Promise:
    return pb.Promise(
        recall_target=promise.target,
        recall=promise.recall,
        met=promise.is_met,
        exact=promise.basis == "exact",
        slice=promise.slice,
        note=promise.note,
    )


def read_migrate(request: pb.MigrateCollectionRequest) -> Migrate:
    return Migrate(
        request.source, request.target, request.model, read_sizes(request.sizes), request.alias,
        request.hold, request.watch, read_spread(request),
    )  # fmt: skip
