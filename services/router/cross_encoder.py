"""The last word of a cross-encoder: query and text read together, for a few of the best hits.

The encoder scores; the order of the hits is made here. What a plan promises is promised of what
the cross-encoder is given.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.encoder_client import EncoderClient
from services.router.storage.store import ScoredPoint
from services.shared.errors import InvalidRequest

_DEFAULT_CANDIDATES = 50


@dataclass(frozen=True, slots=True)
class CrossEncoder:
    """Who has the last word, and on how many hits."""

    model: str
    """Id or alias of a cross-encoder that the encoder serves."""
    candidates: int = 0
    """Hits that are scored; 0: 50, or as many as are wanted."""

    def depth(self, limit: int) -> int:
        """Return how many hits must be found for it."""
        return self.candidates or max(_DEFAULT_CANDIDATES, limit)


@dataclass(frozen=True, slots=True)
class CrossEncoderReport:
    """What it did."""

    model: str
    """Id of the model."""
    candidates: int
    """Hits that were scored."""
    truncated: int
    """How many of them were too long for it, and were cut."""
    seconds: float


def check_cross_encoder(wanted: CrossEncoder, limit: int, max_limit: int) -> None:
    """Refuse what is out of bounds; InvalidRequest."""
    if not wanted.model:
        raise InvalidRequest(
            "cross_encoder: model must name a cross-encoder that the encoder serves",
            "cross_encoder",
        )
    if wanted.candidates and not limit <= wanted.candidates <= max_limit:
        raise InvalidRequest(
            f"cross_encoder: candidates must be 0, or between the limit ({limit}) and {max_limit}, "
            f"got {wanted.candidates}",
            "cross_encoder",
        )


async def cross_encode(
    encoder: EncoderClient,
    wanted: CrossEncoder,
    query: str,
    hits: Sequence[ScoredPoint],
    tenant: str | None,
) -> tuple[list[int], list[float], CrossEncoderReport]:
    """Put hits in the order of their cross-encoder's scores.

    Args:
        encoder: serves the model.
        wanted: which model.
        query: what was searched for.
        hits: what was found; those without a text cannot be read, and come last, in their order.
        tenant: whom it is for; None: an operator.

    Returns:
        Places of the hits in their new order, their scores, in that order, and what was done. A hit
        without a text has the lowest score of all.

    Raises:
        NotFound, WrongState: the encoder serves no such model, or it is no cross-encoder.
        Overloaded: the encoder has too much to do.
    """
    read = [place for place, hit in enumerate(hits) if hit.point.text.strip()]
    start = time.perf_counter()
    if not read:
        return list(range(len(hits))), [0.0] * len(hits), CrossEncoderReport(wanted.model, 0, 0, 0)
    texts = [hits[place].point.text for place in read]
    told = await encoder.rerank(wanted.model, query, texts, tenant)
    score_of = dict(zip(read, told.scores, strict=True))
    best_first = sorted(read, key=lambda place: -score_of[place])
    unread = [place for place in range(len(hits)) if place not in score_of]
    order, lowest = [*best_first, *unread], min(told.scores)
    report = CrossEncoderReport(
        told.model, len(read), len(told.truncated), time.perf_counter() - start
    )
    return order, [score_of.get(place, lowest) for place in order], report
