"""One job in two processes that torchrun starts on this machine's CPU, over gloo."""

import asyncio
import contextlib
import json
import shutil

import pytest
import torch

from services.trainer.jobs.events import read_events
from services.trainer.jobs.launcher import LocalLauncher
from services.trainer.jobs.spec import result_path
from services.trainer.training import ranks
from tests.trainer.conftest import make_job, make_many_pairs, start_job, weights
from tests.trainer.test_service import job_processes

OPTIONS = {"method": "full", "steps": 40, "batch_size": 8}


@pytest.fixture
def calm_model(tmp_path, tiny_model):
    """Without dropout: two processes draw other numbers than one."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if "hidden_dropout_prob" in config:
            config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            path.write_text(json.dumps(config))
    return folder


async def test_two_processes_end_where_one_does(tmp_path, calm_model):
    """Also when they are stopped on the way: one of them writes, both go on from there."""
    pairs = make_many_pairs()
    alone = make_job(tmp_path / "alone", calm_model, pairs, **OPTIONS)
    # In half precision the two would differ by its rounding, which a batch in parts moves.
    (alone / "arithmetic.txt").write_text("float32")
    process = start_job(alone)
    folder = make_job(tmp_path / "job", calm_model, pairs, **OPTIONS)
    (folder / "arithmetic.txt").write_text("float32")
    (folder / "lease").touch()
    launcher = LocalLauncher(stop_s=20, silence_s=200, devices=2)
    running = asyncio.create_task(launcher.run(folder))
    while not list((folder / "checkpoints").glob("step-*")):
        assert not running.done(), (folder / "log.txt").read_text()
        await asyncio.sleep(0.02)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert not job_processes(str(folder))
    assert not result_path(folder).exists()
    assert await launcher.run(folder) == 0, (folder / "log.txt").read_text()
    assert process.wait() == 0
    one, two = weights(alone / "model"), weights(folder / "model")
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-5)
    numbers = [event.number for event in read_events(folder, 0)[0]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_one_process_waits_for_nobody():
    """Without torchrun everything is its own."""
    ranks.begin()
    assert ranks.is_first()
    assert [ranks.any_of(True), ranks.any_of(False)] == [True, False]
    assert ranks.together(lambda: 3) == 3
    ranks.end()
