"""Checkpoints are whole or not there."""

import os
import signal
import subprocess
import sys
import time

import torch

from services.trainer.training.checkpoint import Checkpoint, load_newest, save

KILL_ME = """
import sys, torch
from pathlib import Path
from services.trainer.training.checkpoint import Checkpoint, save
for step in range(1, 10**6):
    save(Path(sys.argv[1]), Checkpoint(step, {"w": torch.full((200_000,), float(step))}))
    print(step, flush=True)
"""


def state(number):
    return {"w": torch.full((5,), float(number))}


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    """One to go on from, one to fall back to."""
    assert load_newest(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, Checkpoint(step, state(step)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    found = load_newest(tmp_path)
    assert found.step == 10
    assert torch.equal(found.state["w"], state(10)["w"])


def test_a_damaged_one_is_passed_over(tmp_path):
    """A flipped byte, a cut file or a missing manifest: the one before is used."""
    for step in (1, 2):
        save(tmp_path, Checkpoint(step, state(step)))
    weights = tmp_path / "step-00000002" / "state.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    for damaged in (bytes(data), b"", data[:20]):
        weights.write_bytes(damaged)
        assert load_newest(tmp_path).step == 1
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    assert load_newest(tmp_path).step == 1


def test_a_kill_in_the_middle_of_writing_loses_nothing(tmp_path):
    """Whatever moment the kill hits, what was announced is there and sound."""
    for delay_s in (0.0, 0.007, 0.013):
        folder = tmp_path / str(delay_s)
        process = subprocess.Popen(
            [sys.executable, "-c", KILL_ME, str(folder)], stdout=subprocess.PIPE
        )
        announced = [int(process.stdout.readline()) for _ in range(5)]
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        announced += map(int, process.stdout.read().split())
        process.wait()
        process.stdout.close()
        found = load_newest(folder)
        assert found.step >= announced[-1]
        assert (found.state["w"] == found.step).all()
        save(folder, Checkpoint(found.step + 1, state(1)))  # what the kill left is no obstacle
        assert load_newest(folder).step == found.step + 1
