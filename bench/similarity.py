"""What scored pairs teach, size by size: Spearman of the cosines on pairs that nothing has seen.

Each row is a job of the trainer, as its service would run it, on the training pairs of STS-b, asked
with its test pairs. Beside them stands sentence-transformers' own MatryoshkaLoss over CoSENTLoss,
with the same pairs, batches, steps, rates and dropout. The last line of stdout is one JSON object.

    python -m bench.similarity [FOLDER] [--steps N]
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.adaptor import DATA, DIMS
from services.shared.card import AnyScores
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.trainer.data.checks import check
from services.trainer.data.dataset import SourceFile, read_dataset
from services.trainer.data.examples import Scored, write_examples
from services.trainer.data.pairs import Split
from services.trainer.data.questions import ask
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.jobs.spec import TRAINING, VALIDATION, Result, Spec, result_path, spec_path
from services.trainer.results.evaluate import means, measure
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.train import batch_rows, learning_rate, plan
from services.trainer.training.work import run_job

_RATE = 5e-5

Row = dict[int, float]


def read(folder: Path) -> Split[Scored]:
    """Read what is trained on and what is asked, with what a job would leave out left out."""
    training, test = (
        read_dataset([SourceFile(folder / name, name)], {}, "training_file")
        for name in ("sts-train.jsonl", "sts-test.jsonl")
    )
    checked = check(training, test)
    kept = (
        tuple(example for example in side if isinstance(example, Scored))
        for side in (checked.training, checked.validation)
    )
    return Split(*kept)


def run(base: Path, data: Split[Scored], folder: Path, wanted: Wanted) -> Result:
    """Run a job as its service would, in this process."""
    folder.mkdir()
    write_examples(folder / TRAINING, data.training)
    write_examples(folder / VALIDATION, data.held_out)
    hyper = fill(wanted, DIMS[-1], len(data.training))
    Spec(
        base_dir=str(base), base_model=BASE_MODEL, model_id="bench:similarity",
        data_name="stsb", kind="scored", hyperparameters=hyper, threads=0,
        checkpoint_steps=hyper.steps,
    ).write(spec_path(folder))  # fmt: skip
    run_job(folder, Interrupt())
    result = Result.read(result_path(folder))
    assert result
    return result


def train_peer(base: Path, data: Split[Scored], wanted: Wanted) -> tuple[AnyScores, ...]:
    """Train with sentence-transformers' losses, everything else alike; return what it scores."""
    from sentence_transformers.sentence_transformer import losses

    model = TextModel(base, "float32")
    transformer = model.transformer
    hyper = fill(wanted, model.full, len(data.training))
    course = plan(hyper, len(data.training), hyper.steps)
    inner = losses.CoSENTLoss(transformer, scale=20.0)
    loss = losses.MatryoshkaLoss(transformer, inner, list(hyper.trained_dims))
    parameters = list(transformer.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=course.weight_decay)
    # The library pads: its own attention, not the one over packed texts.
    model.tower("none").network.set_attn_implementation("sdpa")
    transformer.train()
    for step in range(course.steps):
        torch.manual_seed(step)
        chosen = [data.training[row] for row in batch_rows(course, step)]
        sides = [[pair.first for pair in chosen], [pair.second for pair in chosen]]
        labels = torch.tensor([pair.score for pair in chosen])
        value = loss([transformer.preprocess(side) for side in sides], labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, course.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(course, step)
        optimizer.step()
    transformer.eval()
    asked = ask(Split(data.training, data.held_out))
    sides_BD = [transformer.encode(list(texts)) for texts in (asked.queries, asked.documents)]
    return means(measure(sides_BD[0], sides_BD[1], asked, DIMS), DIMS)


def row_of(scores: Sequence[AnyScores]) -> Row:
    return {score.dim: round(score.score, 4) for score in scores}


def show(name: str, row: Row, note: str = "") -> None:
    print(name.ljust(28) + "".join(f"{row[dim]:8.3f}" for dim in DIMS) + f"  {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA / "stsb")
    parser.add_argument("--steps", type=int, default=180, help="of those that train a text model")
    options = parser.parse_args()
    data, base = read(options.folder), locate(BASE_MODEL)
    conditions: dict[str, object] = {
        "model": BASE_MODEL, "steps": options.steps, "batch": 32, "rate": _RATE, "seed": 0,
        "training_pairs": len(data.training), "test_pairs": len(data.held_out),
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    print("conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()))
    print("\n" + "Spearman".ljust(28) + "".join(f"{dim:>8}" for dim in DIMS))
    tuned = {"steps": options.steps, "batch_size": 32, "matryoshka_dims": DIMS[:-1]}
    full = Wanted.model_validate(tuned | {"method": "full", "learning_rate": _RATE})
    ways = {
        "adaptor rotation": Wanted(head="rotation", matryoshka_dims=DIMS[:-1]),
        "adaptor dense": Wanted(head="dense", matryoshka_dims=DIMS[:-1]),
        "lora": Wanted.model_validate(tuned | {"method": "lora", "learning_rate": 10 * _RATE}),
        "full": full,
    }
    before: Row = {}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as made:
        for place, (name, wanted) in enumerate(ways.items()):
            begin = time.perf_counter()
            result = run(base, data, Path(made) / str(place), wanted)
            assert result.quality
            if not before:
                before = row_of(result.quality.before)
                show("before", before)
            rows[name] = row_of(result.quality.after)
            show(name, rows[name], f"{time.perf_counter() - begin:.0f} s")
    begin = time.perf_counter()
    peer = row_of(train_peer(base, data, full))
    show("sentence-transformers full", peer, f"{time.perf_counter() - begin:.0f} s")
    found = {
        "before": before, "methods": rows, "sentence_transformers": peer,
        "vs_sentence_transformers": {d: round(rows["full"][d] - peer[d], 4) for d in DIMS},
    }  # fmt: skip
    print(json.dumps({"bench": "similarity", **conditions, "spearman": found}))


if __name__ == "__main__":
    main()
