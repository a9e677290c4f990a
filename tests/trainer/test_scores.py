"""Losses of scored pairs against sentence-transformers' own, size by size."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
from torch.nn import functional

from services.trainer.training.scores import nested_cosent, nested_cosines, nested_mse

DIMS = (4, 8, 24)


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(10, 24, generator=generator, dtype=torch.float64)
    second = first + torch.randn(10, 24, generator=generator, dtype=torch.float64)
    # Eighths: the same numbers in float32, to which sentence-transformers rounds them.
    scores = torch.tensor([1, 7, 4, 4, 2, 8, 0, 6, 3, 7], dtype=torch.float64) / 8
    return first, second, scores


def cut(vectors, dim):
    return functional.normalize(vectors[:, :dim])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda *sides: nested_cosent(*sides, DIMS, 20.0), CoSENTLoss(torch.nn.Identity())),
        (lambda *sides: nested_mse(*sides, DIMS), CosineSimilarityLoss(torch.nn.Identity())),
    ],
    ids=["cosent", "mse"],
)
def test_values_and_gradients_equal_a_loop_over_their_loss(sides, ours, theirs):
    """One pass gives what sentence-transformers' loss gives of each cut pair of sides."""
    first, second, scores = sides
    results = []
    for is_ours in (True, False):
        a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
        if is_ours:
            losses = ours(a, b, scores)
        else:
            each = [[cut(a, dim), cut(b, dim)] for dim in DIMS]
            losses = torch.stack([theirs.compute_loss_from_embeddings(x, scores) for x in each])
        losses.sum().backward()
        results.append((losses.detach(), a.grad, b.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_equal_scores_ask_for_nothing(sides):
    """Where no pair stands above another there is no order to teach."""
    first, second, _ = sides
    losses = nested_cosent(first, second, torch.ones(10), DIMS, 20.0)
    assert losses.tolist() == [0.0, 0.0, 0.0]


def test_a_prefix_of_zeros_has_no_direction():
    """Its cosine is zero and its gradient finite."""
    zeros = torch.zeros(2, 8, requires_grad=True)
    cosines = nested_cosines(zeros, torch.ones(2, 8), (2, 8))
    cosines.sum().backward()
    assert cosines.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert torch.isfinite(zeros.grad).all()
