"""What nesting gains: how much of the exact top 10 a shortlist of 50 keeps, by size.

No labels are used. Learned with the trainer's defaults from a collection's documents alone, and
from them with questions of its training part; measured with other questions against all
documents. Then whole jobs in a process of their own, from the file of vectors to the rotation's,
on 100,000 made vectors of common widths: what they take, and where. The last line of stdout is one
JSON object.

    python -m bench.nest [--max-tokens N] [--cache FOLDER] [--longer WIDTH] [--only collections]
    python -m bench.nest --only jobs
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.adaptor import COLLECTIONS, encode, read_lines
from bench.made import Longer
from services.cli.corpus import read_corpus
from services.router.rotation import Rotation
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.sample import Sample
from services.trainer.jobs.events import read_events
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.jobs.spec import (
    TRAINING_VECTORS,
    NestScores,
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.results.shortlist import compare
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.nest import Nest
from services.trainer.training.train import plan, train

DIMS = (16, 32, 64, 128, 256)
MADE, MADE_WIDTHS = 100_000, (384, 1536, 3072)
_NUM_QUERIES = 1000
_MAX_DOCSTRINGS = 100_000
_ASKED = 5  # of the docstrings' first sentences every fifth is a question
_SEED = 7


@dataclass(frozen=True, slots=True)
class Texts:
    """A collection; no question is both asked in training and measured with."""

    name: str
    documents: list[str]
    training: list[str]
    questions: list[str]


def read_collection(folder: Path) -> Texts:
    def join(line: dict[str, str]) -> str:
        return ". ".join(filter(None, (line.get("title"), line["text"])))

    questions = [line["text"] for line in read_lines(folder, "queries.jsonl")]
    training = [line["anchor"] for line in read_lines(folder, "pairs.jsonl")]
    documents = [join(line) for line in read_lines(folder, "corpus.jsonl")]
    return Texts(folder.name, distinct(documents), distinct(training), distinct(questions))


def read_docstrings() -> Texts:
    """Docstrings that lie on this machine: first sentences ask for the rest of them."""
    documents = read_corpus(None, _MAX_DOCSTRINGS)
    titles = distinct([document.title for document in documents][::_ASKED])
    bodies = distinct([document.body for document in documents])
    order = np.random.default_rng(_SEED).permutation(len(titles))
    held_out = {titles[row] for row in order[:_NUM_QUERIES]}
    training = [title for title in titles if title not in held_out]
    return Texts("docstrings", bodies, training, [t for t in titles if t in held_out])


def distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def learn(data: Sample) -> tuple[tuple[NestScores, ...], dict[str, float]]:
    """Learn with the defaults; return what each size keeps, and what took how long."""
    full = data.documents_ND.shape[1]
    nest, seconds = train_nest(data)
    rows = compare(
        data.held_out_QD, data.documents_ND, nest.axes_DD, nest.rotation(), (*DIMS, full)
    )
    return rows, seconds


def train_nest(data: Sample, dims: Sequence[int] = ()) -> tuple[Nest, dict[str, float]]:
    """Learn for some sizes, or the default ones; return what was learned, and the seconds of it."""
    full = data.documents_ND.shape[1]
    wanted = Wanted(method="nest", matryoshka_dims=tuple(dims))
    hyper = fill(wanted, full, len(data.documents_ND))
    begin = time.perf_counter()
    nest = Nest(data, hyper.trained_dims, hyper.seed)
    begin_training = time.perf_counter()
    with tempfile.TemporaryDirectory() as checkpoints:
        course = plan(hyper, nest.num_anchors, checkpoint_steps=50)
        train(nest, course, Path(checkpoints), lambda _: None, Interrupt())
    end_training = time.perf_counter()
    seconds = {
        "axes_s": round(begin_training - begin, 1),
        "train_s": round(end_training - begin_training, 1),
        "all_s": round(end_training - begin, 1),
    }
    return nest, seconds


def learn_rotation(documents_ND: Array, queries_QD: Array, dims: Sequence[int]) -> Rotation:
    """Return the rotation of a collection's nested sizes, as a router has the trainer learn it."""
    held_out = min(500, len(queries_QD) // 5)
    sample = Sample(documents_ND, queries_QD[held_out:], queries_QD[:held_out])
    nest, _ = train_nest(sample, dims)
    return Rotation.of(nest.rotation()[: max(dims)].copy())


def measure(
    texts: Texts, model: TextModel, cache: Path | None, longer: int | None
) -> dict[str, object]:
    """Nest a collection, from its documents alone and with questions.

    With `longer` of vectors of that width, see `made.py`.
    """
    documents_ND = normalize(encode(model, texts.documents, cache))
    known = sorted({*texts.training, *texts.questions})
    rows = {text: row for row, text in enumerate(known)}
    vectors = normalize(encode(model, known, cache))
    if longer:
        lengthen = Longer(documents_ND, longer)
        documents_ND, vectors = lengthen(documents_ND), lengthen(vectors)
    questions_QD = vectors[[rows[text] for text in texts.questions[:_NUM_QUERIES]]]
    asked_QD = vectors[[rows[text] for text in texts.training]]
    alone, seconds = learn(Sample(documents_ND, None, questions_QD))
    asked, seconds_asked = learn(Sample(documents_ND, asked_QD, questions_QD))
    result = {
        "collection": texts.name,
        "documents": len(documents_ND),
        "full": documents_ND.shape[1],
        "training_questions": len(asked_QD),
        "questions": len(questions_QD),
        **kept(alone),
        "nested with questions": kept(asked)["nested"],
        "seconds": seconds,
        "seconds with questions": seconds_asked,
    }
    print(
        f"\n{texts.name}: {len(documents_ND)} documents of {documents_ND.shape[1]} numbers, "
        f"{len(questions_QD)} questions; learned in {seconds['all_s']} s from documents alone, in "
        f"{seconds_asked['all_s']} s with {len(asked_QD)} other questions"
    )
    show(result)
    return result


def kept(rows: Sequence[NestScores]) -> dict[str, dict[int, float]]:
    """Return what each size keeps, by the way to cut."""
    ways = ("plain", "pca", "nested")
    return {way: {row.dim: round(getattr(row, way), 4) for row in rows} for way in ways}


def show(result: dict[str, object]) -> None:
    for key in ("plain", "pca", "nested", "nested with questions"):
        if isinstance(scores := result.get(key), dict):
            if key == "plain":
                print("recall@10 of 50".ljust(24) + "".join(f"{dim:>8}" for dim in scores))
            print(key.ljust(24) + "".join(f"{share:8.3f}" for share in scores.values()))


def make_vectors(count: int, full: int) -> Array:
    """Vectors in 200 topics, with a common lean and a spectrum that falls as those of models do."""
    random = np.random.default_rng(_SEED)
    loudness = (np.arange(1, full + 1) ** -0.55).astype(np.float32)
    topics = random.standard_normal((200, full), dtype=np.float32)
    own = random.standard_normal((count, full), dtype=np.float32)
    drawn = (0.8 * topics[random.integers(200, size=count)] + own) * loudness
    lean = random.standard_normal(full).astype(np.float32)
    drawn += 0.5 * np.linalg.norm(loudness) * lean / np.linalg.norm(lean)
    mix, _ = np.linalg.qr(random.standard_normal((full, full)))
    return normalize(drawn @ mix.astype(np.float32))


def time_job(full: int) -> dict[str, object]:
    """Run a job with the defaults, as the trainer does."""
    with tempfile.TemporaryDirectory() as folder:
        job_dir = Path(folder)
        np.save(job_dir / TRAINING_VECTORS, make_vectors(MADE, full))
        hyper = fill(Wanted(method="nest"), full, MADE)
        Spec(
            base_dir="", base_model="", model_id="nest:made", data_name="made", threads=0,
            hyperparameters=hyper, checkpoint_steps=50,
        ).write(spec_path(job_dir))  # fmt: skip
        used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        command = [sys.executable, "-m", "services.trainer.training.run", str(job_dir)]
        subprocess.run(command, check=True)
        ended, use = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        result = Result.read(result_path(job_dir))
        events, _ = read_events(job_dir, 0)
    assert result
    trained_at = max(event.at for event in events if event.phase == "train")
    seconds = {
        "start_and_read": events[0].at - began,
        "axes": trained_at - result.train_seconds - events[0].at,
        "train": result.train_seconds,
        "measure_and_write": ended - trained_at,
        "job": ended - began,
        "cpu": use.ru_utime + use.ru_stime - used.ru_utime - used.ru_stime,
    }
    seconds = {part: round(value, 1) for part, value in seconds.items()}
    parts = ", ".join(f"{part} {value}" for part, value in seconds.items())
    print(f"\n{MADE} made vectors of {full} numbers, whole job, seconds: {parts}")
    made = {"made": MADE, "full": full, "seconds": seconds, **kept(result.nest_quality)}
    made["memory_gb"] = round(use.ru_maxrss / 2**20, 2)  # of the largest job so far
    show(made)
    return made


def measure_collections(options: argparse.Namespace) -> list[dict[str, object]]:
    model = TextModel(locate(BASE_MODEL))
    model.max_tokens = min(model.max_tokens, options.max_tokens or model.max_tokens)
    print(f"model {BASE_MODEL}, engine {model.engine}, max_tokens {model.max_tokens}")
    folders = [folder for folder in COLLECTIONS if folder.is_dir()]
    collections = [*map(read_collection, folders), read_docstrings()]
    return [measure(texts, model, options.cache, options.longer) for texts in collections]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-tokens", type=int, help="cut texts earlier than the model does")
    parser.add_argument("--cache", type=Path, help="keep vectors here, and use those kept")
    parser.add_argument("--longer", type=int, help="make the real vectors so wide")
    parser.add_argument("--only", choices=("collections", "jobs"), help="leave out the others")
    options = parser.parse_args()
    conditions = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    print("conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()))
    results = [] if options.only == "jobs" else measure_collections(options)
    if options.only != "collections":
        results += [time_job(full) for full in MADE_WIDTHS]
    print(json.dumps({"bench": "nest", **conditions, "results": results}))


if __name__ == "__main__":
    main()
