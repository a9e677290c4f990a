"""What a network's pass over a text costs, and what the machine could do, in operations.

In: a network of transformers. Out: the floating-point operations that a text of so many tokens
needs (padding and whatever else a way of running adds are not needed); and the machine's own speed
at matrix products in an arithmetic, measured here. Both together are model FLOPs utilisation.

Source: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B.
"""

import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)

# For each product and shape; with a first call that is not timed, 0.1 to 0.4 s in all (two cores).
_MEASURED_S = 0.05
# A batch of MiniLM's widest layer, and of a network of 1024: int8 is fast at some shapes only.
_CPU_SHAPES = ((2048, 384, 1536), (2048, 1024, 1024))
# An accelerator is full only with large ones: 1.4 ms in bfloat16 at 800 TFLOP/s.
_ACCELERATOR_SHAPES = ((8192, 8192, 8192),)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network needs for a text, in floating-point operations.

    Args:
        weights: numbers of the matrices that each token is multiplied with. Layers that share
            theirs count once; what runs once a text, poolers and heads, is left out.
        width: numbers of all heads of a layer's attention together.
        reaches: (tokens that a token looks at at most, layers where that is so).
    """

    weights: int
    width: int
    reaches: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, network: Any) -> "Cost":  # noqa: ANN401 (any architecture)
        """Read it off a transformers model; None, static embeddings, multiplies nothing."""
        if network is None:
            return cls(0, 0, ())
        return cls(_num_weights(network), *_attention(network))

    def flops(self, tokens: int) -> float:
        """Return what a text of so many tokens needs."""
        attended = sum(layers * min(tokens, reach) for reach, layers in self.reaches)
        return tokens * (2.0 * self.weights + 4.0 * self.width * attended)


@functools.cache
def peak(arithmetic: str, device: str) -> float:
    """Return the best rate over all shapes, FLOP/s; measured once in the life of a process."""
    shapes = _CPU_SHAPES if device == "cpu" else _ACCELERATOR_SHAPES
    best = 0.0
    for m, k, n in shapes:
        for multiply in _products(arithmetic, device, m, k, n):
            best = max(best, 2.0 * m * k * n / _shortest(multiply, device))
    log.info("matrix products in %s reach %.0f GFLOP/s here", arithmetic, best / 1e9)
    return best


def _products(
    arithmetic: str, device: str, m: int, k: int, n: int
) -> Iterator[Callable[[], object]]:
    left, right = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    if arithmetic == "int8":
        left_8, right_8 = left.to(torch.int8), right.to(torch.int8)
        yield lambda: torch._int_mm(left_8, right_8)
        return
    dtype: torch.dtype = getattr(torch, arithmetic)
    left, right = left.to(dtype), right.to(dtype)
    yield lambda: left @ right
    if device == "cpu" and arithmetic == "float32":
        # Another BLAS: on some processors it is the faster one.
        yield lambda: np.matmul(left.numpy(), right.numpy())


def _shortest(multiply: Callable[[], object], device: str) -> float:
    """Return the seconds of the fastest call."""

    def run() -> float:
        start = time.perf_counter()
        multiply()
        if device != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    run()
    best, end = run(), time.perf_counter() + _MEASURED_S
    while time.perf_counter() < end:
        best = min(best, run())
    return best


def _num_weights(network: torch.nn.Module) -> int:
    tables = {
        id(table.weight) for table in network.modules() if isinstance(table, torch.nn.Embedding)
    }
    return sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in tables and not name.startswith("pooler.")
    )


def _attention(network: torch.nn.Module) -> tuple[int, tuple[tuple[float, int], ...]]:
    """Return `width` and `reaches` of `Cost`; no layers where the config does not say."""
    config: Any = getattr(network, "config", None)

    def stated(name: str) -> int:
        value = getattr(config, name, None)
        return value if isinstance(value, int) else 0  # some have a list, one for each layer

    layers = stated("num_hidden_layers")
    width = stated("head_dim") * stated("num_attention_heads") or stated("hidden_size")
    window: float = stated("sliding_window") or math.inf
    if not any(getattr(module, "is_causal", False) for module in network.modules()):
        window = 2 * window - 1  # it is what a token sees to one side, itself included
    default = ["full_attention" if window == math.inf else "sliding_attention"] * layers
    kinds = Counter(getattr(config, "layer_types", None) or default)
    reach = {"full_attention": math.inf, "sliding_attention": window}
    return width, tuple((reach[kind], kinds[kind]) for kind in reach if kinds[kind])
