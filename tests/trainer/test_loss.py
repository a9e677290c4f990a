"""The nested loss against the plain way of computing it."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from services.trainer.training import nested
from services.trainer.training.loss import nested_classes, nested_loss, same_text, targets
from services.trainer.training.nested import TextNumbers

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


@st.composite
def cases(draw):
    """Sizes, more documents than queries or not, labels or soft targets, some places blocked."""
    dims = tuple(sorted(draw(st.sets(st.integers(1, 20), min_size=1, max_size=5))))
    queries = draw(st.integers(1, 7))
    documents = queries + draw(st.integers(0, 5))
    return dims, queries, documents, draw(st.booleans()), draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(case=cases(), rows_at_once=st.sampled_from([1, 3, 100]))
def test_any_case_equals_the_naive_loop(case, rows_at_once):
    """Values, gradients and each size's scale, whole or in chunks: within 1e-6 of the plain way."""
    dims, num_queries, num_documents, is_soft, seed = case
    generator = torch.Generator().manual_seed(seed)
    make = {"generator": generator, "dtype": torch.float64}
    queries = torch.randn(num_queries, 20, **make)
    documents = torch.randn(num_documents, 20, **make)
    scale_K = 1 + 30 * torch.rand(len(dims), **make)
    weights_K = torch.rand(len(dims), **make)
    blocked = torch.rand(num_queries, num_documents, **make) < 0.3
    blocked[:, :num_queries].fill_diagonal_(False)
    wanted = torch.eye(num_queries, num_documents, dtype=torch.float64)
    if is_soft:
        logits = torch.randn(num_queries, num_documents, **make)
        wanted = logits.masked_fill(blocked, -torch.inf).softmax(dim=1)
    row_bytes = num_documents * (len(dims) + 2) * 8
    results = []
    for function in (nested_loss, naive):
        q, d, s = (x.clone().requires_grad_() for x in (queries, documents, scale_K))
        if function is nested_loss:
            with mock.patch.object(nested, "CHUNK_BYTES", rows_at_once * row_bytes):
                losses = nested_loss(q, d, dims, wanted if is_soft else None, blocked, s)
                (losses * weights_K).sum().backward()
        else:
            each = zip(dims, s, strict=True)
            losses = torch.cat([naive(q, d, (dim,), wanted, blocked, scale) for dim, scale in each])
            (losses * weights_K).sum().backward()
        results.append((losses.detach(), q.grad, d.grad, s.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_bytes", [1, nested.CHUNK_BYTES])
def test_the_gradient_is_that_of_the_value(batch, monkeypatch, chunk_bytes):
    """Finite differences agree, whole and row by row, for vectors and scales."""
    monkeypatch.setattr(nested, "CHUNK_BYTES", chunk_bytes)
    queries, positives, blocked = batch
    wanted = targets(queries, positives, blocked, 20.0, 0.5)[:4]
    scales = torch.tensor([5.0, 10.0, 20.0], dtype=torch.float64)

    def loss(q, p, s):
        return nested_loss(q, p, DIMS, wanted, blocked[:4], s)

    leaves = tuple(x.clone().requires_grad_() for x in (queries[:4], positives, scales))
    assert torch.autograd.gradcheck(loss, leaves)


def test_a_batch_in_chunks_holds_no_matrix(batch, monkeypatch):
    """What is kept for the backward pass does not grow with the square of the batch."""
    queries, positives, blocked = (x.repeat(20, 1) for x in batch)
    queries.requires_grad_()
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    for chunk_bytes, is_square in ((nested.CHUNK_BYTES, True), (2**16, False)):
        kept.clear()
        monkeypatch.setattr(nested, "CHUNK_BYTES", chunk_bytes)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            nested_loss(queries, positives, DIMS, None, blocked.repeat(1, 20), 20.0)
        assert (max(kept) >= 240 * 240) == is_square


def test_rows_made_from_numbers_block_what_the_matrix_blocks(batch):
    """Numbers of texts say the same as the matrix, and what is nobody's positive blocks no row."""
    queries, positives, _ = batch
    anchors, texts = torch.arange(12) % 10, torch.arange(12) % 11
    blocked = same_text(anchors, texts)
    numbers = TextNumbers(anchors, texts, anchors, texts)
    wanted = nested_loss(queries, positives, DIMS, None, blocked, 20.0)
    assert torch.equal(nested_loss(queries, positives, DIMS, None, numbers, 20.0), wanted)
    owners = torch.cat([anchors, torch.tensor([-1, -1])])
    more = TextNumbers(anchors, texts, owners, torch.cat([texts, torch.tensor([3, 99])]))
    blocked_RN = more.blocked(slice(2, 5), torch.tensor([2, 3, 4]))
    assert torch.equal(blocked_RN[:, :12], blocked[2:5])
    assert blocked_RN[:, 12:].tolist() == [[False, False], [True, False], [False, False]]


def test_half_precision_changes_no_more_than_its_vectors(batch):
    """Under autocast, and of bfloat16 vectors, the loss is float32's of the same numbers."""
    queries, positives, blocked = (x.bfloat16() if x.is_floating_point() else x for x in batch)
    exact = nested_loss(queries.float(), positives.float(), DIMS, None, blocked, 20.0)
    with torch.autocast("cpu", torch.bfloat16):
        queries.requires_grad_()
        losses = nested_loss(queries, positives, DIMS, None, blocked, 20.0)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, exact)
    losses.sum().backward()
    assert queries.grad.dtype == torch.bfloat16


def test_classes_are_told_by_cross_entropy_at_every_size(batch):
    """Each text's class against all classes, both cut: torch's own cross-entropy."""
    vectors, classes, _ = batch
    labels = torch.tensor([0, 3, 3, 1, 2, 0, 4, 4, 1, 2, 3, 0])
    classes = classes[:5].clone().requires_grad_()
    losses = nested_classes(vectors, classes, labels, DIMS, 10.0)
    for dim, loss in zip(DIMS, losses, strict=True):
        cosines = functional.normalize(vectors[:, :dim]) @ functional.normalize(classes[:, :dim]).T
        torch.testing.assert_close(loss, functional.cross_entropy(10 * cosines, labels))
    losses.sum().backward()
    assert (classes.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("dims", [(), (8, 4), (4, 4), (0, 4), (4, 25)])
def test_sizes_that_are_none_are_refused(batch, dims):
    """They must ascend, each once, within the width."""
    queries, positives, blocked = batch
    with pytest.raises(ValueError, match="dims must be ascending, each once, between 1 and 24"):
        nested_loss(queries, positives, dims, None, blocked, 20.0)
