"""The loss of nested prefixes: every size must rank as the target says, all sizes in one pass.

For each size the cosines of all queries with all positives of the batch, each prefix normalised
by itself, become one softmax per query; the loss is its cross-entropy against a target. With the
pair's own positive as the target this is InfoNCE; with the softmax of a teacher's full-width
cosines it is distillation; mixed, it is both at once.

All sizes together cost the matrix products of the widest alone: `nested.py` does the arithmetic.

Source: Kusupati et al. 2022, arXiv:2205.13147 (nested prefixes); van den Oord et al. 2018,
arXiv:1807.03748 (InfoNCE).
Shapes: B pairs in the batch, N documents, C classes, D full width, K sizes.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from services.trainer.training.nested import Asked, NestedSoftmax, TextNumbers, as_dims


def same_text(anchors_B: torch.Tensor, positives_B: torch.Tensor) -> torch.Tensor:
    """Mark the pairs of the batch that must not serve each other as negatives.

    Args:
        anchors_B: a number for each anchor's text, equal for equal texts.
        positives_B: the same of the positives.

    Returns:
        blocked_BB: true where row and column have the anchor or the positive in common; never on
        the diagonal.
    """
    blocked_BB = (anchors_B[:, None] == anchors_B) | (positives_B[:, None] == positives_B)
    return blocked_BB.fill_diagonal_(False)


@torch.no_grad()
def targets(
    queries_BD: torch.Tensor,
    positives_BD: torch.Tensor,
    blocked_BB: torch.Tensor,
    scale: float,
    label_weight: float,
    labels_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix the labels (each query's own positive) with a teacher's opinion of all positives.

    Args:
        queries_BD: the teacher's full vectors.
        positives_BD: the same of the positives, and of any number of other documents.
        blocked_BB: as `same_text`.
        scale: times the cosine, in the teacher's softmax.
        label_weight: 1: labels only; 0: teacher only.
        labels_B: the row of each query's own document; None: its own row.

    Returns:
        targets_BB: each row sums to 1; zero where blocked.
    """
    if labels_B is None:
        labels_B = torch.arange(len(queries_BD), device=queries_BD.device)
    cosines_BB = functional.normalize(queries_BD) @ functional.normalize(positives_BD).T
    teacher_BB = (scale * cosines_BB).masked_fill(blocked_BB, -torch.inf).softmax(dim=1)
    mixed_BB = teacher_BB.mul_(1 - label_weight)
    own_B1 = mixed_BB.new_full((len(mixed_BB), 1), label_weight)
    return mixed_BB.scatter_add_(1, labels_B[:, None], own_B1)


def nested_loss(
    queries_BD: torch.Tensor,
    positives_BD: torch.Tensor,
    dims: Sequence[int],
    targets_BB: torch.Tensor | None,
    blocked_BB: torch.Tensor | TextNumbers | None,
    scale: float | torch.Tensor,
    labels_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy at each size.

    In float32 at least, whatever the vectors are in and whatever autocast is on. Without
    `targets_BB` nothing is ever held for each pair of a query and a document but the chunks of
    `nested.CHUNK_BYTES`, so the batch is bounded by its vectors alone.

    Args:
        queries_BD: not cut, of any length; gradients flow into both.
        positives_BD: row i belongs to query i, and any number of other documents follow; or, with
            `labels_B` or soft targets, any number of documents in any order.
        dims: ascending.
        targets_BB: as `targets`; None: each query's own document alone.
        blocked_BB: as `same_text`; or the numbers from which its rows are made when they are
            wanted, where there are no targets; None: every document is a negative.
        scale: times the cosine, before the softmax; or scale_K, one for each size.
        labels_B: without `targets_BB`, the row of each query's own document; None: its own row.

    Returns:
        losses_K: one number for each size; their sum is what to minimise. To weigh sizes, weigh
        them in the sum.

    Raises:
        ValueError: what is above does not hold.
    """
    dims = as_dims(dims, queries_BD.shape[1])
    if targets_BB is not None and labels_B is not None:
        raise ValueError("give targets_BB or labels_B, not both")
    with torch.autocast(queries_BD.device.type, enabled=False):
        queries_BD, positives_BD = _as_float(queries_BD), _as_float(positives_BD)
        scale_K = torch.as_tensor(scale, dtype=queries_BD.dtype, device=queries_BD.device)
        if targets_BB is not None:
            targets_BB = targets_BB.to(queries_BD.dtype)
        elif labels_B is None:
            labels_B = torch.arange(len(queries_BD), device=queries_BD.device)
        asked = Asked(labels_B, targets_BB, blocked_BB)
        losses_K: torch.Tensor = NestedSoftmax.apply(  # type: ignore[no-untyped-call]
            queries_BD, positives_BD, scale_K.expand(len(dims)), dims, asked
        )
    return losses_K


def nested_classes(
    vectors_BD: torch.Tensor,
    classes_CD: torch.Tensor,
    labels_B: torch.Tensor,
    dims: Sequence[int],
    scale: float | torch.Tensor,
) -> torch.Tensor:
    """Return the mean cross-entropy of telling each text's class by its cosines, at each size.

    Args:
        vectors_BD: not cut, of any length; gradients flow into both.
        classes_CD: a vector for each class, learned or the mean of its texts; it is cut as texts'
            vectors are, so that a class is found at every size.
        labels_B: each text's class, 0 to C - 1.
        dims: ascending.
        scale: as `nested_loss`.

    Returns:
        losses_K: as `nested_loss`.
    """
    return nested_loss(vectors_BD, classes_CD, dims, None, None, scale, labels_B)


def _as_float(vectors: torch.Tensor) -> torch.Tensor:
    """Return at least float32: sums of many rounded products need its digits."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
