"""A batch shared by processes against the same batch in one."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.training import parallel
from tests.trainer.conftest import write_pairs
from tests.trainer.share_batch import gradients


def test_two_processes_make_the_gradients_of_one(tmp_path, tiny_model, tiny_pairs):
    """Each encodes half of the pairs; every gradient is that of the whole batch in one process."""
    twins = tiny_pairs[:1] * 2 + tiny_pairs  # equal texts on both sides of the cut are no negatives
    twins[8] = twins[0]
    path = write_pairs(tmp_path / "pairs.jsonl", twins)
    outs = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.share_batch", str(rank), "2",
             str(tmp_path / "store"), str(tiny_model), str(path), str(out)]
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    alone = gradients(tiny_model, twins, 12)  # of 13 pairs two cannot share the last
    first, second = (load_file(out) for out in outs)
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(first[name], second[name])


def test_one_process_shares_with_nobody():
    """Without a process group everything is its own."""
    rows, vectors = torch.arange(5), torch.randn(5, 3)
    assert parallel.share(rows) == slice(0, 5)
    assert parallel.gather(vectors) is vectors
    assert torch.equal(parallel.average([], rows), rows)
    with pytest.raises(ValueError, match="a batch of 0 pairs is too small for 1 processes"):
        parallel.share(rows[:0])
