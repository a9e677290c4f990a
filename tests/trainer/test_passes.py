"""Texts through a model in parts against the same texts in one piece."""

import pytest
import torch

from services.shared.model import TextModel
from services.trainer.training.passes import Passes, best_arithmetic


@pytest.fixture(scope="module")
def model(tiny_model):
    return TextModel(tiny_model, "float32", device="cpu")


@pytest.fixture(scope="module")
def texts(model, tiny_pairs):
    tokens = model.tokenize([text for p in tiny_pairs[:12] for text in (p.anchor, p.positive)])
    return [model.cut_tokens(ids) for ids in tokens]


def gradients(model, run, texts):
    """The gradients of a loss that joins all vectors, after one and the same random state."""
    torch.manual_seed(4)
    model.transformer.zero_grad()
    vectors = run(texts)
    (vectors @ vectors.T).logsumexp(dim=1).sum().backward()
    return vectors.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.transformer.named_parameters()
        if parameter.grad is not None
    }


def test_parts_give_the_gradients_of_the_whole(model, texts):
    """Without dropout it does not matter how a batch is cut."""
    model.transformer.eval()
    whole, expected = gradients(model, Passes(model, 10**6), texts)
    vectors, found = gradients(model, Passes(model, 40), texts)
    torch.testing.assert_close(vectors, whole, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_part_runs_again_with_the_same_dropout(model, texts, monkeypatch):
    """Bit for bit what the same parts give when everything is kept."""
    model.transformer.train()
    passes = Passes(model, 40)
    again, found = gradients(model, passes, texts)
    monkeypatch.setattr(passes, "_run_later", passes._run)
    kept, expected = gradients(model, passes, texts)
    assert torch.equal(again, kept)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    other, _ = gradients(model, Passes(model, 30), texts)
    assert not torch.equal(other, kept)  # dropout is on


@pytest.mark.parametrize(("tokens_at_once", "is_whole"), [(10**6, True), (40, False)])
def test_parts_keep_nothing_of_their_passes(model, texts, tokens_at_once, is_whole):
    """What is kept of a batch in parts is its vectors, not the activations."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = Passes(model, tokens_at_once)(texts)
    if is_whole:
        assert sum(kept) > 100 * vectors.numel()
    else:
        assert sum(kept) <= vectors.numel()


def test_bfloat16_leaves_weights_and_gradients_in_float32(model, texts):
    """Only the products are rounded: vectors stay near, weights and gradients keep their digits."""
    model.transformer.eval()
    whole, expected = gradients(model, Passes(model, 10**6), texts)
    vectors, found = gradients(model, Passes(model, 10**6, "bfloat16"), texts)
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, whole)
    assert torch.nn.functional.cosine_similarity(vectors, whole).min() > 0.999
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert {p.dtype for p in model.transformer.parameters()} == {torch.float32}
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, name


def test_the_arithmetic_is_the_machines_own(monkeypatch):
    """bfloat16 only where the processor has instructions for it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has_it, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_it=has_it: has_it)
        assert best_arithmetic("cpu") == expected
