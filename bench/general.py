"""What a rotation of other domains does for a domain that it has not seen.

Of three domains (docstrings that lie on this machine, medquad, squad-split) two are trained on,
with the pairs of their training parts, and the third is asked: its test questions against its whole
corpus, nDCG@10. Beside it the vectors cut as they are, on their principal axes (of the two domains,
and of the third's own documents), and a rotation by InfoNCE alone. The last line of stdout is one
JSON object.

    python -m bench.general [--cache FOLDER] [--seeds N] [--steps N]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.adaptor import COLLECTIONS, DIMS, encode, read_lines
from bench.nest import distinct
from services.cli.corpus import read_corpus
from services.shared.folder import DEFAULT_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.pairs import number_texts
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.results.evaluate import evaluate
from services.trainer.training.adaptor import Adaptor, Rows, Vectors, principal_axes
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.train import plan, train

STEPS = 160
NUM_DOCSTRINGS = 6000
_NUM_QUESTIONS, _SEED = 1000, 7
WAYS = {"infonce": 1.0, "half and half": 0.5}


@dataclass(frozen=True, slots=True)
class Domain:
    """A collection as vectors of unit length; no test question is among the training pairs."""

    name: str
    anchors_AD: Array
    documents_ND: Array
    anchor_rows_P: Rows
    positive_rows_P: Rows
    """Of the training pairs, rows of the two above."""
    questions_QD: Array
    relevant: Sequence[Mapping[int, float]]


def read_domains(model: TextModel, cache: Path | None) -> list[Domain]:
    found = [_docstrings(model, cache)]
    return found + [_collection(path, model, cache) for path in COLLECTIONS if path.is_dir()]


def _docstrings(model: TextModel, cache: Path | None) -> Domain:
    """First sentences ask for the rest; a thousand of them are test questions."""
    found = read_corpus(None, NUM_DOCSTRINGS)
    titles = distinct([document.title for document in found])
    order = np.random.default_rng(_SEED).permutation(len(titles))
    asked: dict[str, dict[str, float]] = {titles[row]: {} for row in order[:_NUM_QUESTIONS]}
    pairs = []
    for document in found:
        if document.title in asked:
            asked[document.title][document.body] = 1.0
        else:
            pairs.append((document.title, document.body))
    documents = distinct([document.body for document in found])
    return _domain("docstrings", model, cache, titles, documents, pairs, asked)


def _collection(folder: Path, model: TextModel, cache: Path | None) -> Domain:
    bodies = {
        line["id"]: ". ".join(filter(None, (line.get("title"), line["text"])))
        for line in read_lines(folder, "corpus.jsonl")
    }
    pairs = [(line["anchor"], line["positive"]) for line in read_lines(folder, "pairs.jsonl")]
    questions = {line["id"]: line["text"] for line in read_lines(folder, "queries.jsonl")}
    asked: dict[str, dict[str, float]] = {text: {} for text in questions.values()}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        asked[questions[query_id]][bodies[document_id]] = float(grade)
    documents = distinct(list(bodies.values()))
    known = [anchor for anchor, _ in pairs] + list(asked)
    return _domain(folder.name, model, cache, known, documents, pairs, asked)


def _domain(
    name: str, model: TextModel, cache: Path | None, known: list[str], documents: list[str],
    pairs: Sequence[tuple[str, str]], asked: Mapping[str, Mapping[str, float]],
) -> Domain:  # fmt: skip
    anchors = sorted(set(known))
    anchors_AD = normalize(encode(model, anchors, cache))
    documents_ND = normalize(encode(model, documents, cache))
    rows, places = number_texts(anchors), number_texts(documents)
    kept = [(anchor, body) for anchor, body in pairs if body in places]
    return Domain(
        name,
        anchors_AD,
        documents_ND,
        np.array([rows[anchor] for anchor, _ in kept]),
        np.array([places[body] for _, body in kept]),
        anchors_AD[[rows[text] for text in asked]],
        [{places[body]: grade for body, grade in found.items()} for found in asked.values()],
    )


def join(domains: Sequence[Domain]) -> Vectors:
    """Return the training pairs of several domains as one."""
    begin_A = np.cumsum([0, *(len(d.anchors_AD) for d in domains)])
    begin_N = np.cumsum([0, *(len(d.documents_ND) for d in domains)])
    return Vectors(
        np.concatenate([d.anchors_AD for d in domains]),
        np.concatenate([d.documents_ND for d in domains]),
        np.concatenate([d.anchor_rows_P + b for d, b in zip(domains, begin_A, strict=False)]),
        np.concatenate([d.positive_rows_P + b for d, b in zip(domains, begin_N, strict=False)]),
    )


def learn(vectors: Vectors, label_weight: float, seed: int, steps: int = STEPS) -> Array:
    """Return the rotation, rotation_DD."""
    num_pairs = len(vectors.anchor_rows_P)
    hyper = fill(Wanted(steps=steps, seed=seed), vectors.anchors_ND.shape[1], num_pairs)
    adaptor = Adaptor(vectors, "rotation", hyper.trained_dims, label_weight, seed)
    with tempfile.TemporaryDirectory() as checkpoints:
        course = plan(hyper, num_pairs, checkpoint_steps=steps)
        train(adaptor, course, Path(checkpoints), lambda _: None, Interrupt())
    return adaptor.weight()


def ask(domain: Domain, rotation_DD: Array | None) -> list[float]:
    sides = domain.questions_QD, domain.documents_ND
    if rotation_DD is not None:
        sides = sides[0] @ rotation_DD.T, sides[1] @ rotation_DD.T
    return [scores.ndcg10 for scores in evaluate(*sides, domain.relevant, DIMS)]


def measure(unseen: Domain, others: Sequence[Domain], seeds: int, steps: int) -> dict[str, object]:
    """Train on the others, ask the unseen one."""
    vectors = join(others)
    used = (
        vectors.anchors_ND[np.unique(vectors.anchor_rows_P)],
        vectors.positives_ND[np.unique(vectors.positive_rows_P)],
    )
    their_axes = principal_axes(torch.from_numpy(np.concatenate(used))).numpy()
    own_axes = principal_axes(torch.from_numpy(unseen.documents_ND)).numpy()
    rows: dict[str, list[float]] = {
        "plain cut": ask(unseen, None),
        "PCA of the others": ask(unseen, their_axes),
        "PCA of its own": ask(unseen, own_axes),
    }
    spread: dict[str, list[float]] = {}
    begin = time.perf_counter()
    for way, label_weight in WAYS.items():
        runs = np.array(
            [ask(unseen, learn(vectors, label_weight, seed, steps)) for seed in range(seeds)]
        )
        rows[way] = runs.mean(axis=0).tolist()
        spread[way] = np.ptp(runs, axis=0).tolist()
    seconds = (time.perf_counter() - begin) / (seeds * len(WAYS))
    print(
        f"\n{unseen.name}: {len(unseen.questions_QD)} test questions, {len(unseen.documents_ND)} "
        f"documents; trained on {len(vectors.anchor_rows_P)} pairs of "
        f"{' and '.join(d.name for d in others)}, {seeds} seeds, {seconds:.0f} s each"
    )
    print("nDCG@10".ljust(22) + "".join(f"{dim:>8}" for dim in DIMS))
    for name, scores in rows.items():
        print(name.ljust(22) + "".join(f"{score:8.3f}" for score in scores), flush=True)
        if name in spread:
            print("  widest apart".ljust(22) + "".join(f"{s:8.4f}" for s in spread[name]))
    best_of_others = np.max([rows[name] for name in list(rows)[:3]], axis=0)
    gains = np.array(rows["half and half"]) - best_of_others
    return {
        "unseen": unseen.name,
        "ndcg10": {name: dict(zip(DIMS, np.round(s, 4), strict=True)) for name, s in rows.items()},
        "spread": {
            name: dict(zip(DIMS, np.round(s, 4), strict=True)) for name, s in spread.items()
        },
        "gain": dict(zip(DIMS, np.round(gains, 4), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="keep vectors here, and use those kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    # Not "auto", which may choose anew each time.
    model = TextModel(locate(DEFAULT_MODEL), "bfloat16")
    domains = read_domains(model, options.cache)
    results = [
        measure(unseen, [d for d in domains if d is not unseen], options.seeds, options.steps)
        for unseen in domains
    ]
    conditions = {"model": DEFAULT_MODEL, "max_tokens": model.max_tokens, "steps": options.steps}
    print(json.dumps({"bench": "general", **conditions, "results": results}, default=float))


if __name__ == "__main__":
    main()
