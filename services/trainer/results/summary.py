"""What a training changed, as one JSON object: each size, each slice, the queries that lost most.

Shapes: Q queries, or scored pairs; K sizes; S scores, as `evaluate.py`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.shared.card import Quality
from services.trainer.data.pairs import Kind
from services.trainer.jobs.events import Event
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.jobs.spec import JsonFile, Mining
from services.trainer.results.evaluate import Scores
from services.trainer.results.slices import SliceQuality

_NUM_LOSERS = 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Loser(_Part):
    """A held-out query that is answered worse than before, or a scored pair that fits worse."""

    query: str
    slice: str
    dim: int
    """The size at which it lost most."""
    before: float
    """The score that decides; of a pair, its part in it."""
    after: float


class Curve(_Part):
    """The loss while it trained."""

    steps: tuple[int, ...]
    loss: dict[int, tuple[float, ...]]
    """By size, one for each of the steps."""


class BytesPerVector(_Part):
    """What a vector of one size takes."""

    dim: int
    float32: int
    int8: int
    binary: int


class Summary(JsonFile):
    """The content of report.json."""

    model_id: str
    base_model: str
    hyperparameters: Hyperparameters
    data: str
    """What the user calls the training data."""
    data_digest: str
    kind: Kind = "pairs"
    num_pairs: int = Field(ge=1)
    """Examples of that kind."""
    quality: Quality
    mining: Mining | None = None
    """How negatives were mined; None: they were not."""
    caution: str = ""
    """What the quality is not worth, where it was measured on too little."""
    slices: tuple[SliceQuality, ...]
    """Those that lost most first, and those of few queries last."""
    slice_of_query: tuple[str, ...]
    """Of each held-out query, in the order of the scores; empty: none has one."""
    losers: tuple[Loser, ...]
    """Those that lost most, at most 20."""
    curve: Curve
    bytes_per_vector: tuple[BytesPerVector, ...]
    train_seconds: float


def find_losers(
    before_QKS: Scores,
    after_QKS: Scores,
    names_Q: Sequence[str],
    slices_Q: Sequence[str],
    dims: Sequence[int],
) -> tuple[Loser, ...]:
    """Return the queries, or scored pairs, that lost most at some size."""
    moved_QK = np.nan_to_num(after_QKS[:, :, 0] - before_QKS[:, :, 0])
    worst_Q = moved_QK.min(axis=1)
    found = []
    for row in np.argsort(worst_Q, kind="stable")[:_NUM_LOSERS]:
        if worst_Q[row] >= 0:
            break
        place = int(moved_QK[row].argmin())
        found.append(
            Loser(
                query=names_Q[row],
                slice=slices_Q[row] if slices_Q else "",
                dim=dims[place],
                before=float(before_QKS[row, place, 0]),
                after=float(after_QKS[row, place, 0]),
            )
        )
    return tuple(found)


def read_curve(events: Iterable[Event]) -> Curve:
    """Return the loss at the steps that events tell of; of a step that was done again, the last."""
    losses = {event.step: event.loss for event in events if event.loss}
    steps = sorted(losses)
    dims = sorted({dim for loss in losses.values() for dim in loss})
    known = [step for step in steps if losses[step].keys() == set(dims)]
    return Curve(
        steps=tuple(known),
        loss={dim: tuple(losses[step][dim] for step in known) for dim in dims},
    )


def bytes_of(dims: Sequence[int]) -> tuple[BytesPerVector, ...]:
    return tuple(
        BytesPerVector(dim=dim, float32=4 * dim, int8=dim, binary=-(-dim // 8)) for dim in dims
    )
