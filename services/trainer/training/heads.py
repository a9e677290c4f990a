"""The heads that an adaptor may train: a rotation, any matrix, or a rotation and a small network.

Each starts as the principal axes of the vectors and holds what is trained under a name.

Shapes: B vectors, D full width, H hidden numbers of the network.
"""

import math
from typing import Protocol

import torch
from torch.nn import functional

from services.trainer.jobs.hyperparameters import Head
from services.trainer.training.layers import Layer

_HIDDEN = 0.5  # of the full width


class TrainedHead(Protocol):
    """A head in training."""

    parameters: dict[str, torch.nn.Parameter]

    def __call__(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        """Return the turned vectors_BD, of any length, with gradients."""

    def layers(self) -> tuple[Layer, ...]:
        """Return the head as it is now."""


class Rotation:
    """An orthogonal matrix: the start times the Cayley transform of a skew matrix."""

    def __init__(self, start_DD: torch.Tensor) -> None:
        self._start_DD = start_DD
        self._change_DD = torch.nn.Parameter(torch.zeros_like(start_DD))
        self.parameters = {"change": self._change_DD}

    def __call__(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        return vectors_BD @ self._matrix().T

    @torch.no_grad()
    def layers(self) -> tuple[Layer, ...]:
        """Return the matrix, polished in float64 to the nearest orthogonal one.

        What is left is the rounding of float32, below 1e-6 in any full-width cosine.
        """
        left_DD, _, right_DD = torch.linalg.svd(self._matrix().double())
        return (Layer((left_DD @ right_DD).float().numpy()),)

    def _matrix(self) -> torch.Tensor:
        upper_DD = self._change_DD.triu(diagonal=1)
        skew_DD = upper_DD - upper_DD.T
        eye_DD = torch.eye(len(skew_DD))
        rotation_DD = torch.linalg.solve(eye_DD + skew_DD, eye_DD - skew_DD)
        product_DD: torch.Tensor = rotation_DD @ self._start_DD
        return product_DD


class Dense:
    """Any square matrix: the start and what is added to it."""

    def __init__(self, start_DD: torch.Tensor) -> None:
        self._start_DD = start_DD
        self._change_DD = torch.nn.Parameter(torch.zeros_like(start_DD))
        self.parameters = {"change": self._change_DD}

    def __call__(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        turned_BD: torch.Tensor = vectors_BD @ (self._start_DD + self._change_DD).T
        return turned_BD

    @torch.no_grad()
    def layers(self) -> tuple[Layer, ...]:
        return (Layer((self._start_DD + self._change_DD).numpy()),)


class Residual:
    """The start, and a network of one hidden layer added to it.

    Source: Yoon et al. 2024, arXiv:2407.20243 (an MLP added to frozen vectors).
    """

    def __init__(self, start_DD: torch.Tensor, seed: int) -> None:
        full = len(start_DD)
        hidden = max(1, int(_HIDDEN * full))
        random = torch.Generator().manual_seed(seed)
        down_HD = torch.randn(hidden, full, generator=random) / math.sqrt(full)
        self._start_DD = start_DD
        self._down_HD = torch.nn.Parameter(down_HD)
        self._up_DH = torch.nn.Parameter(torch.zeros(full, hidden))
        self.parameters = {"down": self._down_HD, "up": self._up_DH}

    def __call__(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        hidden_BH = functional.relu(vectors_BD @ self._down_HD.T)
        turned_BD: torch.Tensor = vectors_BD @ self._start_DD.T + hidden_BH @ self._up_DH.T
        return turned_BD

    @torch.no_grad()
    def layers(self) -> tuple[Layer, ...]:
        """Return the sum as two plain layers, which know no sum.

        The vector goes through the ReLU twice, as it is and turned round: x = relu(x) - relu(-x),
        to the last bit.
        """
        eye_DD = torch.eye(len(self._start_DD))
        first = torch.cat([self._down_HD, eye_DD, -eye_DD])
        second = torch.cat([self._up_DH, self._start_DD, -self._start_DD], dim=1)
        return Layer(first.numpy(), is_rectified=True), Layer(second.numpy())


def make_head(kind: Head, start_DD: torch.Tensor, seed: int) -> TrainedHead:
    """Return a head before training."""
    if kind == "residual":
        return Residual(start_DD, seed)
    return Rotation(start_DD) if kind == "rotation" else Dense(start_DD)
