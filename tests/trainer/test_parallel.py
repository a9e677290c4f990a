"""A batch shared by processes against the same batch in one."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.data.pairs import Pair
from services.trainer.data.pictures import PICTURES, Picture
from services.trainer.training import parallel
from tests.families import picture_checkpoints
from tests.families.test_images import picture
from tests.trainer.conftest import write_pairs
from tests.trainer.share_batch import gradients


def share(folder, model, pairs):
    """The averaged gradients of two processes that share the first 13 pairs."""
    path = write_pairs(folder / "pairs.jsonl", pairs)
    outs = [folder / f"{rank}.safetensors" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.share_batch", str(rank), "2",
             str(folder / "store"), str(model), str(path), str(out)]
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    return [load_file(out) for out in outs]


def check(alone, first, second):
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(first[name], second[name])


def test_two_processes_make_the_gradients_of_one(tmp_path, tiny_model, tiny_pairs):
    """Each encodes half of the pairs; every gradient is that of the whole batch in one process."""
    twins = tiny_pairs[:1] * 2 + tiny_pairs  # equal texts on both sides of the cut are no negatives
    twins[8] = twins[0]
    first, second = share(tmp_path, tiny_model, twins)
    check(gradients(tiny_model, twins, 12), first, second)  # of 13 two cannot share the last


def test_pictures_may_all_be_one_process_s(tmp_path, tiny_pairs):
    """The other has no gradient of its own for the weights that read them, and takes part."""
    base, kept = tmp_path / "vdr", tmp_path / PICTURES
    for folder in (base, kept):
        folder.mkdir()
    picture_checkpoints.qwen3_vl(base)
    (kept / "0a").write_bytes(picture("PNG", 40, 30))
    pairs = [Pair(pair.anchor, pair.positive) for pair in tiny_pairs[:13]]
    pairs[2] = Pair("a", Picture("0a", kept / "0a"))
    alone = gradients(base, pairs, 12)
    assert any("visual" in name for name in alone)
    check(alone, *share(tmp_path, base, pairs))


def test_one_process_shares_with_nobody():
    """Without a process group everything is its own."""
    rows, vectors = torch.arange(5), torch.randn(5, 3)
    assert parallel.share(rows) == slice(0, 5)
    assert parallel.gather(vectors) is vectors
    assert torch.equal(parallel.average([], rows), rows)
    with pytest.raises(ValueError, match="a batch of 0 pairs is too small for 1 processes"):
        parallel.share(rows[:0])
