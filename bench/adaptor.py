"""What the adaptor gains: nDCG@10 before and after, per size, on test queries.

Trained on a collection's `pairs.jsonl(.gz)` with the trainer's defaults, measured with its
`queries.jsonl` against its whole `corpus.jsonl(.gz)` by `qrels.tsv` (the BEIR layout). The last
line of stdout is one JSON object.

    python bench/adaptor.py [FOLDER ...] [--max-tokens N] [--cache FOLDER]
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.trainer.data.pairs import Pair, number_texts
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.results.evaluate import evaluate
from services.trainer.training.adaptor import Adaptor, Vectors
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.pilot import choose_label_weight
from services.trainer.training.train import plan, train

DIMS = (16, 32, 64, 128, 256, 384)
DATA = Path(__file__).parents[2] / "shared" / "data"
COLLECTIONS = (DATA / "medquad", DATA / "squad-split")


def read_lines(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / name
    if path.exists():
        return [json.loads(line) for line in path.read_text().splitlines()]
    with gzip.open(folder / f"{name}.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def encode(model: TextModel, texts: Sequence[str], cache: Path | None) -> np.ndarray:
    """Encode distinct texts, or read what an earlier run has kept."""
    if cache is None:
        return model.encode_texts(texts)
    state = hashlib.sha256(f"{model.space_id} {model.engine} {model.max_tokens}".encode())
    for text in texts:
        state.update(text.encode() + b"\0")
    path = cache / f"{state.hexdigest()[:32]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, model.encode_texts(texts))
    return np.load(path)


def measure(folder: Path, model: TextModel, cache: Path | None) -> dict[str, object]:
    """Train on the collection's pairs and measure on its test queries."""
    documents = read_lines(folder, "corpus.jsonl")
    queries = read_lines(folder, "queries.jsonl")
    pairs = [Pair(line["anchor"], line["positive"]) for line in read_lines(folder, "pairs.jsonl")]
    # A title stands before its text, as in the pairs' positives.
    bodies = [". ".join(filter(None, (d.get("title"), d["text"]))) for d in documents]
    asked = [query["text"] for query in queries]
    rows = number_texts([*bodies, *asked, *(t for p in pairs for t in (p.anchor, p.positive))])
    begin = time.perf_counter()
    vectors_ND = encode(model, list(rows), cache)
    encode_s = time.perf_counter() - begin

    begin = time.perf_counter()
    hyper = fill(Wanted(), model.full, len(pairs))
    vectors = Vectors(
        vectors_ND,
        vectors_ND,
        np.array([rows[pair.anchor] for pair in pairs]),
        np.array([rows[pair.positive] for pair in pairs]),
    )
    weight = choose_label_weight(vectors, pairs, hyper, lambda _: None, Interrupt())
    adaptor = Adaptor(vectors, "rotation", hyper.trained_dims, weight)
    with tempfile.TemporaryDirectory() as checkpoints:
        course = plan(hyper, len(pairs), checkpoint_steps=50)
        train(adaptor, course, Path(checkpoints), lambda _: None, Interrupt())
    head_DD = adaptor.weight()
    train_s = time.perf_counter() - begin

    document_row = {document["id"]: row for row, document in enumerate(documents)}
    relevant: dict[str, dict[int, float]] = {query["id"]: {} for query in queries}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        relevant[query_id][document_row[document_id]] = float(grade)
    sides = vectors_ND[[rows[t] for t in asked]], vectors_ND[[rows[t] for t in bodies]]
    judged = [relevant[query["id"]] for query in queries]
    before = evaluate(*sides, judged, DIMS)
    after = evaluate(sides[0] @ head_DD.T, sides[1] @ head_DD.T, judged, DIMS)
    return {
        "collection": folder.name,
        "documents": len(documents),
        "queries": len(queries),
        "pairs": len(pairs),
        "label_weight": weight,
        "encode_s": round(encode_s, 1),
        "train_s": round(train_s, 1),
        "ndcg10_before": {s.dim: round(s.ndcg10, 4) for s in before},
        "ndcg10_after": {s.dim: round(s.ndcg10, 4) for s in after},
    }


def show(result: dict[str, object]) -> None:
    print(
        f"\n{result['collection']}: {result['pairs']} training pairs, {result['queries']} test "
        f"queries, {result['documents']} documents; encoding {result['encode_s']} s, training "
        f"{result['train_s']} s, labels {result['label_weight']:.0%} of the target"
    )
    print("nDCG@10 ".ljust(10) + "".join(f"{dim:>8}" for dim in DIMS))
    for key in ("ndcg10_before", "ndcg10_after"):
        scores = result[key]
        assert isinstance(scores, dict)
        print(key.removeprefix("ndcg10_").ljust(10) + "".join(f"{scores[d]:8.3f}" for d in DIMS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=COLLECTIONS)
    parser.add_argument("--max-tokens", type=int, help="cut texts earlier than the model does")
    parser.add_argument("--cache", type=Path, help="keep vectors here, and use those kept")
    options = parser.parse_args()
    folders = [folder for folder in options.folders if folder.is_dir()]
    for folder in options.folders:
        if folder not in folders:
            print(f"skipped {folder.name}: there is no such folder")
    model = TextModel(locate(BASE_MODEL))
    model.max_tokens = min(model.max_tokens, options.max_tokens or model.max_tokens)
    conditions = {
        "model": BASE_MODEL,
        "engine": model.engine,
        "max_tokens": model.max_tokens,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    print("conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()))
    results = []
    for folder in folders:
        results.append(measure(folder, model, options.cache))
        show(results[-1])
    print(json.dumps({"bench": "adaptor", **conditions, "results": results}))


if __name__ == "__main__":
    main()
