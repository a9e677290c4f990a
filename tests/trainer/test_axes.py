"""A text model's training starts on axes that were learned for it."""

import json
import shutil

import pytest
import torch
from torch.nn import functional

from services.shared.model import TextModel
from services.trainer.jobs.spec import CHECKPOINTS, START, Result, result_path
from services.trainer.results.layout import read_modules
from services.trainer.training.full import FullModel
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.work import run_job
from tests.trainer.conftest import make_job, make_many_pairs, weights

STILL = {"steps": 1, "batch_size": 8, "learning_rate": 1e-9, "matryoshka_dims": (4, 8)}
"""A training that changes nothing, so that what it starts on is what is seen."""
MANY = make_many_pairs()


def run(folder):
    run_job(folder, Interrupt())
    result = Result.read(result_path(folder))
    return [
        {s.dim: s.ndcg10 for s in side} for side in (result.quality.before, result.quality.after)
    ]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_short_sizes_begin_better_and_the_full_one_as_it_was(tmp_path, tiny_model, method):
    """The first step is taken from a model whose prefixes are an adaptor's already."""
    before, after = run(make_job(tmp_path / "job", tiny_model, MANY, method=method, **STILL))
    assert after[4] > before[4] + 0.02
    assert after[8] > before[8] + 0.02
    assert after[32] == pytest.approx(before[32], abs=0.01)


def test_a_base_that_was_made_for_cutting_keeps_its_axes(tmp_path, tiny_model):
    """Its first numbers are the best it has already."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    path = read_modules(base)[0][1] / "config.json"
    declared = {"is_matryoshka": True, "matryoshka_dimensions": [8, 32]}
    path.write_text(json.dumps(json.loads(path.read_text()) | declared))
    folder = make_job(tmp_path / "job", base, MANY, method="full", **STILL)
    before, after = run(folder)
    assert after == pytest.approx(before, abs=0.01)
    assert not (folder / START).exists()


def test_a_few_pairs_turn_nothing(tmp_path, tiny_model):
    """Fewer pairs than numbers say nothing of most axes."""
    folder = make_job(tmp_path / "job", tiny_model, MANY[:30], method="full", **STILL)
    run(folder)
    assert not (folder / START).exists()


def test_what_began_without_axes_goes_on_without(tmp_path, tiny_model):
    """A job that an older version left half done still ends."""
    old = make_job(tmp_path / "old", tiny_model, MANY[:30], method="full", **STILL)
    run(old)
    folder = make_job(tmp_path / "job", tiny_model, MANY, method="full", **STILL | {"steps": 2})
    shutil.copytree(old / CHECKPOINTS, folder / CHECKPOINTS)
    run(folder)
    assert not (folder / START).exists()
    assert weights(folder / "model").keys() == weights(tiny_model).keys()


def test_the_full_size_leads_the_others(tiny_model):
    """Prefixes learn in part what the model itself finds at full size; that learns from labels."""
    model = TextModel(tiny_model, "float32")
    learned = FullModel(model, MANY, (8, 32), label_weight=0.75)
    model.transformer.eval()  # no dropout: twice the same vectors
    rows_B = torch.tensor([0, 7, 30, 100, 177, 239])
    queries_BD, documents_BD = learned.vectors(rows_B)
    blocked_BB = learned.blocked(rows_B)

    def log_softmax(dim):
        queries, documents = (
            functional.normalize(side[:, :dim]) for side in (queries_BD, documents_BD)
        )
        return (20 * queries @ documents.T).masked_fill(blocked_BB, -1e4).log_softmax(dim=1)

    opinion_BB = log_softmax(32).exp().detach()
    wanted_BB = 0.75 * torch.eye(len(rows_B)) + 0.25 * opinion_BB
    short = -(wanted_BB * log_softmax(8)).sum(dim=1).mean()
    full = -log_softmax(32).diagonal().mean()
    found_K = learned.losses(rows_B)
    torch.testing.assert_close(found_K, torch.stack([short, full]))
    parameter = next(iter(learned.parameters.values()))
    found, expected = (
        torch.autograd.grad(loss, parameter, retain_graph=True)[0]
        for loss in (found_K.sum(), short + full)
    )
    torch.testing.assert_close(found, expected)
