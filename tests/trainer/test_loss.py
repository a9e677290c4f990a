"""The nested loss against the plain way of computing it."""

import pytest
import torch
from torch.nn import functional

from services.trainer.training.loss import nested_loss, same_text, targets

DIMS = (4, 8, 24)


def naive(queries_BD, positives_BD, dims, targets_BB, blocked_BB, scale):
    """Cut, normalise and compare anew for each size."""
    losses = []
    for dim in dims:
        cosines = (
            functional.normalize(queries_BD[:, :dim])
            @ functional.normalize(positives_BD[:, :dim]).T
        )
        logits = (scale * cosines).masked_fill(blocked_BB, -1e4)
        losses.append(-(targets_BB * logits.log_softmax(dim=1)).sum(dim=1).mean())
    return torch.stack(losses)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(12, 24, generator=generator, dtype=torch.float64)
    positives = torch.randn(12, 24, generator=generator, dtype=torch.float64)
    blocked = same_text(torch.arange(12) % 10, torch.arange(12))
    return queries, positives, blocked


@pytest.mark.parametrize("label_weight", [0.0, 0.5, 1.0])
def test_losses_and_gradients_equal_the_naive_loop(batch, label_weight):
    """One pass over column blocks gives the same numbers and gradients as a loop over sizes."""
    queries, positives, blocked = batch
    wanted = targets(queries, positives, blocked, 20.0, label_weight)
    results = []
    for function in (nested_loss, naive):
        q, p = queries.clone().requires_grad_(), positives.clone().requires_grad_()
        losses = function(q, p, DIMS, wanted, blocked, 20.0)
        (losses * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        results.append((losses.detach(), q.grad, p.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_documents_may_outnumber_queries_and_each_size_have_its_scale(batch):
    """Distillation on a pool: the naive loop at each size's own scale gives the same."""
    queries, positives, blocked = batch
    wanted = targets(queries, positives, blocked, 20.0, 0.0)[:5]
    scales = torch.tensor([5.0, 10.0, 20.0], dtype=torch.float64)
    ours = nested_loss(queries[:5], positives, DIMS, wanted, blocked[:5], scales)
    for place, scale in enumerate(scales):
        theirs = naive(queries[:5], positives, DIMS, wanted, blocked[:5], scale)[place]
        torch.testing.assert_close(ours[place], theirs)


def test_labels_alone_are_cross_entropy(batch):
    """With the labels as the target the loss is the usual InfoNCE."""
    queries, positives, _ = batch
    nothing = torch.zeros(12, 12, dtype=torch.bool)
    wanted = targets(queries, positives, nothing, 20.0, 1.0)
    losses = nested_loss(queries, positives, (24,), wanted, nothing, 20.0)
    cosines = functional.normalize(queries) @ functional.normalize(positives).T
    torch.testing.assert_close(losses[0], functional.cross_entropy(20 * cosines, torch.arange(12)))


def test_equal_texts_are_no_negatives(batch):
    """A pair with the same anchor or positive changes nothing for the other."""
    queries, positives, _ = batch
    blocked = same_text(torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 7]))
    assert blocked.tolist() == [
        [False, True, False, False],
        [True, False, False, False],
        [False, False, False, True],
        [False, False, True, False],
    ]
    queries, positives = queries[:4], positives[:4]
    wanted = targets(queries, positives, blocked, 20.0, 0.5)
    assert (wanted[blocked] == 0).all()
    torch.testing.assert_close(wanted.sum(dim=1), torch.ones(4, dtype=torch.float64))
    before = nested_loss(
        queries[:1], positives[:1], DIMS, wanted[:1, :1] * 0 + 1, blocked[:1, :1], 20
    )
    pair = nested_loss(
        queries[:2], positives[:2], DIMS, torch.eye(2, dtype=torch.float64), blocked[:2, :2], 20.0
    )
    torch.testing.assert_close(before, pair)


def test_a_prefix_of_zeros_is_finite():
    """There is no direction to rank by, but also no NaN."""
    queries = torch.zeros(3, 8, requires_grad=True)
    blocked = torch.zeros(3, 3, dtype=torch.bool)
    losses = nested_loss(queries, torch.ones(3, 8), (2, 8), torch.eye(3), blocked, 20.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(queries.grad).all()
