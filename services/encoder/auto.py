"""Leaves the size to the model: the smallest that is good enough, or the best that fits.

Decided by the quality that was measured for the model and stands in its card, never by a rule of
thumb: what a size keeps differs from model to model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.shared.card import Quality
from services.shared.errors import InvalidRequest
from services.shared.quantization import Dtype, bytes_per_vector, is_bits


@dataclass(frozen=True, slots=True)
class Auto:
    """What the size must satisfy; at least one of the two.

    Args:
        min_retention: share of the full size's quality to keep, 0..1: nDCG@10 or Spearman,
            whichever its card holds.
        max_bytes: of each vector, in the dtype asked for.
    """

    min_retention: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A size, and why it was chosen.

    Args:
        retained: its quality divided by the full size's.
        measured: (size, retained) of every size that was measured, ascending.
    """

    dim: int
    retained: float
    num_bytes: int
    reason: str
    measured: tuple[tuple[int, float], ...]
    data: str


def choose(auto: Auto, quality: Quality | None, model_id: str, full: int, dtype: Dtype) -> Choice:
    """Pick the size.

    Raises:
        InvalidRequest: neither or wrong bounds, nothing was measured, or no size satisfies both.
    """
    _check(auto)
    scores = {score.dim: score.score for score in quality.after} if quality else {}
    if quality is None or not scores.get(full, 0.0) > 0:
        raise InvalidRequest(
            f"dimensions 'auto' needs measured quality and {model_id} has none; measure it with "
            "'matryoshka card <model> <texts> --output <folder>' and load that folder, or give a "
            "size",
            "dimensions",
        )
    measured = [(dim, score / scores[full]) for dim, score in sorted(scores.items())]
    # Bits come in whole bytes only.
    usable = [(dim, kept) for dim, kept in measured if not (is_bits(dtype) and dim % 8)]
    if not usable:
        raise InvalidRequest(
            f"no measured size of {model_id} is a multiple of 8, as {dtype} needs", "output_dtype"
        )
    fitting = _fitting(usable, auto, dtype)
    if auto.min_retention is None:
        dim, retained = fitting[-1]
        reason = f"the largest measured size of at most {auto.max_bytes} bytes"
    else:
        dim, retained = _smallest(usable, fitting, auto, dtype)
        least = f"{auto.min_retention:g} of {quality.metric}"
        reason = f"the smallest measured size that keeps at least {least}"
        if auto.max_bytes is not None:
            reason += f", and takes at most {auto.max_bytes} bytes"
    return Choice(
        dim, retained, bytes_per_vector(dim, dtype), reason, tuple(measured), quality.data
    )


def _check(auto: Auto) -> None:
    if auto.min_retention is None and auto.max_bytes is None:
        raise InvalidRequest(
            "dimensions 'auto' needs min_retention (0 to 1), max_bytes, or both", "dimensions"
        )
    if auto.min_retention is not None and not 0 <= auto.min_retention <= 1:
        raise InvalidRequest("min_retention must be between 0 and 1", "min_retention")
    if auto.max_bytes is not None and auto.max_bytes < 1:
        raise InvalidRequest("max_bytes must be at least 1", "max_bytes")


def _fitting(
    sizes: Sequence[tuple[int, float]], auto: Auto, dtype: Dtype
) -> list[tuple[int, float]]:
    if auto.max_bytes is None:
        return list(sizes)
    fitting = [size for size in sizes if bytes_per_vector(size[0], dtype) <= auto.max_bytes]
    if not fitting:
        dim = sizes[0][0]
        raise InvalidRequest(
            f"no measured size fits into {auto.max_bytes} bytes as {dtype}; the smallest, {dim}, "
            f"takes {bytes_per_vector(dim, dtype)}",
            "max_bytes",
        )
    return fitting


def _smallest(
    usable: Sequence[tuple[int, float]],
    fitting: Sequence[tuple[int, float]],
    auto: Auto,
    dtype: Dtype,
) -> tuple[int, float]:
    """Return the smallest fitting size that keeps enough."""
    least = auto.min_retention or 0.0
    for size in fitting:
        if size[1] >= least:
            return size
    enough = next((size for size in usable if size[1] >= least), None)
    if enough is None:
        raise InvalidRequest(
            f"no measured size of whole bytes keeps {least:g} as {dtype}; lower min_retention",
            "min_retention",
        )
    raise InvalidRequest(
        f"keeping {least:g} takes {enough[0]} dimensions, {bytes_per_vector(enough[0], dtype)} "
        f"bytes as {dtype}, which is over max_bytes {auto.max_bytes}; raise max_bytes, lower "
        "min_retention, or ask for a smaller output_dtype",
        "max_bytes",
    )
