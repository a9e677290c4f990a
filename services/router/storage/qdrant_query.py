"""Searches in Qdrant's words, and what a server answers."""

from collections.abc import Callable, Mapping
from typing import Any

from qdrant_client import models

from services.router.filters import Filter
from services.router.hybrid.text_index import TextIndex
from services.router.plan import Plan, Stage, oversampling
from services.router.rotation import Rotation
from services.router.sizes import Size, cut
from services.router.storage.conditions import to_conditions
from services.router.storage.store import (
    Collection,
    Point,
    ScoredPoint,
    from_payload,
    is_plain_rescoring,
)
from services.shared.vectors import Array


def nested_query(
    collection: Collection,
    plan: Plan,
    query_D: Array,
    rotation: Rotation | None,
    condition: Filter | None,
) -> dict[str, Any]:
    """Return arguments of `query_points`: each stage around the one before it."""
    sizes = {size.key: size for size in collection.sizes}
    vectors = cut(query_D[None], collection.sizes, rotation)
    query_filter = to_filter(condition)
    inner: list[models.Prefetch] = []
    for stage in plan.stages[:-1]:
        size = sizes[stage.key]
        inner = [
            models.Prefetch(
                query=vectors[size.vector_name][0].tolist(),
                using=size.vector_name,
                params=_search_params(stage, size, is_first=not inner),
                limit=stage.candidates,
                # What the first stage hands on is filtered already.
                filter=None if inner else query_filter,
                prefetch=inner or None,
            )
        ]
    size = sizes[plan.stages[-1].key]
    return {
        "query": vectors[size.vector_name][0].tolist(),
        "using": size.vector_name,
        "search_params": _search_params(plan.stages[-1], size, is_first=not inner),
        "query_filter": None if inner else query_filter,
        "prefetch": inner or None,
    }


def _search_params(stage: Stage, size: Size, is_first: bool) -> models.SearchParams:
    times = oversampling(stage, size)
    return models.SearchParams(
        hnsw_ef=stage.ef or None,
        exact=stage.exact or is_plain_rescoring(stage, size, is_first),
        quantization=models.QuantizationSearchParams(
            ignore=stage.ignore_quantization,
            rescore=times > 0,
            oversampling=times if times > 1 else None,
        ),
    )


def text_query(
    text_index: TextIndex, weights: Mapping[int, float], condition: Filter | None
) -> dict[str, Any]:
    """Return arguments of `query_points`: points whose texts hold the terms."""
    return {
        "query": models.SparseVector(indices=list(weights), values=list(weights.values())),
        "using": text_index.vector_name,
        "query_filter": to_filter(condition),
    }


def to_filter(condition: Filter | None) -> models.Filter | None:
    """Return a filter as the client has it."""
    return models.Filter.model_validate(to_conditions(condition)) if condition else None


def hits(points: list[models.ScoredPoint], to_score: Callable[[float], float]) -> list[ScoredPoint]:
    """Return what was found."""
    nothing = Point("", "", {})
    return [
        ScoredPoint(
            str(point.id),
            from_payload(point.payload) if point.payload else nothing,
            to_score(point.score),
        )
        for point in points
    ]
