"""The kernel in Triton's interpreter against the loss that holds matrices."""

import os
import subprocess
import sys

import pytest
import torch

from services.trainer.jobs.spec import Failure, failure_path
from tests.trainer.conftest import make_job, start_job

PROGRAM = """
import torch
from services.trainer.training.loss import nested_loss
from services.trainer.training.loss_kernel import kernel_loss
from services.trainer.training.nested import TextNumbers

generator = torch.Generator().manual_seed(3)
dims, count, more = (8, 24, 60), 70, 83  # no multiple of any tile
queries = torch.randn(count, 64, generator=generator)
documents = torch.randn(more, 64, generator=generator)
labels = torch.randperm(more, generator=generator)[:count]
owners, texts = torch.full((more,), -1), torch.arange(more) % 75
anchors = torch.arange(count) % 66
owners[labels] = anchors
scales = torch.tensor([10.0, 20.0, 30.0])
for numbers in (None, TextNumbers(anchors, texts[labels], owners, texts)):
    found = []
    for run in (kernel_loss, nested_loss):
        q, d, s = (x.clone().requires_grad_() for x in (queries, documents, scales))
        if run is kernel_loss:
            losses = run(q, d, dims, numbers, s, labels)
        else:
            losses = run(q, d, dims, None, numbers, s, labels)
        (losses * torch.tensor([1.0, 0.5, 2.0])).sum().backward()
        found.append((losses.detach(), q.grad, d.grad, s.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
assert (q.grad[:, 60:] == 0).all()
print("equal")
"""


def test_kernel_equals_the_matrices_in_values_and_gradients():
    """Tiles and online softmax: the same losses and gradients of vectors and scales, in float32."""
    pytest.importorskip("triton")
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["equal"]


LOSSES = """
import sys
import torch
from pathlib import Path
from services.shared.model import TextModel
from services.trainer.training.full import FullModel
from tests.trainer.conftest import make_tiny_pairs

found = []
for with_kernel in (False, True):
    model = TextModel(Path(sys.argv[1]), "float32")
    learned = FullModel(model, make_tiny_pairs(), (16, 32), with_kernel=with_kernel)
    torch.manual_seed(0)  # dropout
    losses = learned.losses(torch.arange(12))
    losses.sum().backward()
    gradients = [p.grad for p in learned.parameters.values() if p.grad is not None]
    found.append((losses.detach(), *gradients))
for ours, theirs in zip(*found, strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
print("equal")
"""


def test_a_model_learns_the_same_with_it(tiny_model):
    """The losses of a step and the gradients of all weights; in the interpreter."""
    pytest.importorskip("triton")
    made = subprocess.run(
        [sys.executable, "-c", LOSSES, str(tiny_model)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["equal"]


def test_a_job_without_an_accelerator_is_refused(tmp_path, tiny_model, tiny_pairs):
    """By its process, if not before by the service: it says what is missing."""
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, method="full", loss_kernel=True)
    assert start_job(folder).wait() == 1
    message = Failure.read(failure_path(folder)).message
    assert message.startswith("the loss kernel cannot run here: there is no accelerator")
