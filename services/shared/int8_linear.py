"""A linear layer in int8: weights rounded so that their errors cancel on real inputs.

In: a layer's weights and what went through it on sample texts. Out: int8 weights with a scale per
output, for inputs that are rounded per token at run time.

Three things keep the error small. The widest few inputs are not rounded at all (LLM.int8,
arXiv:2208.07339). The others are smoothed: divided per number, and the weights multiplied by the
same (SmoothQuant, arXiv:2211.10438). Weights are then rounded one input after another, and the
error of each is carried over to those not yet rounded (GPTQ, arXiv:2210.17323), in the end to
those of the exact inputs.

Shapes: T sample tokens, K inputs, E of them exact, N outputs.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from services.shared.kernels import NUM_EXACT
from services.shared.vectors import Array

# Powers of the inputs' widths to smooth by; the best is taken, layer by layer.
_SMOOTHING = (0.15, 0.3, 0.45, 0.6)
_LARGEST = 127
# Share of the mean that is added to the diagonal, so that the matrix can be inverted.
_DAMPING = 0.03
# Inputs that are rounded before the others hear of their errors; only speed depends on it.
_COLUMNS = 128
_NARROWEST = 1e-3
# Of an `Int8Linear`, in its order.
_ARRAYS = ("scale_N", "sum_N", "bias_N", "smooth_K", "exact_E", "weight_EN")


class Inputs:
    """What goes into a layer: its second moments, its widths, and some of it.

    Args:
        width: K.
        kept: tokens to keep as they are.
    """

    def __init__(self, width: int, kept: int = 1024) -> None:
        self.moments_KK = torch.zeros(width, width)
        self.widest_K = torch.full((width,), _NARROWEST)
        self.some_TK = torch.empty(0, width)
        self._kept = kept

    def add(self, inputs_TK: torch.Tensor, weights_T: torch.Tensor) -> None:
        """Note some tokens, and how much each matters."""
        self.moments_KK += inputs_TK.T @ (inputs_TK * weights_T[:, None])
        self.widest_K = torch.maximum(self.widest_K, inputs_TK.abs().amax(0))
        room = self._kept - len(self.some_TK)
        self.some_TK = torch.cat([self.some_TK, inputs_TK[:: max(1, len(inputs_TK) // 64)][:room]])


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """A layer that `kernels.py` and `torch._int_mm` can run.

    Args:
        weight_KN: int8.
        scale_N: what one step of a weight is worth.
        sum_N: of each output's rounded weights, for the middle of the inputs' range.
        bias_N: float32.
        smooth_K: what inputs are multiplied with before they are rounded; 1 for exact ones.
        exact_E: inputs that are not rounded; in `weight_KN` they are zero.
        weight_EN: their weights, float32.
    """

    weight_KN: torch.Tensor
    scale_N: Array
    sum_N: Array
    bias_N: Array
    smooth_K: Array
    exact_E: npt.NDArray[np.int64]
    weight_EN: Array

    def to_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return what is to be kept, under names that begin with `name`."""
        return {
            f"{name}.weight_KN": self.weight_KN,
            **{f"{name}.{part}": torch.from_numpy(getattr(self, part)) for part in _ARRAYS},
        }

    @classmethod
    def from_tensors(cls, name: str, kept: dict[str, torch.Tensor]) -> Self:
        return cls(
            kept[f"{name}.weight_KN"],
            *(kept[f"{name}.{part}"].numpy() for part in _ARRAYS),
        )


def quantize_linear(weight_NK: torch.Tensor, bias_N: torch.Tensor, inputs: Inputs) -> Int8Linear:
    """Round a layer.

    Args:
        weight_NK: float32.
        bias_N: float32.
        inputs: of this layer, on sample texts.
    """
    exact_E = inputs.widest_K.topk(NUM_EXACT).indices
    smooth_K = _choose_smoothing(weight_NK, inputs, exact_E)
    smooth_weight_NK = weight_NK / smooth_K
    scale_N = _scales(_without(smooth_weight_NK, exact_E))
    moments_KK = inputs.moments_KK * smooth_K[:, None] * smooth_K
    rounded_NK, weight_NE = _round(smooth_weight_NK, scale_N, moments_KK, exact_E)
    return Int8Linear(
        rounded_NK.T.to(torch.int8).contiguous(),
        scale_N.numpy(),
        (rounded_NK.sum(1) * scale_N).numpy(),
        bias_N.numpy(),
        smooth_K.numpy(),
        exact_E.numpy(),
        weight_NE.T.contiguous().numpy(),
    )


def _without(numbers_XK: torch.Tensor, exact_E: torch.Tensor) -> torch.Tensor:
    """Return a copy where those of the exact inputs are zero."""
    return numbers_XK.index_fill(1, exact_E, 0)


def _scales(weight_NK: torch.Tensor) -> torch.Tensor:
    return (weight_NK.abs().amax(1) / _LARGEST).clamp(min=1e-12)


def _choose_smoothing(
    weight_NK: torch.Tensor, inputs: Inputs, exact_E: torch.Tensor
) -> torch.Tensor:
    """Try some powers with plain rounding; return what harms the outputs least."""
    weight_NK, inputs_TK = _without(weight_NK, exact_E), _without(inputs.some_TK, exact_E)
    exact_TN = inputs_TK @ weight_NK.T

    def harm(smooth_K: torch.Tensor) -> float:
        scale_N1 = _scales(weight_NK / smooth_K)[:, None]
        rounded_NK = torch.round(weight_NK / smooth_K / scale_N1) * scale_N1
        rounded_TK = _round_inputs(inputs_TK * smooth_K)
        return float((rounded_TK @ rounded_NK.T - exact_TN).square().mean())

    candidates = [inputs.widest_K**-power for power in _SMOOTHING]
    best_K = min((smooth_K / smooth_K.mean() for smooth_K in candidates), key=harm)
    return best_K.index_fill(0, exact_E, 1)


def _round_inputs(inputs_TK: torch.Tensor) -> torch.Tensor:
    """Do what `kernels.quantize` does, and undo it."""
    low_T1 = inputs_TK.amin(1, keepdim=True).clamp(max=0)
    high_T1 = inputs_TK.amax(1, keepdim=True).clamp(min=0)
    step_T1 = ((high_T1 - low_T1) / (2 * _LARGEST)).clamp(min=1e-12)
    middle_T1 = (high_T1 + low_T1) / 2
    return torch.round((inputs_TK - middle_T1) / step_T1) * step_T1 + middle_T1


def _round(
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    moments_KK: torch.Tensor,
    exact_E: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to whole steps, widest inputs first, each error carried over to the rest (GPTQ).

    Returns:
        rounded_NK: steps; zero for exact inputs.
        weight_NE: of exact inputs, which come last and have taken over what is left of the errors.
    """
    width = weight_NK.shape[1]
    last_K = moments_KK.diag().index_fill(0, exact_E, -1)
    order_K = torch.argsort(last_K, descending=True)
    left_NK = weight_NK[:, order_K].clone()
    carry_KK = _carry(moments_KK[order_K][:, order_K])
    rounded_NK = torch.zeros_like(left_NK)
    num_rounded = width - len(exact_E)
    for start in range(0, num_rounded, _COLUMNS):
        end = min(start + _COLUMNS, num_rounded)
        errors = torch.empty(len(weight_NK), end - start)
        for k in range(start, end):
            steps_N = torch.round(left_NK[:, k] / scale_N).clamp(-_LARGEST, _LARGEST)
            error_N = (left_NK[:, k] - steps_N * scale_N) / carry_KK[k, k]
            left_NK[:, k:end] -= error_N[:, None] * carry_KK[k, k:end]
            rounded_NK[:, k] = steps_N
            errors[:, k - start] = error_N
        left_NK[:, end:] -= errors @ carry_KK[start:end, end:]
    place_K = torch.argsort(order_K)
    return rounded_NK[:, place_K], left_NK[:, place_K[exact_E]]


def _carry(moments_KK: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the moments."""
    damped_KK = moments_KK.double()
    damped_KK += torch.eye(len(damped_KK)) * _DAMPING * damped_KK.diag().mean()
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_KK))
    carry_KK: torch.Tensor = torch.linalg.cholesky(inverse_KK, upper=True).float()
    return carry_KK
