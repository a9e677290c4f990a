"""The passes between the int8 matrix products: one token after another, each in one sweep.

Compiled by numba to vector code. Every function runs without Python's global lock, on the thread
that calls it. All of them treat a token by itself, so a text gives the same bits whatever else is
in the batch.

Products may have more rows than there are tokens; those after the last token mean nothing.

Shapes: T tokens, D numbers a token, K inputs of a product, E of them not rounded, N outputs.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer]


_compiled = njit(nogil=True, fastmath=True, cache=True, error_model="numpy")

# E: few wide numbers would make the steps of all others coarse, and cost little left as they are.
NUM_EXACT = 4

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TINY = np.float32(1e-12)
# Steps between the smallest and the largest number of a token: -127 to 127.
_STEPS = np.float32(254)
_NO_BITS = np.int32(0)
_SIGN = np.int32(-(2**31))


@_compiled
def quantize(
    x_TK: Floats,
    smooth_K: Floats,
    exact_E: Ints,
    q_TK: Ints,
    step_T: Floats,
    middle_T: Floats,
    exact_TE: Floats,
) -> None:
    """Write x * smooth as int8: x * smooth = q * step + middle, for each token.

    Of the numbers at `exact_E` no int8 is made: they are written to `exact_TE`.
    """
    row_K = np.empty(x_TK.shape[1], np.float32)
    for t in range(x_TK.shape[0]):
        for k in range(row_K.shape[0]):
            row_K[k] = x_TK[t, k] * smooth_K[k]
        _quantize_row(row_K, t, exact_E, q_TK, step_T, middle_T, exact_TE)


@_compiled
def _quantize_row(
    row_K: Floats,
    t: int,
    exact_E: Ints,
    q_TK: Ints,
    step_T: Floats,
    middle_T: Floats,
    exact_TE: Floats,
) -> None:
    for e in range(NUM_EXACT):
        exact_TE[t, e] = row_K[exact_E[e]]
        row_K[exact_E[e]] = _ZERO
    # Positive floats are in the order of their bits, and so are negative ones without their
    # sign; the largest of integers becomes vector code, that of floats does not.
    bits_K = row_K.view(np.int32)
    high_bits, low_bits = _NO_BITS, _NO_BITS
    for k in range(row_K.shape[0]):
        high_bits = max(high_bits, bits_K[k])
    for k in range(row_K.shape[0]):
        low_bits = max(low_bits, bits_K[k] ^ _SIGN)
    high = np.int32(high_bits).view(np.float32)
    low = -np.int32(low_bits).view(np.float32)
    step = max((high - low) / _STEPS, _TINY)
    middle = (high + low) * _HALF
    step_T[t] = step
    middle_T[t] = middle
    per_step = _ONE / step
    q_K = q_TK[t]
    for k in range(row_K.shape[0]):
        q_K[k] = np.int8(np.rint((row_K[k] - middle) * per_step))


@_compiled
def _dequantize_row(
    acc_TN: Ints,
    t: int,
    step_T: Floats,
    middle_T: Floats,
    exact_TE: Floats,
    scale_N: Floats,
    sum_N: Floats,
    weight_EN: Floats,
    row_N: Floats,
) -> None:
    """Add the products of one token to `row_N`."""
    acc_N, step, middle = acc_TN[t], step_T[t], middle_T[t]
    x0, x1, x2, x3 = exact_TE[t, 0], exact_TE[t, 1], exact_TE[t, 2], exact_TE[t, 3]
    w0_N, w1_N, w2_N, w3_N = weight_EN[0], weight_EN[1], weight_EN[2], weight_EN[3]
    for n in range(row_N.shape[0]):
        rounded = np.float32(acc_N[n]) * step * scale_N[n] + middle * sum_N[n]
        exact = x0 * w0_N[n] + x1 * w1_N[n] + x2 * w2_N[n] + x3 * w3_N[n]
        row_N[n] += rounded + exact


@_compiled
def dequantize(
    acc_TN: Ints,
    step_T: Floats,
    middle_T: Floats,
    exact_TE: Floats,
    scale_N: Floats,
    sum_N: Floats,
    weight_EN: Floats,
    bias_N: Floats,
    y_TN: Floats,
) -> None:
    """Turn int8 products back into numbers, with the bias."""
    for t in range(y_TN.shape[0]):
        y_TN[t] = bias_N
        _dequantize_row(
            acc_TN, t, step_T, middle_T, exact_TE, scale_N, sum_N, weight_EN, y_TN[t]
        )  # fmt: skip


@_compiled
def add_norm(
    acc_TN: Ints,
    step_T: Floats,
    middle_T: Floats,
    exact_TE: Floats,
    scale_N: Floats,
    sum_N: Floats,
    weight_EN: Floats,
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
        _dequantize_row(
            acc_TN, t, step_T, middle_T, exact_TE, scale_N, sum_N, weight_EN, row_D
        )  # fmt: skip
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
    kinds_T: Ints,
    words_VD: Floats,
    places_PD: Floats,
    kinds_KD: Floats,
    gain_D: Floats,
    shift_D: Floats,
    eps: np.float32,
    h_TD: Floats,
) -> None:
    """Set h to layer_norm(word + position + kind)."""
    row_D = np.empty(h_TD.shape[1], np.float32)
    for t in range(h_TD.shape[0]):
        word_D, place_D = words_VD[tokens_T[t]], places_PD[positions_T[t]]
        kind_D = kinds_KD[kinds_T[t]]
        for d in range(row_D.shape[0]):
            row_D[d] = word_D[d] + place_D[d] + kind_D[d]
        _norm_row(row_D, gain_D, shift_D, eps, h_TD[t])


@_compiled
def gelu_quantize(
    acc_TN: Ints,
    step_T: Floats,
    middle_T: Floats,
    exact_TE: Floats,
    scale_N: Floats,
    sum_N: Floats,
    weight_EN: Floats,
    bias_N: Floats,
    smooth_N: Floats,
    exact_out_E: Ints,
    q_TK: Ints,
    step_out_T: Floats,
    middle_out_T: Floats,
    exact_out_TE: Floats,
) -> None:
    """Turn products into gelu(products + bias) and write that as int8 again."""
    row_N = np.empty(bias_N.shape[0], np.float32)
    for t in range(step_T.shape[0]):
        for n in range(row_N.shape[0]):
            row_N[n] = bias_N[n]
        _dequantize_row(
            acc_TN, t, step_T, middle_T, exact_TE, scale_N, sum_N, weight_EN, row_N
        )  # fmt: skip
        _gelu_row(row_N, smooth_N)
        _quantize_row(row_N, t, exact_out_E, q_TK, step_out_T, middle_out_T, exact_out_TE)


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
