"""A change of a collection that is under way: what is kept with the collection until it ends."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from services.router.recall.calibration import Calibration, Objective
from services.router.sizes import Placement, Quantization, SizeRequest

Kind = Literal["resize", "nest"]
Step = Literal["sample", "learn", "build", "calibrate"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SizeRow(_Frozen):
    """A size that is wanted; see `sizes.SizeRequest`."""

    dim: int
    quantization: Quantization
    hnsw_m: int | None
    placement: Placement | None
    is_nested: bool


class Calibrated(_Frozen):
    """How the collection shall be calibrated in the end."""

    limit: int = 10
    target: float = 0.95
    objective: Objective = "latency"
    confidence: float = 0.95

    @classmethod
    def like(cls, calibration: Calibration) -> Self:
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
    sizes: tuple[SizeRow, ...]
    """All that the collection shall have."""
    calibrated: Calibrated | None
    """None: it is not calibrated in the end."""
    step: Step
    job_id: str = ""
    """Of the trainer, once there is one."""
    owner: str = ""
    seen_at: float = Field(default_factory=time.time)
    """Unix time, seconds: when its router last said that it is at it."""
    error: str = ""
    """Why it ended before its end; "": it has not."""

    def requests(self) -> list[SizeRequest]:
        """Return the sizes as `resolve_sizes` takes them."""
        return [SizeRequest(**size.model_dump()) for size in self.sizes]


def size_rows(requests: Sequence[SizeRequest]) -> tuple[SizeRow, ...]:
    """Return sizes as they are kept."""
    return tuple(SizeRow(**asdict(request)) for request in requests)
