"""What each method gains, size by size: nDCG@10 and retained quality before and after.

Each row is a job of the trainer, as its service would run it, on a collection's training pairs; its
test questions are the held-out ones, asked against all answers of both. Beside the methods that
train a text model stands sentence-transformers' own MatryoshkaLoss, with the same pairs, batches,
steps, rates and dropout, once over all weights and once over the same low-rank changes; and a model
trained for one single size. The last line of stdout is one JSON object.

    python -m bench.quality [FOLDER ...] [--steps N] [--seeds N] [--work FOLDER]
"""

import argparse
import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.adaptor import COLLECTIONS, DIMS, read_lines
from services.shared.card import AnyScores
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.trainer.data.dataset import read_pairs
from services.trainer.data.pairs import Pair, Questions, Split, questions
from services.trainer.jobs.hyperparameters import Lora, Wanted, fill
from services.trainer.jobs.spec import TRAINING, VALIDATION, Result, Spec, result_path, spec_path
from services.trainer.results.evaluate import evaluate
from services.trainer.results.layout import full_width, read_json, write_json
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.lora import LoraLayers
from services.trainer.training.train import batch_rows, learning_rate, plan
from services.trainer.training.work import run_job

SINGLE = 64
"""The size that a model is trained for alone."""
SEEDS = {"rotation": (0, 1, 2), "dense": (0,), "residual": (0,)}
MAX_PAIRS, MAX_QUESTIONS = 3000, 1000
MAX_TOKENS = 64
_FULL_RATE, _LORA_RATE = 5e-5, 5e-4
_LORA = Lora(rank=16, alpha=32)
_NOTHING = 1e-9  # a weight that leaves a size out

Scores = dict[int, float]


def write_data(folder: Path, data: Path) -> None:
    """Write training pairs and test questions as a job reads them, some of each."""
    pairs = [{"anchor": p["anchor"], "positive": p["positive"]}
             for p in read_lines(folder, "pairs.jsonl")]  # fmt: skip
    bodies = {
        line["id"]: ". ".join(filter(None, (line.get("title"), line["text"])))
        for line in read_lines(folder, "corpus.jsonl")
    }
    asked = {line["id"]: line["text"] for line in read_lines(folder, "queries.jsonl")}
    rows = [line.split("\t") for line in (folder / "qrels.tsv").read_text().splitlines()[1:]]
    held_out = [{"anchor": asked[q], "positive": bodies[d]} for q, d, grade in rows if int(grade)]
    data.mkdir(parents=True)
    for name, lines, most in (
        (TRAINING, pairs, MAX_PAIRS), (VALIDATION, held_out, MAX_QUESTIONS)
    ):  # fmt: skip
        chosen = random.Random(0).sample(lines, min(most, len(lines)))
        (data / name).write_text("".join(json.dumps(line) + "\n" for line in chosen))


def short_base(folder: Path) -> Path:
    """Copy the default model, reading `MAX_TOKENS` of a text: the bench has minutes."""
    shutil.copytree(locate(BASE_MODEL), folder, copy_function=shutil.copyfile)
    path = folder / "sentence_bert_config.json"
    write_json(path, read_json(path) | {"max_seq_length": MAX_TOKENS})
    return folder


def run(base: Path, data: Path, folder: Path, **wanted: object) -> Result:
    """Run a job as its service would, in this process; what the base makes of texts is kept."""
    shutil.copytree(data, folder)
    count = len(read_pairs(folder / TRAINING, TRAINING))
    hyper = fill(Wanted.model_validate({"matryoshka_dims": DIMS[:-1]} | wanted),
                 full_width(base), count)  # fmt: skip
    Spec(
        base_dir=str(base), base_model=BASE_MODEL, model_id=f"bench:{folder.name}",
        data_name=data.name, hyperparameters=hyper, threads=0, checkpoint_steps=hyper.steps,
    ).write(spec_path(folder))  # fmt: skip
    run_job(folder, Interrupt())
    for name in ("vectors", "precision.txt"):  # the same base and texts: encoded once
        source, target = folder / name, data / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    result = Result.read(result_path(folder))
    assert result
    assert result.quality
    shutil.rmtree(folder)
    return result


def train_peer(base: Path, data: Path, wanted: Wanted) -> tuple[AnyScores, ...]:
    """Train with sentence-transformers' loss, everything else alike; return what it then scores."""
    from sentence_transformers.sentence_transformer import losses

    pairs = read_pairs(data / TRAINING, TRAINING)
    model = TextModel(base, "float32")
    transformer = model.transformer
    hyper = fill(wanted, model.full, len(pairs))
    network = model.tower("none").network
    lora = LoraLayers(network, hyper.lora, hyper.seed) if hyper.lora else None
    parameters = list(lora.parameters.values() if lora else transformer.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    course = plan(hyper, len(pairs), hyper.steps)
    inner = losses.MultipleNegativesRankingLoss(transformer, scale=20.0)
    loss = losses.MatryoshkaLoss(transformer, inner, list(hyper.trained_dims))
    optimizer = torch.optim.AdamW(parameters, weight_decay=course.weight_decay)
    # The library pads: its own attention, not the one over packed texts.
    network.set_attn_implementation("sdpa")
    transformer.train()
    for step in range(course.steps):
        torch.manual_seed(step)
        chosen = [pairs[row] for row in batch_rows(course, step)]
        sides = [[pair.anchor for pair in chosen], [pair.positive for pair in chosen]]
        value = loss([transformer.preprocess(side) for side in sides], labels=None)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, course.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(course, step)
        optimizer.step()
    transformer.eval()
    if lora:
        lora.merge()
    asked = ask_of(data, pairs)
    sides_BD = [
        transformer.encode(list(texts), normalize_embeddings=True)
        for texts in (asked.queries, asked.documents)
    ]
    return evaluate(sides_BD[0], sides_BD[1], asked.relevant, DIMS)


def ask_of(data: Path, pairs: Sequence[Pair]) -> Questions:
    return questions(Split(tuple(pairs), read_pairs(data / VALIDATION, VALIDATION)))


def ndcg(scores: Sequence[AnyScores]) -> Scores:
    return {score.dim: round(score.score, 4) for score in scores}


def retained(scores: Scores) -> Scores:
    return {dim: round(score / scores[DIMS[-1]], 4) for dim, score in scores.items()}


def spread(runs: Sequence[Scores]) -> Scores:
    """Return how far the seeds are apart, at each size."""
    return {dim: round(float(np.ptp([run[dim] for run in runs])), 4) for dim in DIMS}


def joined(runs: Sequence[Scores]) -> tuple[Scores, str]:
    """Return the means over seeds, and how far they are apart at most, in words."""
    means = {dim: round(float(np.mean([run[dim] for run in runs])), 4) for dim in DIMS}
    apart = f", seeds up to {max(spread(runs).values()):.3f} apart"
    return means, apart if len(runs) > 1 else ""


def show(name: str, scores: Scores, note: str = "") -> None:
    print(name.ljust(28) + "".join(f"{scores[dim]:8.3f}" for dim in DIMS) + f"  {note}", flush=True)


def measure(
    folder: Path, base: Path, work: Path, steps: int, text_seeds: Sequence[int]
) -> dict[str, object]:
    """Run every method on a collection."""
    data = work / f"{folder.name}-data"
    write_data(folder, data)
    methods: dict[str, dict[str, object]] = {}
    before: Scores = {}

    def trial(name: str, seeds: Sequence[int] = (0,), **wanted: object) -> Scores:
        nonlocal before
        begin = time.perf_counter()
        results = [run(base, data, work / "job", seed=seed, **wanted) for seed in seeds]
        seconds = (time.perf_counter() - begin) / len(seeds)
        if not before:
            assert results[0].quality
            before = ndcg(results[0].quality.before)
            print("\n" + f"{folder.name}, nDCG@10".ljust(28) + "".join(f"{d:>8}" for d in DIMS))
            show("before", before)
        runs = [ndcg(result.quality.after) for result in results if result.quality]
        means, widest = joined(runs)
        methods[name] = {
            "seeds": list(seeds), "ndcg10": means, "retained": retained(means),
            "spread": spread(runs), "seconds": round(seconds, 1),
        }  # fmt: skip
        show(name, means, f"{seconds:.0f} s{widest}")
        return means

    def peer(name: str, **wanted: object) -> Scores:
        begin = time.perf_counter()
        runs = [
            ndcg(train_peer(base, data, Wanted.model_validate(wanted | {"seed": seed})))
            for seed in text_seeds
        ]
        means, widest = joined(runs)
        show(name, means, f"{(time.perf_counter() - begin) / len(runs):.0f} s{widest}")
        return means

    for head, seeds in SEEDS.items():
        trial(f"adaptor {head}", seeds, head=head)
    tuned = {"steps": steps, "batch_size": 32}
    full_like = {"method": "full", "learning_rate": _FULL_RATE, **tuned}
    lora_like = {"method": "lora", "lora": _LORA, "learning_rate": _LORA_RATE, **tuned}
    dims = DIMS[:-1]
    full = trial("full", text_seeds, **full_like)
    theirs = {
        "full": peer("sentence-transformers full", matryoshka_dims=dims, **full_like),
    }
    lora = trial("lora", text_seeds, **lora_like)
    theirs["lora"] = peer("sentence-transformers lora", matryoshka_dims=dims, **lora_like)
    single = trial(
        f"full, for {SINGLE} alone", text_seeds,
        matryoshka_dims=(SINGLE, 384), dim_weights=(1.0, _NOTHING),
        evaluated_dims=tuple(d for d in dims if d != SINGLE), **full_like,
    )  # fmt: skip
    trial("static", method="static")
    trial("distill into a table", method="distill", student="static")
    return {
        "collection": folder.name,
        "before": before,
        "retained_before": retained(before),
        "methods": methods,
        "vs_sentence_transformers": {
            name: {dim: round(ours[dim] - theirs[name][dim], 4) for dim in DIMS}
            for name, ours in (("full", full), ("lora", lora))
        },
        "single_minus_nested": {SINGLE: round(single[SINGLE] - full[SINGLE], 4)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=COLLECTIONS)
    parser.add_argument("--steps", type=int, default=40, help="of those that train a text model")
    parser.add_argument("--seeds", type=int, default=2, help="of those that train a text model")
    parser.add_argument("--work", type=Path, help="folder for jobs; a temporary one otherwise")
    options = parser.parse_args()
    conditions: dict[str, object] = {
        "model": BASE_MODEL, "max_tokens": MAX_TOKENS, "steps": options.steps, "batch": 32,
        "training_pairs": MAX_PAIRS, "test_questions": MAX_QUESTIONS,
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "torch": torch.__version__,
    }  # fmt: skip
    print("conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()))
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        work = options.work or Path(made)
        base = short_base(work / "base")
        present = [folder for folder in options.folders if folder.is_dir()]
        seeds = range(options.seeds)
        results = [measure(folder, base, work, options.steps, seeds) for folder in present]
    minutes = round((time.perf_counter() - begin) / 60, 1)
    print(json.dumps({"bench": "quality", **conditions, "minutes": minutes, "results": results}))


if __name__ == "__main__":
    main()
