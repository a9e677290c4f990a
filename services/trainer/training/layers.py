"""A finished head: linear layers without bias, some with a ReLU behind them.

What sentence-transformers has a module for (Dense), so that every server loads it. Lengths pass
through: twice the vector in, twice the vector out.

Shapes: N vectors, I numbers in, O numbers out, D full width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.shared.vectors import Array


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer."""

    weight_OI: Array
    """float32, applied as `vectors @ weight.T`."""
    is_rectified: bool = False
    """Whether negative numbers become 0."""


def turn(vectors_NI: Array, layers: Sequence[Layer]) -> Array:
    """Return vectors_NO: what the layers make of the vectors, one after the other."""
    for layer in layers:
        vectors_NI = vectors_NI @ layer.weight_OI.T
        if layer.is_rectified:
            vectors_NI = np.maximum(vectors_NI, 0)
    return vectors_NI
