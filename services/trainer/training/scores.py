"""Losses of pairs with a score: at every size their cosines must go with the scores.

Only the cosine of each pair is wanted, so all sizes cost one product of the two sides, number by
number, and a running sum over the blocks of columns between the sizes.

Source: Huang et al. 2024, IEEE/ACM TASLP 32, "CoSENT" (ranking of pairs); Kusupati et al. 2022,
arXiv:2205.13147 (nested prefixes).
Shapes: B pairs, D full width, K sizes.
"""

from collections.abc import Sequence

import torch

from services.trainer.training.nested import EPS, as_dims, prefix_sums


def nested_cosines(
    first_BD: torch.Tensor, second_BD: torch.Tensor, dims: Sequence[int]
) -> torch.Tensor:
    """Return cosines_KB of each pair's prefixes, with gradients, in float32 at least.

    Raises:
        ValueError: the sizes are not ascending, or wider than the vectors.
    """
    dims = as_dims(dims, first_BD.shape[1])
    dtype = torch.promote_types(first_BD.dtype, torch.float32)
    first_BD, second_BD = first_BD.to(dtype), second_BD.to(dtype)
    first_KB, second_KB = (prefix_sums(side.square(), dims) + EPS for side in (first_BD, second_BD))
    return prefix_sums(first_BD * second_BD, dims) * (first_KB * second_KB).rsqrt()


def nested_cosent(
    first_BD: torch.Tensor,
    second_BD: torch.Tensor,
    scores_B: torch.Tensor,
    dims: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """Return CoSENT at each size: every pair with a higher score should have the higher cosine.

    log(1 + sum of exp(scale * (lower's cosine - higher's))) over all two pairs of different
    scores, those too that have their order already.

    Args:
        first_BD: not cut, of any length; gradients flow into both.
        second_BD: row i is the other text of pair i.
        scores_B: of the pairs, in any unit; only their order counts.
        dims: ascending.
        scale: times the cosine.

    Returns:
        losses_K: one number for each size; their sum is what to minimise.
    """
    logits_KB = scale * nested_cosines(first_BD, second_BD, dims)
    above_BB = scores_B[:, None] > scores_B
    nothing_1 = logits_KB.new_zeros(1)
    losses = []
    for logits_B in logits_KB:
        differences = (logits_B - logits_B[:, None])[above_BB]
        losses.append(torch.cat([nothing_1, differences]).logsumexp(dim=0))
    return torch.stack(losses)


def nested_mse(
    first_BD: torch.Tensor, second_BD: torch.Tensor, scores_B: torch.Tensor, dims: Sequence[int]
) -> torch.Tensor:
    """Return the mean squared difference of cosines and scores at each size.

    Args:
        first_BD: as `nested_cosent`.
        second_BD: the same.
        scores_B: the cosines that pairs should have, -1 to 1.
        dims: ascending.

    Returns:
        losses_K: as `nested_cosent`.
    """
    return (nested_cosines(first_BD, second_BD, dims) - scores_B).square().mean(dim=1)
