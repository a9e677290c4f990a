"""The machine's matrix-multiply peak, as our own torch and numpy reach it.

    python -m bench.gemm [SECONDS]

Shapes: a batch of MiniLM's widest layer, a square one. The last line of stdout is one JSON object:
GFLOP/s (for int8: 10^9 operations a second) for each arithmetic.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

SHAPES = ((2048, 384, 1536), (4096, 4096, 4096))


def rate(multiply: Callable[[], Any], flops: float, seconds: float) -> float:
    """Return the best rate of single calls, GFLOP/s."""
    multiply()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
    return flops / best / 1e9


def multiplications(m: int, k: int, n: int) -> dict[str, Callable[[], Any]]:
    left, right = torch.randn(m, k), torch.randn(k, n)
    left_np, right_np = left.numpy(), right.numpy()
    left_16, right_16 = left.bfloat16(), right.bfloat16()
    left_8, right_8 = left.to(torch.int8), right.to(torch.int8)
    return {
        "float32": lambda: left @ right,
        # Another BLAS: on some processors it is the faster one.
        "float32 numpy": lambda: np.matmul(left_np, right_np),
        "bfloat16": lambda: left_16 @ right_16,
        "int8": lambda: torch._int_mm(left_8, right_8),
    }


def peaks(seconds: float, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> dict[str, float]:
    """Return the best rate over all shapes for each arithmetic, GFLOP/s."""
    best: dict[str, float] = {}
    for m, k, n in shapes:
        for name, multiply in multiplications(m, k, n).items():
            arithmetic = name.split()[0]
            try:
                reached = rate(multiply, 2.0 * m * k * n, seconds)
            except RuntimeError as error:
                print(f"{name} at {m}x{k}x{n}: {error}", file=sys.stderr)
                continue
            best[arithmetic] = max(best.get(arithmetic, 0.0), reached)
    return best


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print(json.dumps({name: round(value, 1) for name, value in peaks(seconds).items()}))


if __name__ == "__main__":
    main()
