"""The adaptor: a head on frozen vectors that puts what matters into the first numbers.

A rotation (the default) is orthogonal, so every score at full size stays as it was, while short
prefixes come to rank like the full vector. Other heads may gain at full size too, or lose; see
`heads.py`. Vectors come in computed; nothing here knows of text.

The target is the labels, or half of it is the base model's own full-width opinion. `pilot.py`
tries which fits the collection.

Shapes: N texts, or the positives and negatives of a batch; P pairs, B pairs in the batch, E
negatives beside its positives, D full width, K sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from services.shared.vectors import Array
from services.trainer.jobs.hyperparameters import Head
from services.trainer.training.heads import make_head
from services.trainer.training.layers import Layer
from services.trainer.training.loss import nested_loss, same_text, targets
from services.trainer.training.negatives import Negatives

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

_CHUNK_ROWS, _BLOCK_COLUMNS = 8192, 512
SCALE = 20.0  # sentence-transformers' scale of cosines in this loss


@dataclass(frozen=True, slots=True)
class Vectors:
    """The pairs as frozen vectors; each distinct text once."""

    anchors_ND: Array
    positives_ND: Array
    anchor_rows_P: Rows
    """For each pair, the row of `anchors_ND`."""
    positive_rows_P: Rows
    """For each pair, the row of `positives_ND`."""
    negative_rows_P: tuple[tuple[int, ...], ...] = ()
    """For each pair, the rows of `positives_ND` that are its negatives; empty: no pair has any."""

    def take(self, pairs: Sequence[int]) -> "Vectors":
        """Return the same with some of the pairs only."""
        rows = np.asarray(pairs)
        return replace(
            self,
            anchor_rows_P=self.anchor_rows_P[rows],
            positive_rows_P=self.positive_rows_P[rows],
            negative_rows_P=tuple(self.negative_rows_P[row] for row in pairs)
            if self.negative_rows_P
            else (),
        )


class Adaptor:
    """The head in training (a `train.Trainee`).

    Args:
        vectors: the training pairs.
        head: which.
        dims: sizes to train for, ascending.
        label_weight: share of the labels in the target, 0..1; the rest is the base's opinion.
        seed: of a head that starts with numbers of chance.
    """

    def __init__(
        self, vectors: Vectors, head: Head, dims: Sequence[int], label_weight: float, seed: int = 0
    ) -> None:
        self._anchors_ND = functional.normalize(torch.from_numpy(vectors.anchors_ND))
        self._positives_ND = functional.normalize(torch.from_numpy(vectors.positives_ND))
        self._anchor_rows_P = torch.from_numpy(vectors.anchor_rows_P)
        self._positive_rows_P = torch.from_numpy(vectors.positive_rows_P)
        self._negatives = Negatives(
            vectors.anchor_rows_P.tolist(),
            vectors.positive_rows_P.tolist(),
            vectors.negative_rows_P or [()] * len(vectors.anchor_rows_P),
        )
        self._dims = tuple(dims)
        self._label_weight = label_weight
        used = (
            self._anchors_ND[np.unique(vectors.anchor_rows_P)],
            self._positives_ND[np.unique(vectors.positive_rows_P)],
        )
        self._head = make_head(head, principal_axes(torch.cat(used)), seed)
        self.parameters = self._head.parameters

    num_tokens = 0

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the pairs, as `train.Trainee`."""
        anchors_B, positives_B = self._anchor_rows_P[rows_B], self._positive_rows_P[rows_B]
        extra_E = torch.tensor(self._negatives.of(rows_B), dtype=torch.long)
        queries_BD = self._anchors_ND[anchors_B]
        documents_ND = self._positives_ND[torch.cat([positives_B, extra_E])]
        # None of them answers an anchor of the batch.
        blocked_BN = functional.pad(same_text(anchors_B, positives_B), (0, len(extra_E)))
        targets_BN = targets(queries_BD, documents_ND, blocked_BN, SCALE, self._label_weight)
        turned_MD = self._head(torch.cat([queries_BD, documents_ND]))
        queries_BD, documents_ND = turned_MD[: len(rows_B)], turned_MD[len(rows_B) :]
        return nested_loss(queries_BD, documents_ND, self._dims, targets_BN, blocked_BN, SCALE)

    def layers(self) -> tuple[Layer, ...]:
        """Return the head as it is now, for `layers.turn`."""
        return self._head.layers()

    def weight(self) -> Array:
        """Return weight_DD of a head that is one matrix, applied as `vectors @ weight.T`."""
        (layer,) = self.layers()
        return layer.weight_OI


def principal_axes(vectors_ND: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal axes_DD of the vectors, that of the largest share first.

    Not centred: cosines are taken from the origin. Fewer vectors than numbers are fine, the axes
    they leave open are any orthogonal ones.
    """
    full = vectors_ND.shape[1]
    products_DD = torch.zeros(full, full, dtype=torch.float64)
    for chunk_CD in torch.split(vectors_ND, _CHUNK_ROWS):
        # Products of 8192 numbers in float32, their sums in float64; of the symmetric matrix the
        # upper half.
        for begin in range(0, full, _BLOCK_COLUMNS):
            end = begin + _BLOCK_COLUMNS
            products_DD[begin:end, begin:] += chunk_CD[:, begin:end].T @ chunk_CD[:, begin:]
    _, axes_DD = torch.linalg.eigh(products_DD, UPLO="U")
    ordered_DD: torch.Tensor = axes_DD.flip(1).T.float().contiguous()
    return ordered_DD
