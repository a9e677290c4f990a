"""A student in training that shall make a teacher's vectors, and rank as it does, at every size.

For each size the loss is the cross-entropy against the teacher's full-width opinion of the batch,
and how far the student's prefix points from the teacher's. A teacher that is no Matryoshka model is
turned to its principal axes first: no score of it changes, and its prefixes become worth learning.

Source: Hinton et al. 2015, arXiv:1503.02531 (soft targets); Vujanic and Rueckstieß 2025,
arXiv:2509.12539 (regression on the teacher's vectors).
Shapes: N texts, B pairs in the batch, D the student's full width, T the teacher's, K sizes.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from services.shared.vectors import Array, normalize
from services.trainer.training.adaptor import Vectors, principal_axes
from services.trainer.training.full import SCALE, FullModel
from services.trainer.training.loss import nested_loss, targets

REGRESSION_WEIGHT = 10.0
"""Of the regression beside the soft targets: cosines move less than cross-entropies."""


class Distill:
    """A text model in training (a `train.Trainee`).

    Args:
        student: the model, with its pairs.
        teacher: the teacher's vectors of these pairs, of unit length; as `teachers_axes` has them.
        dims: sizes to train for, ascending.
    """

    def __init__(self, student: FullModel, teacher: Vectors, dims: Sequence[int]) -> None:
        self._student = student
        self._anchors_NT = torch.from_numpy(teacher.anchors_ND)
        self._positives_NT = torch.from_numpy(teacher.positives_ND)
        self._anchor_rows_P = torch.from_numpy(teacher.anchor_rows_P)
        self._positive_rows_P = torch.from_numpy(teacher.positive_rows_P)
        self._dims = tuple(dims)
        self.parameters = student.parameters

    @property
    def num_tokens(self) -> int:
        """As `train.Trainee`."""
        return self._student.num_tokens

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the pairs, as `train.Trainee`."""
        queries_BD, documents_BD = self._student.vectors(rows_B)
        device = queries_BD.device
        queries_BT = self._anchors_NT[self._anchor_rows_P[rows_B]].to(device)
        documents_BT = self._positives_NT[self._positive_rows_P[rows_B]].to(device)
        blocked_BB = self._student.blocked(rows_B)
        targets_BB = targets(queries_BT, documents_BT, blocked_BB, SCALE, label_weight=0.0)
        ranks_K = nested_loss(queries_BD, documents_BD, self._dims, targets_BB, blocked_BB, SCALE)
        student_2BD = torch.cat([queries_BD, documents_BD])
        teacher_2BT = torch.cat([queries_BT, documents_BT])
        return ranks_K + REGRESSION_WEIGHT * _distances(student_2BD, teacher_2BT, self._dims)


def _distances(
    student_BD: torch.Tensor, teacher_BT: torch.Tensor, dims: Sequence[int]
) -> torch.Tensor:
    """Return distances_K: 1 minus the cosine of the two prefixes, on the mean."""
    cosines = [
        functional.cosine_similarity(student_BD[:, :dim], teacher_BT[:, :dim]).mean()
        for dim in dims
    ]
    return 1 - torch.stack(cosines)


def teachers_axes(documents_NT: Array, is_nested: bool) -> Array:
    """Return axes_TT, by which the teacher's vectors are turned before they are learned.

    Args:
        documents_NT: the teacher's vectors of the training texts.
        is_nested: whether its prefixes are good as they are.
    """
    vectors_NT = torch.from_numpy(normalize(documents_NT))
    axes_TT = torch.eye(vectors_NT.shape[1]) if is_nested else principal_axes(vectors_NT)
    axes: Array = axes_TT.numpy()
    return axes
