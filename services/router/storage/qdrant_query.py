"""Filters and texts' words as Qdrant is asked for them, and what a server answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from services.router.filters import Filter
from services.router.hybrid.text_index import TextIndex
from services.router.storage.conditions import to_conditions
from services.router.storage.store import (
    Page,
    Point,
    ScoredPoint,
    from_payload,
)
from services.shared.vectors import normalize


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


def to_page(records: Sequence[models.Record], full: str | None) -> Page:
    """Return points as they were read, with the vectors of that name, if one is given."""
    points = [from_payload(record.payload) for record in records if record.payload]
    if full is None or not records:
        return Page(points, None)
    rows: list[Any] = [record.vector for record in records]
    return Page(points, None, normalize(np.array([row[full] for row in rows], dtype=np.float32)))
