"""The passes between the int8 matrix products: one token after another, each in one sweep.

Compiled by numba to vector code. Every function runs without Python's global lock, on the thread
that calls it. All of them treat a token by itself, so a text gives the same bits whatever else is
in the batch.

Products may have more rows than there are tokens; those after the last token mean nothing.

Shapes: T tokens, D numbers a token, G blocks of a token's numbers that share a scale, K numbers a
block, N outputs of a product.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer]


_compiled = njit(nogil=True, fastmath=True, cache=True, error_model="numpy")

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TINY = np.float32(1e-12)
# Steps between the smallest and the largest number of a block: -127 to 127.
_STEPS = np.float32(254)
_NO_BITS = np.int32(0)
_SIGN = np.int32(-(2**31))


@_compiled
def quantize(
    x_TD: Floats,
    smooth_D: Floats,
    q_GTK: Ints,
    step_TG: Floats,
    middle_TG: Floats,
) -> None:
    """Write x * smooth as int8: x * smooth = q * step + middle, for each token and block."""
    row_D = np.empty(x_TD.shape[1], np.float32)
    for t in range(x_TD.shape[0]):
        for d in range(row_D.shape[0]):
            row_D[d] = x_TD[t, d] * smooth_D[d]
        _quantize_row(row_D, t, q_GTK, step_TG, middle_TG)


@_compiled
def _quantize_row(row_D: Floats, t: int, q_GTK: Ints, step_TG: Floats, middle_TG: Floats) -> None:
    num_blocks, _, width = q_GTK.shape
    bits_D = row_D.view(np.int32)
    for g in range(num_blocks):
        row_K, bits_K = row_D[g * width : (g + 1) * width], bits_D[g * width : (g + 1) * width]
        q_K = q_GTK[g, t]
        # Positive floats are in the order of their bits, and so are negative ones without their
        # sign; the largest of integers becomes vector code, that of floats does not.
        high_bits, low_bits = _NO_BITS, _NO_BITS
        for k in range(width):
            high_bits = max(high_bits, bits_K[k])
        for k in range(width):
            low_bits = max(low_bits, bits_K[k] ^ _SIGN)
        high = np.int32(high_bits).view(np.float32)
        low = -np.int32(low_bits).view(np.float32)
        step = max((high - low) / _STEPS, _TINY)
        middle = (high + low) * _HALF
        step_TG[t, g] = step
        middle_TG[t, g] = middle
        per_step = _ONE / step
        for k in range(width):
            q_K[k] = np.int8(np.rint((row_K[k] - middle) * per_step))


@_compiled
def _dequantize_row(
    acc_GTN: Ints,
    t: int,
    step_TG: Floats,
    middle_TG: Floats,
    scale_GN: Floats,
    sum_GN: Floats,
    row_N: Floats,
) -> None:
    """Add the products of one token to `row_N`."""
    for g in range(acc_GTN.shape[0]):
        step, middle = step_TG[t, g], middle_TG[t, g]
        acc_N, scale_N, sum_N = acc_GTN[g, t], scale_GN[g], sum_GN[g]
        for n in range(row_N.shape[0]):
            row_N[n] += (np.float32(acc_N[n]) * step + middle * sum_N[n]) * scale_N[n]


@_compiled
def dequantize(
    acc_GTN: Ints,
    step_TG: Floats,
    middle_TG: Floats,
    scale_GN: Floats,
    sum_GN: Floats,
    bias_N: Floats,
    y_TN: Floats,
) -> None:
    """Turn int8 products back into numbers, with the bias."""
    for t in range(y_TN.shape[0]):
        y_TN[t] = bias_N
        _dequantize_row(acc_GTN, t, step_TG, middle_TG, scale_GN, sum_GN, y_TN[t])


@_compiled
def add_norm(
    acc_GTN: Ints,
    step_TG: Floats,
    middle_TG: Floats,
    scale_GN: Floats,
    sum_GN: Floats,
    bias_D: Floats,
    gain_D: Floats,
    shift_D: Floats,
    eps: np.float32,
    h_TD: Floats,
) -> None:
    """Set h to layer_norm(h + products + bias)."""
    row_D = np.empty(h_TD.shape[1], np.float32)
    for t in range(h_TD.shape[0]):
        h_D = h_TD[t]
        for d in range(row_D.shape[0]):
            row_D[d] = h_D[d] + bias_D[d]
        _dequantize_row(acc_GTN, t, step_TG, middle_TG, scale_GN, sum_GN, row_D)
        _norm_row(row_D, gain_D, shift_D, eps, h_D)


@_compiled
def _norm_row(
    row_D: Floats,
    gain_D: Floats,
    shift_D: Floats,
    eps: np.float32,
    h_D: Floats,
) -> None:
    width = row_D.shape[0]
    share = _ONE / np.float32(width)
    total, squares = _ZERO, _ZERO
    for d in range(width):
        total += row_D[d]
    mean = total * share
    for d in range(width):
        centred = row_D[d] - mean
        squares += centred * centred
    per_deviation = _ONE / np.sqrt(squares * share + eps)
    for d in range(width):
        h_D[d] = (row_D[d] - mean) * per_deviation * gain_D[d] + shift_D[d]


@_compiled
def embed(
    tokens_T: Ints,
    positions_T: Ints,
    words_VD: Floats,
    places_PD: Floats,
    kind_D: Floats,
    gain_D: Floats,
    shift_D: Floats,
    eps: np.float32,
    h_TD: Floats,
) -> None:
    """Set h to layer_norm(word + position + kind)."""
    row_D = np.empty(h_TD.shape[1], np.float32)
    for t in range(h_TD.shape[0]):
        word_D, place_D = words_VD[tokens_T[t]], places_PD[positions_T[t]]
        for d in range(row_D.shape[0]):
            row_D[d] = word_D[d] + place_D[d] + kind_D[d]
        _norm_row(row_D, gain_D, shift_D, eps, h_TD[t])


@_compiled
def gelu_quantize(
    acc_GTN: Ints,
    step_TG: Floats,
    middle_TG: Floats,
    scale_GN: Floats,
    sum_GN: Floats,
    bias_N: Floats,
    smooth_N: Floats,
    q_GTK: Ints,
    step_out_TG: Floats,
    middle_out_TG: Floats,
) -> None:
    """Turn products into gelu(products + bias) and write that as int8 again."""
    row_N = np.empty(bias_N.shape[0], np.float32)
    for t in range(step_TG.shape[0]):
        for n in range(row_N.shape[0]):
            row_N[n] = bias_N[n]
        _dequantize_row(acc_GTN, t, step_TG, middle_TG, scale_GN, sum_GN, row_N)
        _gelu_row(row_N, smooth_N)
        _quantize_row(row_N, t, q_GTK, step_out_TG, middle_out_TG)


@_compiled
def _gelu_row(
    row_N: Floats,
    smooth_N: Floats,
) -> None:
    """Set x to smooth * x * (1 + erf(x / sqrt(2))) / 2.

    erf as a quotient of polynomials, fitted for float32 (the one that Eigen uses; its error, below
    1e-6, is far below a step of int8), as a call to the library's would not become vector code.
    """
    edge = np.float32(3.8325069)
    for n in range(row_N.shape[0]):
        x = row_N[n]
        z = min(max(x * np.float32(0.70710678), -edge), edge)
        w = z * z
        p = np.float32(2.77068142e-08) + np.float32(-2.72614226e-10) * w
        p = np.float32(-2.10102402e-06) + p * w
        p = np.float32(-5.69250640e-05) + p * w
        p = np.float32(-7.34990630e-04) + p * w
        p = np.float32(-2.95459980e-03) + p * w
        p = np.float32(-1.60960333e-02) + p * w
        q = np.float32(-2.13374055e-04) + np.float32(-1.45660718e-05) * w
        q = np.float32(-1.68282697e-03) + q * w
        q = np.float32(-7.37332917e-03) + q * w
        q = np.float32(-1.42647391e-02) + q * w
        row_N[n] = x * _HALF * (_ONE + z * p / q) * smooth_N[n]
