"""A change of a collection that is under way: what is kept with the collection until it ends."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from services.router.recall.calibration import Calibration, Objective
from services.router.sizes import Placement, Quantization, SizeRequest
from services.router.storage.store import Collection

Kind = Literal["resize", "nest", "migrate"]
Step = Literal["sample", "learn", "build", "copy", "calibrate", "ready", "watch"]
_WAITING: tuple[Step, ...] = ("ready", "watch")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SizeRow(_Frozen):
    """A size that is wanted; see `sizes.SizeRequest`."""

    dim: int
    quantization: Quantization
    hnsw_m: int | None
    placement: Placement | None
    is_nested: bool
    index_placement: Placement | None = None


class Calibrated(_Frozen):
    """How the collection shall be calibrated in the end."""

    limit: int = 10
    target: float = 0.95
    objective: Objective = "latency"
    confidence: float = 0.95

    @classmethod
    def of(cls, collection: Collection) -> Self | None:
        """Return how a collection was calibrated; None: it was not."""
        if collection.calibration is None:
            return None
        calibration = Calibration.model_validate(collection.calibration)
        return cls(
            limit=calibration.limit,
            target=calibration.target,
            objective=calibration.objective,
            confidence=calibration.confidence,
        )


class Change(_Frozen):
    """What is to be done, how far it is, and which router does it."""

    version: Literal[1] = 1
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    kind: Kind
    step: Step
    calibrated: Calibrated | None
    """None: it is not calibrated in the end."""
    owner: str = ""
    seen_at: float = Field(default_factory=time.time)
    """Unix time, seconds: when its router last said that it is at it."""
    error: str = ""
    """Why it ended before its end; "": it has not."""

    sizes: tuple[SizeRow, ...] = ()
    """Of other sizes: all that the collection shall have."""
    language: str = ""
    """Of the text index that it shall have, too; "": as it is."""
    samples: tuple[str, ...] = ()
    """Files at the trainer that are to be deleted: documents' vectors, and queries' or ""."""
    job_id: str = ""
    """Of the trainer, once there is one."""

    source: str = ""
    """Of a migration: the collection that this one is filled from."""
    alias: str = ""
    holds: bool = False
    keeps_source: bool = False
    after: str | None = None
    """Where the next page of the source begins."""
    num_copied: int = 0
    is_copied: bool = False

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for somebody's word, and no router is at it."""
        return self.step in _WAITING

    def requests(self) -> list[SizeRequest]:
        """Return the sizes as `resolve_sizes` takes them."""
        return [SizeRequest(**size.model_dump()) for size in self.sizes]


def size_rows(requests: Sequence[SizeRequest]) -> tuple[SizeRow, ...]:
    """Return sizes as they are kept."""
    return tuple(SizeRow(**asdict(request)) for request in requests)


def read_change(collection: Collection) -> Change | None:
    """Return what is kept of a collection's change; None: it has none."""
    return Change.model_validate(collection.change) if collection.change else None
