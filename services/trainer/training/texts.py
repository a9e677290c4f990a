"""Texts whose vectors are in training: frozen ones under a head, or those of a text model.

What is learned of them, `graded.py` says. Texts are known by their rows here.

Shapes: N texts, B texts in the batch, D full width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional

from services.shared.model import TextModel
from services.shared.vectors import Array
from services.trainer.jobs.hyperparameters import Head
from services.trainer.training.adaptor import principal_axes
from services.trainer.training.full import begin_training
from services.trainer.training.heads import make_head
from services.trainer.training.layers import Layer
from services.trainer.training.passes import Passes


class Texts(Protocol):
    """Where the vectors of texts come from."""

    parameters: dict[str, torch.nn.Parameter]

    @property
    def num_tokens(self) -> int:
        """As `train.Trainee`."""

    def vectors(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return vectors_BD of some texts, not cut, of any length, with gradients."""


class TurnedTexts:
    """Frozen vectors under a head.

    Args:
        vectors_ND: the base's, of each text.
        head: which.
        seed: of a head that starts with numbers of chance.
    """

    num_tokens = 0

    def __init__(self, vectors_ND: Array, head: Head, seed: int) -> None:
        self._vectors_ND = functional.normalize(torch.from_numpy(vectors_ND))
        self._head = make_head(head, principal_axes(self._vectors_ND), seed)
        self.parameters = self._head.parameters

    def vectors(self, rows_B: torch.Tensor) -> torch.Tensor:
        """As `Texts`."""
        return self._head(self._vectors_ND[rows_B])

    def layers(self) -> tuple[Layer, ...]:
        """Return the head as it is now, for `layers.turn`."""
        return self._head.layers()


class ModelTexts:
    """Texts through a text model, without a prompt; they are tokenised once.

    Args:
        model: in float32; its weights change.
        texts: each once.
        passes: how they go through the model.
        parameters: what is trained, under its names; None: all weights.
    """

    def __init__(
        self,
        model: TextModel,
        texts: Sequence[str],
        passes: Passes,
        parameters: dict[str, torch.nn.Parameter] | None,
    ) -> None:
        self._passes = passes
        self._tokens = [model.cut_tokens(ids) for ids in model.tokenize(texts)]
        self.parameters = begin_training(model, parameters)

    @property
    def num_tokens(self) -> int:
        """As `train.Trainee`."""
        return self._passes.num_tokens

    def vectors(self, rows_B: torch.Tensor) -> torch.Tensor:
        """As `Texts`."""
        return self._passes([self._tokens[row] for row in rows_B.tolist()])
