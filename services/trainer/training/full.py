"""All weights of a text model in training: tokens in, nested loss out.

The model's own forward pass, packed as when it serves, with dropout on. Texts are tokenised once.

Shapes: P pairs, B pairs in the batch, D full width.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from services.shared.model import Role, TextModel
from services.shared.packing import Tokens
from services.trainer.data.pairs import Pair, number_texts
from services.trainer.training.loss import nested_loss, same_text, targets

SCALE = 20.0  # sentence-transformers' scale of cosines in this loss


class FullModel:
    """A text model in training (a `train.Trainee`).

    Args:
        model: in float32; its weights change.
        pairs: the training pairs.
        dims: sizes to train for, ascending; the last is the full one.
        parameters: what is trained, under its names; None: all weights.
    """

    def __init__(
        self,
        model: TextModel,
        pairs: Sequence[Pair],
        dims: Sequence[int],
        parameters: dict[str, torch.nn.Parameter] | None = None,
    ) -> None:
        self._model = model
        self._dims = tuple(dims)
        numbers = number_texts(text for pair in pairs for text in (pair.anchor, pair.positive))
        self._anchors_P = torch.tensor([numbers[pair.anchor] for pair in pairs])
        self._positives_P = torch.tensor([numbers[pair.positive] for pair in pairs])
        self._anchor_tokens = self._tokenize([pair.anchor for pair in pairs], "query")
        self._positive_tokens = self._tokenize([pair.positive for pair in pairs], "document")
        self.parameters = parameters or dict(model.transformer.named_parameters())
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        model.transformer.train()

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the pairs, as `train.Trainee`."""
        queries_BD, documents_BD = self.vectors(rows_B)
        blocked_BB = self.blocked(rows_B)
        # Labels only: the teacher would be the model itself, which is about to change.
        targets_BB = targets(queries_BD, documents_BD, blocked_BB, SCALE, label_weight=1.0)
        return nested_loss(queries_BD, documents_BD, self._dims, targets_BB, blocked_BB, SCALE)

    def vectors(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pairs' queries_BD and documents_BD, with gradients."""
        rows = rows_B.tolist()
        vectors_2BD = self._forward(
            [self._anchor_tokens[row] for row in rows]
            + [self._positive_tokens[row] for row in rows]
        )
        queries_BD, documents_BD = vectors_2BD.chunk(2)
        return queries_BD, documents_BD

    def blocked(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return blocked_BB of the pairs, as `loss.same_text`."""
        blocked_BB = same_text(self._anchors_P[rows_B], self._positives_P[rows_B])
        return blocked_BB.to(self._model.device)

    def _forward(self, texts: list[Tokens]) -> torch.Tensor:
        """Return vectors in the order of `texts`; the model wants them sorted by length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        sorted_BD = self._model.forward([texts[i] for i in order])
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        vectors_BD = sorted_BD[back.to(sorted_BD.device)]
        if self._model.pre_op == "layer_norm":
            vectors_BD = functional.layer_norm(vectors_BD, vectors_BD.shape[1:])
        return vectors_BD

    def _tokenize(self, texts: Sequence[str], role: Role) -> list[Tokens]:
        tokens = self._model.tokenize(texts, role)
        return [self._model.cut_tokens(ids) for ids in tokens]
