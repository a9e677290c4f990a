"""How a job trains: what the caller left open is filled in, what cannot work is refused."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.shared.errors import InvalidRequest

Method = Literal["adaptor", "full"]
Head = Literal["rotation", "dense"]

MAX_STEPS = 1_000_000
MAX_BATCH = 16_384  # its square of cosines is 1 GiB
MAX_DIMS = 64
_SMALLEST_DIM = 16  # below, even a model trained for the size alone ranks badly
# Measured on two collections of questions and answers, on two cores; see bench/adaptor.py.
_ADAPTOR_STEPS = 160  # 250 give the same
_ADAPTOR_BATCH = 1024
_ADAPTOR_RATE = {"rotation": 1e-2, "dense": 1e-3}
_FULL_BATCH = 32
_FULL_RATE = 2e-5  # the usual one for fine-tuning BERT-like encoders


class Wanted(BaseModel):
    """Hyperparameters as the caller gave them; 0 or empty: choose for me."""

    model_config = ConfigDict(frozen=True)

    method: Method = "adaptor"
    head: Head | None = None
    matryoshka_dims: tuple[int, ...] = ()
    steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    seed: int = 0


class Hyperparameters(BaseModel):
    """Hyperparameters with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    head: Head | None
    """None: the method has no head."""
    matryoshka_dims: tuple[int, ...] = Field(min_length=1)
    """Ascending, without the full size."""
    full: int
    """The full size."""
    steps: int
    batch_size: int
    learning_rate: float
    seed: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(dim >= self.full for dim in self.matryoshka_dims):
            raise ValueError("matryoshka_dims must be below the full size")
        return self

    @property
    def dims(self) -> tuple[int, ...]:
        """All sizes of the trained model, the full one last."""
        return (*self.matryoshka_dims, self.full)

    @property
    def trained_dims(self) -> tuple[int, ...]:
        """Sizes in the loss: a rotation cannot change the full one."""
        return self.matryoshka_dims if self.head == "rotation" else self.dims


def fill(wanted: Wanted, full: int, num_pairs: int) -> Hyperparameters:
    """Check what the caller wants and fill in the rest.

    Args:
        wanted: see there.
        full: the base model's width.
        num_pairs: training pairs, without the held-out ones.

    Raises:
        InvalidRequest: names the field and what it may be.
    """
    adaptor = wanted.method == "adaptor"
    if wanted.head and not adaptor:
        raise _wrong("head", "be left out for METHOD_FULL, which trains all weights")
    if wanted.steps > MAX_STEPS:
        raise _wrong("steps", f"be at most {MAX_STEPS}, got {wanted.steps}")
    if wanted.batch_size == 1 or wanted.batch_size > MAX_BATCH:
        raise _wrong("batch_size", f"be between 2 and {MAX_BATCH}, got {wanted.batch_size}")
    rate = wanted.learning_rate
    if not math.isfinite(rate) or not 0 <= rate <= 1:
        raise _wrong("learning_rate", f"be above 0 and at most 1, got {rate}")
    head: Head | None = (wanted.head or "rotation") if adaptor else None
    batch = wanted.batch_size or (_ADAPTOR_BATCH if adaptor else _FULL_BATCH)
    batch = min(batch, num_pairs)
    return Hyperparameters(
        method=wanted.method,
        head=head,
        matryoshka_dims=_check_dims(wanted.matryoshka_dims, full) or default_dims(full),
        full=full,
        steps=wanted.steps or (_ADAPTOR_STEPS if adaptor else -(-num_pairs // batch)),
        batch_size=batch,
        learning_rate=rate or (_ADAPTOR_RATE[head] if head else _FULL_RATE),
        seed=wanted.seed,
    )


def default_dims(full: int) -> tuple[int, ...]:
    """Return the powers of two from 16 to below the full size.

    >>> default_dims(384)
    (16, 32, 64, 128, 256)
    """
    dims = [2**power for power in range(4, 32) if _SMALLEST_DIM <= 2**power < full]
    return tuple(dims) or (max(1, full // 2),)


def _check_dims(dims: tuple[int, ...], full: int) -> tuple[int, ...]:
    """Return the sizes without the full one, which every model has."""
    if list(dims) != sorted(set(dims)) or len(dims) > MAX_DIMS:
        raise _wrong("matryoshka_dims", f"be at most {MAX_DIMS} sizes, ascending, each once")
    if dims and not (dims[0] >= 1 and dims[-1] <= full):
        raise _wrong("matryoshka_dims", f"be between 1 and {full}, the base model's full size")
    return tuple(dim for dim in dims if dim != full)


def _wrong(field: str, must: str) -> InvalidRequest:
    return InvalidRequest(f"hyperparameters.{field} must {must}", f"hyperparameters.{field}")
