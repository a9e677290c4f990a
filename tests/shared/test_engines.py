"""What is kept of a measurement: found again on this machine, for this network, and only then."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from services.shared.engines import Engines, Trial
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel

TRIALS = [Trial("packed float32", 1.0, 1000.0), Trial("packed bfloat16", 0.9999, 3000.0)]


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 4)


def test_what_is_kept_is_found_by_the_weights_alone(tmp_path: Path):
    """The same weights find it, others do not."""
    Engines(tmp_path, network(0)).write_trials(TRIALS)
    assert Engines(tmp_path, network(0)).read_trials() == TRIALS
    assert Engines(tmp_path, network(1)).read_trials() == []


@pytest.mark.parametrize("content", ["{", "[{}]", '{"a": 1}', ""])
def test_a_broken_file_only_costs_time(tmp_path: Path, content: str, caplog):
    """It is reported and measured again."""
    engines = Engines(tmp_path, network(0))
    engines.write_trials(TRIALS)
    engines._choice.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert engines.read_trials() == []
    assert "made again" in caplog.text


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path, caplog):
    """A read-only disk is no reason not to serve."""
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        Engines(tmp_path / "file", network(0)).write_trials(TRIALS)
    assert "cannot be kept" in caplog.text


def test_a_measured_model_starts_with_what_was_chosen(tmp_path: Path):
    """The fastest faithful engine of the kept trials is taken, though another would be measured."""
    folder = locate(BASE_MODEL)
    exact = TextModel(folder, "float32")
    trials = [
        Trial("packed float32", 1.0, 2000.0),
        Trial("packed int8", 0.98, 9000.0),
        Trial("packed bfloat16", 0.9999, 1000.0),
    ]
    Engines(tmp_path, exact.tower("none").network).write_trials(trials)
    model = TextModel(folder, engines=tmp_path)
    assert model.engine == "packed float32"
    assert [trial for _, trial in model.trials] == trials


def test_a_kept_choice_that_is_not_faithful_any_more_is_measured_again(tmp_path: Path, monkeypatch):
    """Nor does a machine where int8 cannot be compiled keep a model from being served."""
    folder = locate(BASE_MODEL)
    network = TextModel(folder, "float32").tower("none").network
    kept = [Trial("packed float32", 1.0, 1000.0), Trial("packed int8", 0.9995, 9000.0)]
    Engines(tmp_path, network).write_trials(kept)
    # As an import fails that finds no module.
    monkeypatch.setitem(sys.modules, "services.shared.int8", None)
    model = TextModel(folder, engines=tmp_path)
    assert model.engine in {"packed float32", "packed bfloat16"}
    assert "packed int8" not in [trial.engine for _, trial in model.trials]
