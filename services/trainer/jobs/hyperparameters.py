"""How a job trains: what the caller left open is filled in, what cannot work is refused."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.shared.errors import InvalidRequest

Method = Literal["adaptor", "full", "nest"]
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
# See nest.py.
_NEST_STEPS, _MIN_NEST_STEPS = 250, 40
_NEST_BATCH = 512
_NEST_RATE = 4e-3
_NEST_MULTIPLE = 8
_MAX_DEFAULT = 512
MAX_NESTED = 256
"""Widest size that nesting learns: the principal axes alone keep nearly all at longer ones."""


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
    n_epochs: int = 0
    """Passes over the data, in the place of `steps`."""
    learning_rate_multiplier: float = 0.0
    """Of the method's own learning rate, in the place of `learning_rate`."""


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
        if self.method == "nest":
            return tuple(dim for dim in self.matryoshka_dims if dim <= MAX_NESTED)
        return self.matryoshka_dims if self.head == "rotation" else self.dims


def fill(wanted: Wanted, full: int, num_pairs: int) -> Hyperparameters:
    """Check what the caller wants and fill in the rest.

    Args:
        wanted: see there.
        full: the base model's width, or the vectors'.
        num_pairs: training pairs, without the held-out ones; or vectors.

    Raises:
        InvalidRequest: names the field and what it may be.
    """
    method = wanted.method
    if wanted.head and method != "adaptor":
        raise _wrong("head", "be left out for a method other than METHOD_ADAPTOR")
    if not 0 <= wanted.steps <= MAX_STEPS:
        raise _wrong("steps", f"be from 0 to at most {MAX_STEPS}, got {wanted.steps}")
    if not 0 <= wanted.seed < 2**64:
        raise _wrong("seed", f"be from 0 to 2^64 - 1, got {wanted.seed}")
    if not 0 <= wanted.n_epochs <= MAX_STEPS or (wanted.n_epochs and wanted.steps):
        raise _wrong("n_epochs", "be 0 or more, and left out beside steps")
    multiplier = wanted.learning_rate_multiplier
    if not 0 <= multiplier <= 1000 or (multiplier and wanted.learning_rate):
        raise _wrong(
            "learning_rate_multiplier", "be from 0 to 1000, and left out beside learning_rate"
        )
    if wanted.batch_size < 0 or wanted.batch_size == 1 or wanted.batch_size > MAX_BATCH:
        raise _wrong("batch_size", f"be between 2 and {MAX_BATCH}, got {wanted.batch_size}")
    rate = wanted.learning_rate
    if not math.isfinite(rate) or not 0 <= rate <= 1:
        raise _wrong("learning_rate", f"be above 0 and at most 1, got {rate}")
    head: Head | None = (wanted.head or "rotation") if method == "adaptor" else None
    batches = {"adaptor": _ADAPTOR_BATCH, "full": _FULL_BATCH, "nest": _NEST_BATCH}
    batch = min(wanted.batch_size or batches[method], num_pairs)
    steps = {
        "adaptor": _ADAPTOR_STEPS,
        "full": -(-num_pairs // batch),
        "nest": _nest_steps(num_pairs, batch),
    }
    rates = {"adaptor": _ADAPTOR_RATE[head or "rotation"], "full": _FULL_RATE, "nest": _NEST_RATE}
    epochs = -(-wanted.n_epochs * num_pairs // batch)
    dims = _check_dims(wanted.matryoshka_dims, full)
    if method == "nest":
        dims = _check_nested(dims, full) or nested_dims(full)
    return Hyperparameters(
        method=method,
        head=head,
        matryoshka_dims=dims or default_dims(full),
        full=full,
        steps=wanted.steps or min(epochs, MAX_STEPS) or steps[method],
        batch_size=batch,
        learning_rate=rate or min(1.0, rates[method] * (multiplier or 1.0)),
        seed=wanted.seed,
    )


def _nest_steps(num_vectors: int, batch: int) -> int:
    """Few vectors are soon learned by heart: ten times each is enough."""
    return min(max(_MIN_NEST_STEPS, 10 * num_vectors // batch), _NEST_STEPS)


def nested_dims(full: int) -> tuple[int, ...]:
    """Return the powers of two from 16 to half the full size, at most 512.

    >>> nested_dims(384)
    (16, 32, 64, 128)
    """
    dims = default_dims(full)
    return tuple(dim for dim in dims if dim <= min(full // 2, _MAX_DEFAULT)) or dims[:1]


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
        raise _wrong("matryoshka_dims", f"be between 1 and {full}, the full size")
    return tuple(dim for dim in dims if dim != full)


def _check_nested(dims: tuple[int, ...], full: int) -> tuple[int, ...]:
    if any(dim % _NEST_MULTIPLE for dim in dims):
        raise _wrong(
            "matryoshka_dims", f"be multiples of {_NEST_MULTIPLE} below {full} for METHOD_NEST"
        )
    if dims and dims[0] > MAX_NESTED:
        raise _wrong("matryoshka_dims", f"hold one of at most {MAX_NESTED} for METHOD_NEST")
    return dims


def _wrong(field: str, must: str) -> InvalidRequest:
    return InvalidRequest(f"hyperparameters.{field} must {must}", f"hyperparameters.{field}")
