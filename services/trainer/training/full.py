"""All weights of a text model in training: tokens in, nested loss out.

The model's own forward pass, packed as when it serves, with dropout on. Texts are tokenised once.
A batch may be shared by several processes; each encodes its part, and the loss is the whole's.

Shapes: P pairs, B pairs in the batch, S pairs of this process, D full width.
"""

from collections.abc import Sequence

import torch

from services.shared.model import Role, TextModel
from services.shared.packing import Tokens
from services.trainer.data.pairs import Pair, number_texts
from services.trainer.training import parallel
from services.trainer.training.loss import nested_loss, same_text
from services.trainer.training.nested import TextNumbers
from services.trainer.training.passes import Passes

SCALE = 20.0  # sentence-transformers' scale of cosines in this loss
TOKENS_AT_ONCE = 16_384
"""Tokens of a batch that go through the model at the same time; more go in parts, twice."""


class FullModel:
    """A text model in training (a `train.Trainee`).

    Args:
        model: in float32; its weights change.
        pairs: the training pairs.
        dims: sizes to train for, ascending; the last is the full one.
        passes: how texts go through the model; None: in parts of `TOKENS_AT_ONCE`, in float32.
        parameters: what is trained, under its names; None: all weights.
    """

    def __init__(
        self,
        model: TextModel,
        pairs: Sequence[Pair],
        dims: Sequence[int],
        passes: Passes | None = None,
        parameters: dict[str, torch.nn.Parameter] | None = None,
    ) -> None:
        self._model = model
        self._dims = tuple(dims)
        self._passes = passes or Passes(model, TOKENS_AT_ONCE)
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
        """Return losses_K of this process's share of the pairs, as `train.Trainee`."""
        share = parallel.share(rows_B)
        rows_B = rows_B[: len(rows_B) // parallel.size() * parallel.size()]
        rows = rows_B[share].tolist()
        vectors_2SD = self._passes(
            [self._anchor_tokens[row] for row in rows]
            + [self._positive_tokens[row] for row in rows]
        )
        queries_SD, documents_SD = vectors_2SD.chunk(2)
        documents_BD = parallel.gather(documents_SD)
        device = documents_BD.device
        anchors_B, positives_B = (
            numbers_P[rows_B].to(device) for numbers_P in (self._anchors_P, self._positives_P)
        )
        numbers = TextNumbers(anchors_B[share], positives_B[share], anchors_B, positives_B)
        labels_S = torch.arange(share.start, share.stop, device=device)
        # Labels only: the teacher would be the model itself, which is about to change.
        return nested_loss(queries_SD, documents_BD, self._dims, None, numbers, SCALE, labels_S)

    def vectors(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pairs' queries_BD and documents_BD, with gradients."""
        rows = rows_B.tolist()
        vectors_2BD = self._passes(
            [self._anchor_tokens[row] for row in rows]
            + [self._positive_tokens[row] for row in rows]
        )
        queries_BD, documents_BD = vectors_2BD.chunk(2)
        return queries_BD, documents_BD

    def blocked(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return blocked_BB of the pairs, as `loss.same_text`."""
        return same_text(self._anchors_P[rows_B], self._positives_P[rows_B]).to(self._model.device)

    def _tokenize(self, texts: Sequence[str], role: Role) -> list[Tokens]:
        tokens = self._model.tokenize(texts, role)
        return [self._model.cut_tokens(ids) for ids in tokens]
