"""How the numbers of a cut vector are stored: as float32, as bytes, or as bits.

The last step after pre-op, cut and normalise, never before them. The layouts are those of
sentence-transformers' `quantize_embeddings`, so its tools, Cohere's and Voyage's read them.
Byte ranges are measured once per model and size and kept in its card: ranges taken from a call's
own vectors would make equal texts of two calls different.

Shapes: B vectors, M numbers in each, as cut.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidRequest
from services.shared.vectors import Array

Dtype = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Stored = npt.NDArray[np.float32 | np.int8 | np.uint8]

LEVELS = 256
# Ranges from a sample: the outermost numbers are left out, then room is made for what the sample
# did not hold. Measured on all-MiniLM-L6-v2, ranges from 2,000 docstrings, 2,000 others stored:
# cosine of dequantised to float .99996 in the mean, .9999 and .9997 at worst for 64 and 384
# numbers. With the sample's own minimum and maximum it is .9956 and .9983 at worst, and with 100
# texts .95 (here .984), as numbers outside their range are cut.
_QUANTILE = 0.001
_ROOM = 0.2
_LEAST_WIDTH = 2e-3  # of a number that never changed in the sample


def is_bits(dtype: Dtype) -> bool:
    return dtype in ("binary", "ubinary")


def needs_ranges(dtype: Dtype) -> bool:
    return dtype in ("int8", "uint8")


def check_bits(dim: int, dtype: Dtype) -> None:
    """Refuse bits that do not fill whole bytes.

    Raises:
        InvalidRequest: `dtype` is one of bits, and `dim` is not a multiple of 8.
    """
    if is_bits(dtype) and dim % 8:
        raise InvalidRequest(
            f"{dtype} packs 8 numbers into a byte, so dimensions must be a multiple of 8, got "
            f"{dim}; ask for {dim // 8 * 8 or 8}",
            "dimensions",
        )


def bytes_per_vector(dim: int, dtype: Dtype) -> int:
    """Return what one vector takes, bytes.

    >>> [bytes_per_vector(64, dtype) for dtype in ("float32", "int8", "ubinary")]
    [256, 64, 8]
    """
    if is_bits(dtype):
        return -(-dim // 8)
    return dim if needs_ranges(dtype) else 4 * dim


def measure_ranges(vectors_BM: Array) -> Array:
    """Find the range of each number, for `quantize`.

    Args:
        vectors_BM: a sample, cut and of unit length; some hundred or more.

    Returns:
        ranges_2M: float32, low and high of each number, low < high.
    """
    quantiles = np.quantile(vectors_BM, [_QUANTILE, 1 - _QUANTILE], axis=0)
    low_M, high_M = quantiles
    room_M = np.maximum((high_M - low_M) * _ROOM, _LEAST_WIDTH / 2)
    return np.stack([low_M - room_M, high_M + room_M]).astype(np.float32)


def quantize(vectors_BM: Array, dtype: Dtype, ranges_2M: Array | None = None) -> Stored:
    """Store each number in `dtype`.

    Args:
        vectors_BM: float32, cut and of unit length.
        dtype: bits must fill whole bytes, see `check_bits`.
        ranges_2M: low and high of each number; int8 and uint8 need it. What lies outside is
            stored as the nearest end.

    Returns:
        float32: the vectors. int8, uint8: [B, M], level `floor((x - low) / step)` of 256 with
        step = (high - low) / 255; int8 is the level minus 128. binary, ubinary: [B, M / 8], a bit
        is set where the number is positive, the first number is the highest bit; binary is the
        byte minus 128.

    >>> quantize(np.array([[0.5, -0.5, 0, 0, 0, 0, 0, 0.7]], dtype=np.float32), "ubinary").tolist()
    [[129]]
    """
    if dtype == "float32":
        return vectors_BM
    if is_bits(dtype):
        bits_BM = np.packbits(vectors_BM > 0, axis=1)
        return bits_BM if dtype == "ubinary" else _signed(bits_BM)
    if ranges_2M is None:
        raise ValueError(f"{dtype} needs ranges")
    low_M, high_M = ranges_2M
    step_M = (high_M - low_M) / (LEVELS - 1)
    step_M = np.where(step_M == 0, 1, step_M)
    levels_BM = np.clip(np.floor((vectors_BM - low_M) / step_M), 0, LEVELS - 1).astype(np.uint8)
    return levels_BM if dtype == "uint8" else _signed(levels_BM)


def _signed(bytes_BM: npt.NDArray[np.uint8]) -> Stored:
    """Take 128 from each byte, which on signed bytes is the highest bit turned over."""
    signed_BM: Stored = (bytes_BM ^ 0x80).view(np.int8)
    return signed_BM
