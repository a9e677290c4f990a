"""All weights of a text model in training: tokens in, nested loss out.

The model's own forward pass, packed as when it serves, with dropout on. Texts are tokenised once;
pictures are read in each step that they are in, as all their pixels would fill the memory.
A batch may be shared by several processes; each encodes its part, and the loss is the whole's.

Shapes: P pairs, B pairs in the batch, S pairs of this process, E negatives beside the positives, N
documents: the positives of the batch and these, D full width.
"""

from collections.abc import Sequence

import torch

from services.shared.model import Role, TextModel
from services.shared.packing import Tokens
from services.trainer.data.checks import text_key
from services.trainer.data.pairs import Pair, number_texts
from services.trainer.data.pictures import Item, Picture
from services.trainer.training import parallel
from services.trainer.training.encode import read_picture
from services.trainer.training.loss import nested_loss, same_text, targets
from services.trainer.training.negatives import Negatives
from services.trainer.training.nested import TextNumbers
from services.trainer.training.passes import Passes

SCALE = 20.0  # sentence-transformers' scale of cosines in this loss
TOKENS_AT_ONCE = 16_384
"""Tokens of a batch that go through the model at the same time; more go in parts, twice."""


def begin_training(
    model: TextModel, parameters: dict[str, torch.nn.Parameter] | None
) -> dict[str, torch.nn.Parameter]:
    """Set a model to training; return what is trained of it, None: all weights."""
    chosen = parameters or dict(model.transformer.named_parameters())
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    model.transformer.train()
    return chosen


class FullModel:
    """A text model in training (a `train.Trainee`).

    Args:
        model: in float32; its weights change.
        pairs: the training pairs.
        dims: sizes to train for, ascending; the last is the full one.
        passes: how texts go through the model; None: in parts of `TOKENS_AT_ONCE`, in float32.
        parameters: what is trained, under its names; None: all weights.
        with_kernel: whether `loss_kernel.py` computes the loss, which takes labels alone.
        label_weight: share of the labels in what prefixes learn, 0..1; the rest is what the model
            itself, as it is in that step, makes of the batch at full size.
    """

    def __init__(
        self,
        model: TextModel,
        pairs: Sequence[Pair],
        dims: Sequence[int],
        passes: Passes | None = None,
        parameters: dict[str, torch.nn.Parameter] | None = None,
        with_kernel: bool = False,
        label_weight: float = 1.0,
    ) -> None:
        self._model = model
        self._dims = tuple(dims)
        self._label_weight = label_weight
        self._with_kernel = with_kernel
        self._passes = passes or Passes(model, TOKENS_AT_ONCE)
        # Texts that count as the same have the same number.
        keys = {t: text_key(t) for p in pairs for t in (p.anchor, p.positive, *p.negatives)}
        numbers = number_texts(keys.values())
        anchors, positives = (
            [numbers[keys[text]] for text in texts]
            for texts in ([pair.anchor for pair in pairs], [pair.positive for pair in pairs])
        )
        negatives = [[numbers[keys[text]] for text in pair.negatives] for pair in pairs]
        self._negatives = Negatives(anchors, positives, negatives)
        self._anchors_P, self._positives_P = torch.tensor(anchors), torch.tensor(positives)
        self._anchor_tokens = self._tokenize([pair.anchor for pair in pairs], "query")
        self._positive_tokens = self._tokenize([pair.positive for pair in pairs], "document")
        texts = {numbers[keys[text]]: text for pair in pairs for text in pair.negatives}
        tokens = self._tokenize(list(texts.values()), "document")
        self._negative_tokens = dict(zip(texts, tokens, strict=True))
        self.parameters = begin_training(model, parameters)

    @property
    def num_tokens(self) -> int:
        """As `train.Trainee`."""
        return self._passes.num_tokens

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of this process's share of the pairs, as `train.Trainee`."""
        share = parallel.share(rows_B)
        rows_B = rows_B[: len(rows_B) // parallel.size() * parallel.size()]
        rows = rows_B[share].tolist()
        # Each process takes as many; what cannot be divided is left out.
        extra = self._negatives.of(rows_B)
        each = len(extra) // parallel.size()
        extra = extra[: each * parallel.size()]
        first = parallel.rank() * each
        vectors_SD = self._passes(
            self._read([self._anchor_tokens[row] for row in rows], "query")
            + self._read([self._positive_tokens[row] for row in rows], "document")
            + self._read(
                [self._negative_tokens[number] for number in extra[first : first + each]],
                "document",
            )
        )
        queries_SD, documents_SD = vectors_SD[: len(rows)], vectors_SD[len(rows) :]
        # Of each process its positives and then its negatives: all positives come first.
        gathered = parallel.gather(documents_SD).view(parallel.size(), len(rows) + each, -1)
        parts = torch.split(gathered, [len(rows), each], dim=1)
        documents_ND = torch.cat([part.flatten(0, 1) for part in parts])
        device = documents_ND.device
        anchors_B, positives_B = (
            numbers_P[rows_B].to(device) for numbers_P in (self._anchors_P, self._positives_P)
        )
        extra_E = torch.tensor(extra, dtype=torch.long, device=device)
        numbers = TextNumbers(
            anchors_B[share], positives_B[share],
            torch.cat([anchors_B, torch.full_like(extra_E, -1)]), torch.cat([positives_B, extra_E]),
        )  # fmt: skip
        labels_S = torch.arange(share.start, share.stop, device=device)
        if self._with_kernel:
            # Not at the top: it is installed with the extra `kernel` only.
            from services.trainer.training.loss_kernel import kernel_loss

            return kernel_loss(queries_SD, documents_ND, self._dims, numbers, SCALE, labels_S)
        if self._label_weight == 1:
            return nested_loss(queries_SD, documents_ND, self._dims, None, numbers, SCALE, labels_S)
        return self._led_losses(queries_SD, documents_ND, numbers, labels_S)

    def _led_losses(
        self,
        queries_SD: torch.Tensor,
        documents_ND: torch.Tensor,
        numbers: TextNumbers,
        labels_S: torch.Tensor,
    ) -> torch.Tensor:
        """Return losses_K where the full size, which learns from labels alone, leads the others."""
        *short, full = self._dims
        blocked_SN = numbers.blocked(slice(0, len(queries_SD)), labels_S)
        targets_SN = targets(
            queries_SD.float(), documents_ND.float(), blocked_SN, SCALE,
            self._label_weight, labels_S,
        )  # fmt: skip
        led_K = nested_loss(queries_SD, documents_ND, short, targets_SN, blocked_SN, SCALE)
        own_1 = nested_loss(queries_SD, documents_ND, [full], None, numbers, SCALE, labels_S)
        return torch.cat([led_K, own_1])

    def vectors(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pairs' queries_BD and documents_BD, with gradients."""
        rows = rows_B.tolist()
        vectors_2BD = self._passes(
            self._read([self._anchor_tokens[row] for row in rows], "query")
            + self._read([self._positive_tokens[row] for row in rows], "document")
        )
        queries_BD, documents_BD = vectors_2BD.chunk(2)
        return queries_BD, documents_BD

    def blocked(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return blocked_BB of the pairs, as `loss.same_text`."""
        return same_text(self._anchors_P[rows_B], self._positives_P[rows_B]).to(self._model.device)

    def _tokenize(self, items: Sequence[Item], role: Role) -> list[Tokens | Picture]:
        """Tokenise the texts among some items."""
        texts = iter(self._model.tokenize([item for item in items if isinstance(item, str)], role))
        return [
            item if isinstance(item, Picture) else self._model.cut_tokens(next(texts))
            for item in items
        ]

    def _read(self, items: Sequence[Tokens | Picture], role: Role) -> list[Tokens]:
        """Read the pictures among some items."""
        return [
            read_picture(self._model, item, role) if isinstance(item, Picture) else item
            for item in items
        ]
