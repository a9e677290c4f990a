"""The adaptor: one square matrix on frozen vectors that puts what matters into the first numbers.

A rotation (the default) is orthogonal, so every score at full size stays as it was, while short
prefixes come to rank like the full vector. A dense head may be any matrix, so it may gain at
full size too, or lose. Vectors come in computed; nothing here knows of text.

The target is the labels, or half of it is the base model's own full-width opinion. `pilot.py`
tries which fits the collection.

Shapes: N texts, or the positives and negatives of a batch; P pairs, B pairs in the batch, E
negatives beside its positives, D full width, K sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from services.shared.vectors import Array
from services.trainer.training.loss import nested_loss, same_text, targets
from services.trainer.training.negatives import Negatives

Head = Literal["rotation", "dense"]
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

_CHUNK_ROWS = 8192
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
        head: "rotation" or "dense".
        dims: sizes to train for, ascending.
        label_weight: share of the labels in the target, 0..1; the rest is the base's opinion.
    """

    def __init__(
        self, vectors: Vectors, head: Head, dims: Sequence[int], label_weight: float
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
        self._head = head
        self._label_weight = label_weight
        full = self._anchors_ND.shape[1]
        used = (
            self._anchors_ND[np.unique(vectors.anchor_rows_P)],
            self._positives_ND[np.unique(vectors.positive_rows_P)],
        )
        self._start_DD = principal_axes(torch.cat(used))
        # A rotation is the start times the Cayley transform of a skew matrix; dense is the sum.
        self._change_DD = torch.nn.Parameter(torch.zeros(full, full))
        self.parameters = {"change": self._change_DD}

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the pairs, as `train.Trainee`."""
        anchors_B, positives_B = self._anchor_rows_P[rows_B], self._positive_rows_P[rows_B]
        extra_E = torch.tensor(self._negatives.of(rows_B), dtype=torch.long)
        queries_BD = self._anchors_ND[anchors_B]
        documents_ND = self._positives_ND[torch.cat([positives_B, extra_E])]
        # None of them answers an anchor of the batch.
        blocked_BN = functional.pad(same_text(anchors_B, positives_B), (0, len(extra_E)))
        targets_BN = targets(queries_BD, documents_ND, blocked_BN, SCALE, self._label_weight)
        weight_DD = self._current()
        return nested_loss(
            queries_BD @ weight_DD.T, documents_ND @ weight_DD.T,
            self._dims, targets_BN, blocked_BN, SCALE,
        )  # fmt: skip

    @torch.no_grad()
    def weight(self) -> Array:
        """Return weight_DD, float32, to be applied as `vectors @ weight.T`.

        A rotation is polished in float64 to the nearest orthogonal matrix: what is left is the
        rounding of float32, below 1e-6 in any full-width cosine.
        """
        weight_DD = self._current().double()
        if self._head == "rotation":
            left_DD, _, right_DD = torch.linalg.svd(weight_DD)
            weight_DD = left_DD @ right_DD
        result: Array = weight_DD.float().numpy()
        return result

    def _current(self) -> torch.Tensor:
        if self._head == "dense":
            dense_DD: torch.Tensor = self._start_DD + self._change_DD
            return dense_DD
        upper_DD = self._change_DD.triu(diagonal=1)
        skew_DD = upper_DD - upper_DD.T
        eye_DD = torch.eye(len(skew_DD))
        rotation_DD = torch.linalg.solve(eye_DD + skew_DD, eye_DD - skew_DD)
        product_DD: torch.Tensor = rotation_DD @ self._start_DD
        return product_DD


def principal_axes(vectors_ND: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal axes_DD of the vectors, that of the largest share first.

    Not centred: cosines are taken from the origin. Fewer vectors than numbers are fine, the axes
    they leave open are any orthogonal ones.
    """
    full = vectors_ND.shape[1]
    products_DD = torch.zeros(full, full, dtype=torch.float64)
    for chunk_CD in torch.split(vectors_ND, _CHUNK_ROWS):
        chunk_CD = chunk_CD.double()
        products_DD.addmm_(chunk_CD.T, chunk_CD)
    _, axes_DD = torch.linalg.eigh(products_DD)
    ordered_DD: torch.Tensor = axes_DD.flip(1).T.float().contiguous()
    return ordered_DD
