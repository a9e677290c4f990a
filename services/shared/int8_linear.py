"""A linear layer in int8: weights rounded so that their errors cancel on real inputs.

In: a layer's weights and what went through it on sample texts. Out: int8 weights with a scale per
output, for inputs that are rounded per token at run time.

Two things keep the error small. Inputs with a few wide numbers are smoothed first: divided per
number, and the weights multiplied by the same (SmoothQuant, arXiv:2211.10438). Weights are then
rounded one input after another, and the error of each is carried over to those not yet rounded
(GPTQ, arXiv:2210.17323).

Shapes: T sample tokens, K inputs, N outputs, G blocks of inputs that share a scale.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from services.shared.vectors import Array

# Powers of the inputs' widths to smooth by; the best is taken, layer by layer.
_SMOOTHING = (0.15, 0.3, 0.45, 0.6)
_LARGEST = 127
# Share of the mean that is added to the diagonal, so that the matrix can be inverted.
_DAMPING = 0.03
# Inputs that are rounded before the others hear of their errors; only speed depends on it.
_COLUMNS = 128
_NARROWEST = 1e-3


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
        weights: G matrices of K/G x N, int8.
        scale_GN: what one step of a weight is worth.
        sum_GN: of each output's int8 weights, for the middle of the inputs' range.
        bias_N: float32.
        smooth_K: what inputs are multiplied with before they are rounded.
    """

    weights: tuple[torch.Tensor, ...]
    scale_GN: Array
    sum_GN: Array
    bias_N: Array
    smooth_K: Array

    def to_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return what is to be kept, under names that begin with `name`."""
        return {
            f"{name}.weights": torch.stack(self.weights),
            **{
                f"{name}.{part}": torch.from_numpy(getattr(self, part))
                for part in ("scale_GN", "sum_GN", "bias_N", "smooth_K")
            },
        }

    @classmethod
    def from_tensors(cls, name: str, kept: dict[str, torch.Tensor]) -> Self:
        return cls(
            tuple(kept[f"{name}.weights"]),
            *(
                kept[f"{name}.{part}"].numpy()
                for part in ("scale_GN", "sum_GN", "bias_N", "smooth_K")
            ),
        )


def quantize_linear(
    weight_NK: torch.Tensor, bias_N: torch.Tensor, inputs: Inputs, num_blocks: int
) -> Int8Linear:
    """Round a layer.

    Args:
        weight_NK: float32.
        bias_N: float32.
        inputs: of this layer, on sample texts.
        num_blocks: G; K is a multiple of it. More blocks round finer.
    """
    smooth_K = _choose_smoothing(weight_NK, inputs, num_blocks)
    smooth_weight_NK = weight_NK / smooth_K
    scale_GN = _scales(smooth_weight_NK, num_blocks)
    moments_KK = inputs.moments_KK * smooth_K[:, None] * smooth_K
    rounded_NK = _round(smooth_weight_NK, scale_GN, moments_KK)
    blocks = rounded_NK.T.to(torch.int8).chunk(num_blocks)
    return Int8Linear(
        tuple(block.contiguous() for block in blocks),
        scale_GN.numpy(),
        np.stack([block.float().sum(0).numpy() for block in blocks]),
        bias_N.numpy(),
        smooth_K.numpy(),
    )


def _scales(weight_NK: torch.Tensor, num_blocks: int) -> torch.Tensor:
    widest_NG = weight_NK.abs().reshape(len(weight_NK), num_blocks, -1).amax(2)
    return (widest_NG.T / _LARGEST).clamp(min=1e-12).contiguous()


def _choose_smoothing(weight_NK: torch.Tensor, inputs: Inputs, num_blocks: int) -> torch.Tensor:
    """Try some powers with plain rounding; return what harms the outputs least."""
    exact_TN = inputs.some_TK @ weight_NK.T

    def harm(smooth_K: torch.Tensor) -> float:
        scale_GN = _scales(weight_NK / smooth_K, num_blocks)
        scale_NK = scale_GN.T.repeat_interleave(weight_NK.shape[1] // num_blocks, 1)
        rounded_NK = torch.round(weight_NK / smooth_K / scale_NK) * scale_NK
        rounded_TK = _round_inputs(inputs.some_TK * smooth_K, num_blocks)
        return float((rounded_TK @ rounded_NK.T - exact_TN).square().mean())

    candidates = [inputs.widest_K**-power for power in _SMOOTHING]
    return min((smooth_K / smooth_K.mean() for smooth_K in candidates), key=harm)


def _round_inputs(inputs_TK: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Do what `kernels.quantize` does, and undo it."""
    blocks_TGK = inputs_TK.reshape(len(inputs_TK), num_blocks, -1)
    low = blocks_TGK.amin(2, keepdim=True).clamp(max=0)
    high = blocks_TGK.amax(2, keepdim=True).clamp(min=0)
    step, middle = ((high - low) / (2 * _LARGEST)).clamp(min=1e-12), (high + low) / 2
    rounded_TGK = torch.round((blocks_TGK - middle) / step) * step + middle
    return rounded_TGK.reshape(inputs_TK.shape)


def _round(
    weight_NK: torch.Tensor, scale_GN: torch.Tensor, moments_KK: torch.Tensor
) -> torch.Tensor:
    """Round to whole steps, widest inputs first, each error carried over to the rest (GPTQ)."""
    width = weight_NK.shape[1]
    order_K = torch.argsort(moments_KK.diag(), descending=True)
    scale_NK = scale_GN.T.repeat_interleave(width // len(scale_GN), 1)[:, order_K]
    left_NK = weight_NK[:, order_K].clone()
    carry_KK = _carry(moments_KK[order_K][:, order_K])
    rounded_NK = torch.empty_like(left_NK)
    for start in range(0, width, _COLUMNS):
        end = min(start + _COLUMNS, width)
        errors = torch.empty(len(weight_NK), end - start)
        for k in range(start, end):
            scale_N = scale_NK[:, k]
            steps_N = torch.round(left_NK[:, k] / scale_N).clamp(-_LARGEST, _LARGEST)
            error_N = (left_NK[:, k] - steps_N * scale_N) / carry_KK[k, k]
            left_NK[:, k:end] -= error_N[:, None] * carry_KK[k, k:end]
            rounded_NK[:, k] = steps_N
            errors[:, k - start] = error_N
        left_NK[:, end:] -= errors @ carry_KK[start:end, end:]
    return rounded_NK[:, torch.argsort(order_K)]


def _carry(moments_KK: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the moments."""
    damped_KK = moments_KK.double()
    damped_KK += torch.eye(len(damped_KK)) * _DAMPING * damped_KK.diag().mean()
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_KK))
    carry_KK: torch.Tensor = torch.linalg.cholesky(inverse_KK, upper=True).float()
    return carry_KK
