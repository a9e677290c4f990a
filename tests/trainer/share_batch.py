"""One process of two that share a batch: writes its averaged gradients and losses.

python -m tests.trainer.share_batch RANK SIZE STORE MODEL PAIRS OUT
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed

from services.shared.model import TextModel
from services.trainer.data.examples import read_examples
from services.trainer.data.pairs import Pair
from services.trainer.training import parallel
from services.trainer.training.full import FullModel


def gradients(model: Path, pairs: list[Pair], rows: int) -> dict[str, torch.Tensor]:
    """The step of this process; dropout off, as processes draw their own."""
    full = FullModel(TextModel(model, "float32", device="cpu"), pairs, (8, 16, 32))
    full._model.transformer.eval()
    losses = full.losses(torch.arange(rows))
    losses.sum().backward()
    found = {"losses": parallel.average(full.parameters.values(), losses)}
    return found | {n: p.grad for n, p in full.parameters.items() if p.grad is not None}


def main() -> None:
    rank, size, store, model, pairs, out = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size)
    )
    read = [pair for pair in read_examples(Path(pairs), "pairs") if isinstance(pair, Pair)]
    save_file(gradients(Path(model), read, 13), out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
