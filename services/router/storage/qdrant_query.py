"""Filters and texts' words as Qdrant is asked for them, and what a server answers."""

from collections.abc import Callable, Mapping
from typing import Any

from qdrant_client import models

from services.router.filters import Filter
from services.router.hybrid.text_index import TextIndex
from services.router.storage.conditions import to_conditions
from services.router.storage.store import (
    Point,
    ScoredPoint,
    from_payload,
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
