"""A text model's training starts on axes that were learned for it."""

import json
import shutil

import pytest

from services.trainer.jobs.spec import CHECKPOINTS, START, Result, result_path
from services.trainer.results.layout import read_modules
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
