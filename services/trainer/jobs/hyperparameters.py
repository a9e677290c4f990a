"""How a job trains: what the caller left open is filled in, what cannot work is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.shared.errors import InvalidRequest

Method = Literal["adaptor", "full", "nest", "lora", "static", "distill"]
PICTURE_METHODS: tuple[Method, ...] = ("adaptor", "lora", "full")
"""Those that learn from pictures too; a table or a student has no way to read them."""
Head = Literal["rotation", "dense", "residual"]
Student = Literal["base", "static"]

MAX_STEPS = 1_000_000
MAX_BATCH = 16_384  # its square of cosines is 1 GiB
MAX_KERNEL_BATCH = 65_536
"""With the loss kernel, which holds no square."""
MAX_DIMS = 64
MAX_WEIGHT = 1e6
_EVALUATED_MULTIPLE = 8
_SMALLEST_DIM = 16  # below, even a model trained for the size alone ranks badly
# Measured on two collections of questions and answers, on two cores; see bench/adaptor.py.
_ADAPTOR_STEPS = 160  # 250 give the same
_ADAPTOR_BATCH = 1024
_ADAPTOR_RATE = {"rotation": 1e-2, "dense": 1e-3, "residual": 1e-3}
_FULL_BATCH = 32
# Once over 3,000 pairs, nDCG@10 at 16/64/384 numbers: medquad .823/.893/.881 and squad-split
# .386/.648/.716, and at 2e-5, the other usual one, .811/.894/.868 and .378/.648/.719.
_FULL_RATE = 5e-5
_LORA_RATE = 5e-4  # ten times that of all weights, as is usual: there are few of them
_DISTILL_RATE = 2e-5
_LORA_RANK, _MAX_LORA_RANK = 16, 256
_MAX_LORA_ALPHA = 4096
# Those of sentence-transformers' static models, and as many steps as a table of chance needs.
_STATIC_BATCH = 2048
_STATIC_RATE = 0.2
_STATIC_STEPS = 200
_PATIENCE = 3
_FEW = 4  # with less than this part of its own steps a method hardly learns
# See nest.py.
_NEST_STEPS, _MIN_NEST_STEPS = 250, 40
_NEST_BATCH = 512
_NEST_RATE = 4e-3
_NEST_MULTIPLE = 8
_MAX_DEFAULT = 512
MAX_NESTED = 256
"""Widest size that nesting learns: the principal axes alone keep nearly all at longer ones."""


class Lora(BaseModel):
    """How much of a text model LoRA may change; in what the caller gave, 0: choose for me."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = 0
    alpha: float = 0.0
    """The change is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Last parts of the names of the linear layers to change; empty: all."""


class EarlyStopping(BaseModel):
    """When a training ends before its last step; in what the caller gave, 0: choose for me."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = 0
    """Whose nDCG@10 counts; of scored pairs, Spearman's correlation."""
    every_steps: int = 0
    patience: int = 0
    """Looks without a gain that end the training."""


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
    lora: Lora | None = None
    dim_weights: tuple[float, ...] = ()
    evaluated_dims: tuple[int, ...] = ()
    early_stopping: EarlyStopping | None = None
    student: Student | None = None
    teacher: str = ""
    """A model folder or hub id; empty: the base model."""
    onnx: bool = False
    """Whether the finished model is there as ONNX too."""
    loss_kernel: bool = False
    """Whether `training/loss_kernel.py` computes the loss: on an accelerator only."""


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
    lora: Lora | None = None
    """None: the method is another; so `student`."""
    dim_weights: tuple[float, ...] = ()
    """As `dims`; empty: 1 each."""
    evaluated_dims: tuple[int, ...] = ()
    """Sizes that are measured though not trained for."""
    early_stopping: EarlyStopping | None = None
    student: Student | None = None
    teacher: str = ""
    onnx: bool = False
    loss_kernel: bool = False

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
    def measured_dims(self) -> tuple[int, ...]:
        """All sizes that the result speaks of, the full one last."""
        return tuple(sorted({*self.dims, *self.evaluated_dims}))

    @property
    def trained_dims(self) -> tuple[int, ...]:
        """Sizes in the loss: a rotation cannot change the full one."""
        if self.method == "nest":
            return tuple(dim for dim in self.matryoshka_dims if dim <= MAX_NESTED)
        return self.matryoshka_dims if self.head == "rotation" else self.dims

    @property
    def trained_weights(self) -> tuple[float, ...]:
        """What each of `trained_dims` counts for."""
        weights = dict(zip(self.dims, self.dim_weights or (1.0,) * len(self.dims), strict=True))
        return tuple(weights[dim] for dim in self.trained_dims)

    def total(self, losses: Mapping[int, float]) -> float:
        """Return what is minimised of the losses by size: their sum, each by its weight."""
        weights = dict(zip(self.trained_dims, self.trained_weights, strict=True))
        return sum(weights[dim] * loss for dim, loss in losses.items())


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a method takes where the caller says nothing."""

    batch: int
    rate: float
    steps: int = 0
    """0: each pair once."""


def _defaults(method: Method, head: Head | None, student: Student | None) -> _Defaults:
    static = _Defaults(_STATIC_BATCH, _STATIC_RATE, _STATIC_STEPS)
    return {
        "adaptor": _Defaults(_ADAPTOR_BATCH, _ADAPTOR_RATE[head or "rotation"], _ADAPTOR_STEPS),
        "full": _Defaults(_FULL_BATCH, _FULL_RATE),
        "lora": _Defaults(_FULL_BATCH, _LORA_RATE),
        "static": static,
        "distill": static if student == "static" else _Defaults(_FULL_BATCH, _DISTILL_RATE),
        "nest": _Defaults(_NEST_BATCH, _NEST_RATE),
    }[method]


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
    _check_bounds(wanted)
    head: Head | None = (wanted.head or "rotation") if method == "adaptor" else None
    student: Student | None = (wanted.student or "base") if method == "distill" else None
    defaults = _defaults(method, head, student)
    batch = min(wanted.batch_size or defaults.batch, num_pairs)
    steps = _nest_steps(num_pairs, batch) if method == "nest" else defaults.steps
    epochs = min(-(-wanted.n_epochs * num_pairs // batch), MAX_STEPS)
    steps = wanted.steps or epochs or steps or -(-num_pairs // batch)
    rate = min(1.0, defaults.rate * (wanted.learning_rate_multiplier or 1.0))
    dims = _check_dims(wanted.matryoshka_dims, full)
    if method == "nest":
        dims = _check_nested(dims, full) or nested_dims(full)
    dims = dims or default_dims(full)
    return Hyperparameters(
        method=method,
        head=head,
        matryoshka_dims=dims,
        full=full,
        steps=steps,
        batch_size=batch,
        learning_rate=wanted.learning_rate or rate,
        seed=wanted.seed,
        lora=_fill_lora(wanted.lora or Lora()) if method == "lora" else None,
        dim_weights=_fill_weights(wanted, dims, full),
        evaluated_dims=_check_evaluated(wanted.evaluated_dims, dims, full),
        early_stopping=_fill_stopping(wanted.early_stopping, (*dims, full), steps),
        student=student,
        teacher=wanted.teacher,
        onnx=wanted.onnx,
        loss_kernel=wanted.loss_kernel,
    )


def few_steps(wanted: Wanted, used: Hyperparameters) -> str:
    """Say that the steps asked for are too few to learn from; empty: enough, or not asked for.

    Args:
        wanted: as the caller gave them.
        used: the same, filled in.
    """
    own = _defaults(used.method, used.head, used.student).steps
    if not (wanted.steps or wanted.n_epochs) or used.steps * _FEW >= own:
        return ""
    advice = "leave steps out, or ask for more"
    if wanted.n_epochs:
        advice = "leave n_epochs out, or give steps, or a smaller batch_size"
    return (
        f"few steps ({used.steps} of {used.batch_size} examples each): the method "
        f"{used.method!r} takes {own} where nothing is said; {advice}"
    )


def _check_bounds(wanted: Wanted) -> None:
    """Refuse what no model and no data could make right."""
    method = wanted.method
    if wanted.head and method != "adaptor":
        raise _wrong("head", "be left out for a method other than METHOD_ADAPTOR")
    if wanted.lora and method != "lora":
        raise _wrong("lora", "be left out for a method other than METHOD_LORA")
    if (wanted.student or wanted.teacher) and method != "distill":
        raise _wrong("distillation", "be left out for a method other than METHOD_DISTILL")
    if method == "nest" and (wanted.early_stopping or wanted.evaluated_dims or wanted.dim_weights):
        raise _wrong(
            "early_stopping", "be left out for METHOD_NEST, and so evaluated_dims and dim_weights"
        )
    if wanted.onnx and (method in ("nest", "static") or wanted.student == "static"):
        raise _wrong("onnx", "be left out for METHOD_NEST and for tables: they make no network")
    if wanted.loss_kernel and method not in ("full", "lora"):
        raise _wrong("loss_kernel", "be left out for a method other than METHOD_FULL, METHOD_LORA")
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
    most = MAX_KERNEL_BATCH if wanted.loss_kernel else MAX_BATCH
    if wanted.batch_size < 0 or wanted.batch_size == 1 or wanted.batch_size > most:
        raise _wrong("batch_size", f"be between 2 and {most}, got {wanted.batch_size}")
    rate = wanted.learning_rate
    if not math.isfinite(rate) or not 0 <= rate <= 1:
        raise _wrong("learning_rate", f"be above 0 and at most 1, got {rate}")


def _fill_lora(lora: Lora) -> Lora:
    rank = lora.rank or _LORA_RANK
    if not 1 <= rank <= _MAX_LORA_RANK:
        raise _wrong("lora.rank", f"be between 1 and {_MAX_LORA_RANK}, got {rank}")
    if not math.isfinite(lora.alpha) or not 0 <= lora.alpha <= _MAX_LORA_ALPHA:
        raise _wrong("lora.alpha", f"be above 0 and at most {_MAX_LORA_ALPHA}, got {lora.alpha}")
    return Lora(rank=rank, alpha=lora.alpha or 2.0 * rank, targets=lora.targets)


def _fill_weights(wanted: Wanted, dims: tuple[int, ...], full: int) -> tuple[float, ...]:
    weights = wanted.dim_weights
    if not weights:
        return ()
    if len(weights) != len(wanted.matryoshka_dims):
        raise _wrong("dim_weights", "be as many as matryoshka_dims, or left out")
    if not all(math.isfinite(weight) and 0 < weight <= MAX_WEIGHT for weight in weights):
        raise _wrong("dim_weights", f"each be above 0 and at most {MAX_WEIGHT:g}")
    given = dict(zip(wanted.matryoshka_dims, weights, strict=True))
    return tuple(given.get(dim, 1.0) for dim in (*dims, full))


def _check_evaluated(
    evaluated: tuple[int, ...], dims: tuple[int, ...], full: int
) -> tuple[int, ...]:
    wrong = any(dim % _EVALUATED_MULTIPLE or not 0 < dim < full for dim in evaluated)
    if wrong or len({*evaluated, *dims}) > MAX_DIMS:
        raise _wrong(
            "evaluated_dims",
            f"be multiples of {_EVALUATED_MULTIPLE} below {full}, {MAX_DIMS} sizes at most with "
            "matryoshka_dims",
        )
    return tuple(sorted({*evaluated} - {*dims}))


def _fill_stopping(
    stopping: EarlyStopping | None, dims: tuple[int, ...], steps: int
) -> EarlyStopping | None:
    if stopping is None:
        return None
    dim, every = stopping.dim or dims[0], stopping.every_steps or max(1, steps // 10)
    if not 1 <= dim <= dims[-1]:
        raise _wrong("early_stopping.dim", f"be between 1 and {dims[-1]}, got {dim}")
    if every > steps:
        raise _wrong("early_stopping.every_steps", f"be at most {steps}, the steps, got {every}")
    return EarlyStopping(dim=dim, every_steps=every, patience=stopping.patience or _PATIENCE)


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
