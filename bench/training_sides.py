"""One side of `bench.trainer` in a process of its own: `python -m bench.training_sides JSON`."""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.adaptor import DATA as COLLECTIONS
from bench.adaptor import DIMS, read_lines
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.trainer.data.pairs import Pair
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.training.adaptor import Adaptor, Vectors
from services.trainer.training.full import TOKENS_AT_ONCE, FullModel
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.passes import Passes
from services.trainer.training.pilot import choose_label_weight
from services.trainer.training.train import plan, train

DATA = COLLECTIONS / "medquad"
WARM_STEPS = 2
SEED = 5
RATE = 2e-5


def pairs(count: int) -> list[Pair]:
    """Return some pairs of distinct anchors, the same on every run."""
    distinct = {
        line["anchor"]: Pair(line["anchor"], line["positive"])
        for line in read_lines(DATA, "pairs.jsonl")
    }
    order = np.random.default_rng(SEED).permutation(len(distinct))
    found = list(distinct.values())
    return [found[row] for row in order[:count]]


class Clock:
    """Wall and CPU seconds between one call and the next."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._last: tuple[float, float] | None = None

    def tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._last:
            self.wall.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now

    def figures(self, tokens: float) -> dict[str, float]:
        """Return the medians of the steps after those that warm up."""
        return {
            "seconds": statistics.median(self.wall[WARM_STEPS:]),
            "cpu_seconds": statistics.median(self.cpu[WARM_STEPS:]),
            "tokens": tokens,
        }


def ours(asked: dict[str, Any], dims: Sequence[int]) -> dict[str, float]:
    """Train as a job does, without its checkpoints."""
    steps, batch = asked["steps"] + WARM_STEPS, asked["batch"]
    model = TextModel(locate(BASE_MODEL), "float32", device="cpu")
    model.max_tokens = asked["max_tokens"]
    taught = pairs(steps * batch)
    passes = Passes(model, TOKENS_AT_ONCE, asked["arithmetic"])
    full = FullModel(model, taught, dims, passes)
    parameters = list(full.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    clock = Clock()
    clock.tick()
    for step in range(steps):
        losses_K = full.losses(torch.arange(step * batch, (step + 1) * batch))
        optimizer.zero_grad()
        losses_K.sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses_K.tolist()
        clock.tick()
    tokens = full._anchor_tokens + full._positive_tokens
    return clock.figures(sum(map(len, tokens)) / steps) | {
        "loss_seconds": loss_seconds(dims, batch)
    }


def loss_seconds(dims: Sequence[int], batch: int) -> float:
    """Return the CPU seconds of the loss and its gradient alone."""
    from services.trainer.training.loss import nested_loss

    queries_BD, documents_BD = torch.randn(2, batch, DIMS[-1]).unbind()
    clock = Clock()
    for _ in range(30):
        leaves = queries_BD.clone().requires_grad_(), documents_BD.clone().requires_grad_()
        clock.tick()
        nested_loss(*leaves, dims, None, None, 20.0).sum().backward()
        clock.tick()
    return statistics.median(clock.cpu[::2])


def theirs(asked: dict[str, Any]) -> dict[str, float]:
    """Train with SentenceTransformerTrainer."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.training_args import (
        SentenceTransformerTrainingArguments,
    )
    from transformers import TrainerCallback

    steps, batch = asked["steps"] + WARM_STEPS, asked["batch"]
    model = SentenceTransformer(str(locate(BASE_MODEL)), device="cpu", local_files_only=True)
    model.max_seq_length = asked["max_tokens"]
    taught = pairs(steps * batch)
    clock = Clock()
    tokens: list[int] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.tick()

        def on_step_end(self, *_: object, **__: object) -> None:
            clock.tick()

    def count(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        tokens.append(arguments[0].numel())

    model[0].auto_model.get_input_embeddings().register_forward_pre_hook(count)
    inner = losses.MultipleNegativesRankingLoss(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch,
                learning_rate=RATE, bf16=asked["arithmetic"] == "bfloat16", use_cpu=True,
                report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_dict(
                {"anchor": [p.anchor for p in taught], "positive": [p.positive for p in taught]}
            ),
            loss=losses.MatryoshkaLoss(model, inner, list(DIMS)),
            callbacks=[Watch()],
        )  # fmt: skip
        trainer.train()
    return clock.figures(sum(tokens) / steps) | {"loss_seconds": 0.0}


def adaptor(_: dict[str, Any]) -> dict[str, float]:
    """Train the adaptor with its trials, on vectors that lie ready."""
    # Made vectors: what is measured does not depend on the numbers.
    made = np.random.default_rng(SEED).standard_normal((30_000, DIMS[-1])).astype(np.float32)
    rows = np.arange(15_000)
    made[15_000:] += made[:15_000]
    taught = [Pair(f"question {row}", f"answer {row}") for row in rows]
    vectors = Vectors(made, made, rows, rows + 15_000)
    clock = Clock()
    clock.tick()
    hyper = fill(Wanted(), DIMS[-1], len(taught))
    weight = choose_label_weight(vectors, taught, hyper, lambda _: None, Interrupt())
    head = Adaptor(vectors, "rotation", hyper.trained_dims, weight)
    with tempfile.TemporaryDirectory() as folder:
        course = plan(hyper, len(taught), checkpoint_steps=50)
        train(head, course, Path(folder), lambda _: None, Interrupt())
    head.weight()
    clock.tick()
    return {"seconds": clock.wall[0], "cpu_seconds": clock.cpu[0], "tokens": 0.0}


SIDES: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
    "ours": lambda asked: ours(asked, DIMS),
    "ours, one size": lambda asked: ours(asked, DIMS[-1:]),
    "sentence-transformers": theirs,
    "adaptor": adaptor,
}


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(SEED)
    figures = SIDES[asked["side"]](asked)
    # Linux counts kibibytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**figures, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
