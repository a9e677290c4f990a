"""The one idea of the suite: a prefix of a vector is itself a usable vector.

A model of width D is trained so that its first numbers alone rank well. All else asks this
module how to cut. The order is fixed: pre-op, cut, normalise (and later quantise). Knows
nothing of models, text or storage.

Source: Kusupati et al. 2022, "Matryoshka Representation Learning", arXiv:2205.13147.
Shapes: B vectors in the batch, D full width, M width after the cut.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidRequest

Array = npt.NDArray[np.float32]
PreOp = Literal["none", "layer_norm"]

_LEAST = np.finfo(np.float32).tiny
_LAYER_NORM_EPS = 1e-5  # torch.nn.functional.layer_norm's default, which model cards use


def check_dim(dim: int, dims: tuple[int, ...], full: int, param: str = "dimensions") -> None:
    """Refuse a size that cannot be cut, or that a model does not declare.

    Args:
        dim: the width asked for.
        dims: the widths that are allowed, ascending; empty allows any from 1 to `full`.
        full: the model's full width; always allowed.
        param: the request's field, for the error.

    Raises:
        InvalidRequest: `dim` is outside 1..`full`, or not in `dims`; the message says which are.
    """
    if not 1 <= dim <= full:
        raise InvalidRequest(f"{param} must be between 1 and {full}, got {dim}", param)
    if dims and dim not in dims and dim != full:
        allowed = ", ".join(map(str, sorted({*dims, full})))
        raise InvalidRequest(f"{param} must be one of {allowed} for this model, got {dim}", param)


def normalize(vectors_BM: Array) -> Array:
    """Scale each row to unit length; a row of zeros stays zero, as there is no direction to keep.

    >>> normalize(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    # Rows are scaled by their largest number first: squares of tiny numbers would underflow.
    peak_B1 = np.abs(vectors_BM).max(axis=1, keepdims=True)
    scaled_BM: Array = vectors_BM / np.maximum(peak_B1, _LEAST)
    norm_B1 = np.sqrt((scaled_BM * scaled_BM).sum(axis=1, keepdims=True))
    scaled_BM /= np.maximum(norm_B1, _LEAST)
    return scaled_BM


def apply_pre_op(vectors_BD: Array, pre_op: PreOp) -> Array:
    """Apply what the model's recipe wants before the cut (nomic-embed-text-v1.5: layer norm)."""
    if pre_op == "none":
        return vectors_BD
    centred_BD = vectors_BD - vectors_BD.mean(axis=1, keepdims=True)
    deviation_B1 = np.sqrt((centred_BD**2).mean(axis=1, keepdims=True) + _LAYER_NORM_EPS)
    normed_BD: Array = (centred_BD / deviation_B1).astype(np.float32)
    return normed_BD


def truncate(vectors_BD: Array, dim: int) -> Array:
    """Keep the first `dim` numbers of each vector and scale it back to unit length.

    The order matters: a prefix of a unit vector is shorter than one, and a dot product of such
    prefixes is not a cosine.

    Args:
        vectors_BD: float32, after the pre-op.
        dim: the width to keep, 1..D; checked at the door by `check_dim`.

    Returns:
        vectors_BM: float32, rows of unit length (or zero, where the prefix is zero), M = dim.

    >>> truncate(np.array([[0.6, 0.0, 0.8]], dtype=np.float32), 2).tolist()
    [[1.0, 0.0]]
    """
    return normalize(vectors_BD[:, :dim])


def pack(vectors_BM: Array) -> bytes:
    """Return rows as little-endian float32 bytes, row after row."""
    return np.ascontiguousarray(vectors_BM, dtype="<f4").tobytes()


def unpack(data: bytes, dim: int, param: str = "vectors") -> Array:
    """Read rows of `dim` little-endian float32 numbers.

    Returns:
        vectors_BM: float32, finite.

    Raises:
        InvalidRequest: the length is not a whole number of rows, or a number is not finite.
    """
    if not data or len(data) % (4 * dim):
        raise InvalidRequest(
            f"{param} must be a whole number of rows of {dim} little-endian float32 numbers "
            f"({4 * dim} bytes each), got {len(data)} bytes",
            param,
        )
    vectors_BM = np.frombuffer(data, dtype="<f4").reshape(-1, dim).astype(np.float32)
    if not np.isfinite(vectors_BM).all():
        raise InvalidRequest(f"{param} must hold finite numbers only, got NaN or infinity", param)
    return vectors_BM
