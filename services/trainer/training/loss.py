"""The loss of nested prefixes: every size must rank as the target says, all sizes in one pass.

For each size the cosines of all queries with all positives of the batch, each prefix normalised
by itself, become one softmax per query; the loss is its cross-entropy against a target. With the
pair's own positive as the target this is InfoNCE; with the softmax of a teacher's full-width
cosines it is distillation; mixed, it is both at once.

The dot products of a prefix are those of the shorter prefix plus those of the columns between
them, so all sizes together cost the matrix products of the widest alone. Autograd runs the same
recurrence backwards.

Source: Kusupati et al. 2022, arXiv:2205.13147 (nested prefixes); van den Oord et al. 2018,
arXiv:1807.03748 (InfoNCE).
Shapes: B pairs in the batch, D full width, K sizes.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

# Keeps the norm of a prefix of zeros finite; far below any square that float32 training meets.
_EPS = 1e-20


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
) -> torch.Tensor:
    """Mix the labels (each query's own positive) with a teacher's opinion of all positives.

    Args:
        queries_BD: the teacher's full vectors.
        positives_BD: the same of the positives.
        blocked_BB: as `same_text`.
        scale: times the cosine, in the teacher's softmax.
        label_weight: 1: labels only; 0: teacher only.

    Returns:
        targets_BB: each row sums to 1; zero where blocked.
    """
    cosines_BB = functional.normalize(queries_BD) @ functional.normalize(positives_BD).T
    teacher_BB = (scale * cosines_BB).masked_fill(blocked_BB, -torch.inf).softmax(dim=1)
    mixed_BB = teacher_BB.mul_(1 - label_weight)
    mixed_BB.diagonal().add_(label_weight)
    return mixed_BB


def nested_loss(
    queries_BD: torch.Tensor,
    positives_BD: torch.Tensor,
    dims: Sequence[int],
    targets_BB: torch.Tensor,
    blocked_BB: torch.Tensor,
    scale: float | torch.Tensor,
) -> torch.Tensor:
    """Return the mean cross-entropy at each size.

    Args:
        queries_BD: not cut, of any length; gradients flow into both.
        positives_BD: row i belongs to query i; or, where no label is in the targets, any number
            of documents in any order.
        dims: ascending.
        targets_BB: as `targets`.
        blocked_BB: as `same_text`.
        scale: times the cosine, before the softmax; or scale_K, one for each size.

    Returns:
        losses_K: one number for each size; their sum is what to minimise.
    """
    dots_BB = queries_BD.new_zeros(len(queries_BD), len(positives_BD))
    query_square_B = queries_BD.new_full((len(queries_BD),), _EPS)
    positive_square_B = queries_BD.new_full((len(positives_BD),), _EPS)
    scale_K = torch.as_tensor(scale).expand(len(dims))
    losses, begin = [], 0
    for dim, scale_of_dim in zip(dims, scale_K, strict=True):
        query_BM, positive_BM = queries_BD[:, begin:dim], positives_BD[:, begin:dim]
        begin = dim
        dots_BB = torch.addmm(dots_BB, query_BM, positive_BM.T)
        query_square_B = query_square_B + query_BM.square().sum(dim=1)
        positive_square_B = positive_square_B + positive_BM.square().sum(dim=1)
        query_factors_B1 = (scale_of_dim * query_square_B.rsqrt())[:, None]
        logits_BB = dots_BB * query_factors_B1 * positive_square_B.rsqrt()
        # The target is zero at blocked places; a large finite number keeps 0 times it zero.
        logits_BB = logits_BB.masked_fill(blocked_BB, -1e4)
        row_losses_B = logits_BB.logsumexp(dim=1) - (targets_BB * logits_BB).sum(dim=1)
        losses.append(row_losses_B.mean())
    return torch.stack(losses)
