"""What rounding the forward pass costs: quality at every size, from three arithmetics.

In: real collections beside the repository, with labels, or with people's scores of similarity. Out:
for float32, bfloat16 and int8 the same measure at each size, its ratio to float32's, how much of
float32's first ten is found again, and the cosines to float32's vectors. Collections are sampled,
with a fixed seed, so that a run takes minutes; a sample is easier to search than the whole. The
last line of stdout is one JSON object.

    python -m bench.int8_quality [FOLDER ...] [--queries N] [--documents N]

Shapes: U distinct texts, Q queries, N documents, D full width, M width after the cut.
"""

import argparse
import datetime
import json
import os
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from bench.adaptor import COLLECTIONS, DATA, read_lines
from bench.report import cpu
from services.shared.choice import MIN_COSINE_ROUNDED, Precision
from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, truncate
from services.trainer.data.pairs import number_texts
from services.trainer.results.evaluate import TOP, evaluate, rank

DIMS = (32, 64, 96, 128, 192, 256, 384)
EXACT: Precision = "float32"
ROUNDED: tuple[Precision, ...] = ("bfloat16", "int8")
FOLDERS = (*COLLECTIONS, DATA / "stsb")
PAIRS = "sts-test.jsonl"
SEED = 11

# {name: (its row's title, digits)}; the first row is titled by the collection's measure.
FIGURES = {
    "score": ("", 4),
    "retained": ("of float32's", 4),
    "overlap10": ("same first ten", 4),
    "min_cosine": ("smallest cosine", 5),
    "mean_cosine": ("mean cosine", 5),
    "under": (f"under {MIN_COSINE_ROUNDED}", 4),
}

NOTES = (
    "of float32's: the measure divided by float32's at the same size; same first ten: the share of "
    "float32's first ten documents that are among the first ten; cosines are to float32's vectors "
    f"of the same texts and size; under {MIN_COSINE_ROUNDED}: the share of texts whose cosine is "
    "under what the encoder asks of an arithmetic at load, at full size and on texts of its own. "
    "Queries and documents of labelled collections are samples, easier to search than the whole."
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Collection:
    """What is asked of what.

    Args:
        relevant: for each query, rows of documents with their grades.
        similarity: people's score of each query with the document in its row; empty where there
            are labels.
    """

    name: str
    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[Mapping[int, float]] = ()
    similarity: Sequence[float] = ()

    @property
    def measure(self) -> str:
        return "Spearman" if self.similarity else f"nDCG@{TOP}"

    def score(self, queries_QD: Array, documents_ND: Array) -> list[float]:
        """Return the measure at each size."""
        if not self.similarity:
            return [s.ndcg10 for s in evaluate(queries_QD, documents_ND, self.relevant, DIMS)]
        cosines = [
            (truncate(queries_QD, dim) * truncate(documents_ND, dim)).sum(axis=1) for dim in DIMS
        ]
        return [float(spearmanr(cosine_Q, self.similarity).statistic) for cosine_Q in cosines]


@dataclass(frozen=True, slots=True)
class Measured:
    """One arithmetic on one collection.

    Args:
        figures: by the names in `FIGURES`, one for each size.
    """

    arithmetic: str
    figures: dict[str, list[float]]


def read_collection(folder: Path, num_queries: int, num_documents: int) -> Collection:
    """Read a folder of scored pairs, all of them, or a sample of one in the BEIR layout.

    The sample holds every answer to its queries; the rest is drawn from the other documents.
    """
    if (folder / PAIRS).exists():
        pairs = read_lines(folder, PAIRS)
        first, second = ([pair[side] for pair in pairs] for side in ("sentence1", "sentence2"))
        return Collection(
            folder.name, first, second, similarity=[float(pair["score"]) for pair in pairs]
        )
    queries = _draw(read_lines(folder, "queries.jsonl"), num_queries)
    grades: dict[str, dict[str, float]] = {query["id"]: {} for query in queries}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        if query_id in grades:
            grades[query_id][document_id] = float(grade)
    answers = {document_id for found in grades.values() for document_id in found}
    corpus = read_lines(folder, "corpus.jsonl")
    others = [document for document in corpus if document["id"] not in answers]
    documents = [document for document in corpus if document["id"] in answers]
    documents += _draw(others, num_documents - len(documents))
    row_of = {document["id"]: row for row, document in enumerate(documents)}
    return Collection(
        folder.name,
        [query["text"] for query in queries],
        # A title stands before its text, as in bench/adaptor.py.
        [". ".join(filter(None, (d.get("title"), d["text"]))) for d in documents],
        [{row_of[d]: grade for d, grade in grades[q["id"]].items()} for q in queries],
    )


def _draw(items: Sequence[T], count: int) -> list[T]:
    return random.Random(SEED).sample(items, max(0, min(count, len(items))))


def measure(
    collection: Collection, rows: Mapping[str, int], vectors: Mapping[str, Array]
) -> list[Measured]:
    """Compare the arithmetics on one collection.

    Args:
        collection: whose texts are all in the vectors.
        rows: of each distinct text in the vectors.
        vectors: by arithmetic, vectors_UD, not cut; float32 is among them.
    """
    query_rows = [rows[text] for text in collection.queries]
    document_rows = [rows[text] for text in collection.documents]
    used = sorted({*query_rows, *document_rows})
    exact_UD = vectors[EXACT]
    exact_scores = collection.score(exact_UD[query_rows], exact_UD[document_rows])
    exact_found = _find(exact_UD[query_rows], exact_UD[document_rows])
    results = []
    for arithmetic, vectors_UD in vectors.items():
        queries_QD, documents_ND = vectors_UD[query_rows], vectors_UD[document_rows]
        scores = collection.score(queries_QD, documents_ND)
        found = _find(queries_QD, documents_ND)
        cosines = [_cosines(vectors_UD[used], exact_UD[used], dim) for dim in DIMS]
        figures = {
            "score": scores,
            "retained": [s / exact for s, exact in zip(scores, exact_scores, strict=True)],
            "overlap10": [_overlap(a, b) for a, b in zip(found, exact_found, strict=True)],
            "min_cosine": [float(cosine_U.min()) for cosine_U in cosines],
            "mean_cosine": [float(cosine_U.mean()) for cosine_U in cosines],
            "under": [float((cosine_U < MIN_COSINE_ROUNDED).mean()) for cosine_U in cosines],
        }
        results.append(Measured(arithmetic, figures))
    return results


def _find(queries_QD: Array, documents_ND: Array) -> list[list[list[int]]]:
    """Return the first ten of each query, for each size."""
    return [rank(truncate(queries_QD, dim), truncate(documents_ND, dim)) for dim in DIMS]


def _overlap(found: list[list[int]], exact: list[list[int]]) -> float:
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(shares))


def _cosines(vectors_UD: Array, exact_UD: Array, dim: int) -> np.ndarray:
    # In float64: float32's own rounding would show beside what is measured.
    left_UM, right_UM = (
        truncate(side_UD, dim).astype(np.float64) for side_UD in (vectors_UD, exact_UD)
    )
    norm_U = np.linalg.norm(left_UM, axis=1) * np.linalg.norm(right_UM, axis=1)
    cosine_U: np.ndarray = (left_UM * right_UM).sum(axis=1) / norm_U
    return cosine_U


def encode_all(texts: Sequence[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return vectors_UD by arithmetic, float32 first, and why others are missing."""
    vectors: dict[str, Array] = {}
    not_measured: dict[str, str] = {}
    for arithmetic in (EXACT, *ROUNDED):
        try:
            # Without a folder for engines: weights are rounded anew, by the code as it is.
            model = TextModel(locate(BASE_MODEL), arithmetic)
        except InvalidRequest as error:
            not_measured[arithmetic] = error.message
            continue
        vectors[arithmetic] = model.encode_texts(texts)
    return vectors, not_measured


def show(console: Console, collection: Collection, results: Sequence[Measured]) -> None:
    table = Table(
        title=f"{collection.name}: {len(collection.queries)} queries, "
        f"{len(collection.documents)} documents"
    )
    table.add_column("arithmetic")
    table.add_column("dimensions")
    for dim in DIMS:
        table.add_column(str(dim), justify="right")
    for result in results:
        for name, (title, digits) in FIGURES.items():
            # Beside itself float32 has nothing to show but its score.
            if name == "score" or result.arithmetic != EXACT:
                table.add_row(
                    result.arithmetic if name == "score" else "",
                    title or collection.measure,
                    *(f"{figure:.{digits}f}" for figure in result.figures[name]),
                )
        table.add_section()
    console.print(table)


def summarise(results: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Return each rounded arithmetic's figures over all collections and sizes."""
    summary: dict[str, dict[str, float]] = {}
    for arithmetic in dict.fromkeys(m.arithmetic for m in results if m.arithmetic != EXACT):
        of_it = [m.figures for m in results if m.arithmetic == arithmetic]
        retained = [ratio for figures in of_it for ratio in figures["retained"]]
        summary[arithmetic] = {
            "min_retained": round(min(retained), 4),
            "mean_retained": round(float(np.mean(retained)), 4),
            "min_overlap10": round(min(min(figures["overlap10"]) for figures in of_it), 4),
            "min_cosine": round(min(min(figures["min_cosine"]) for figures in of_it), 5),
            "max_under": round(max(max(figures["under"]) for figures in of_it), 4),
        }
    return summary


def _as_json(collection: Collection, results: Sequence[Measured]) -> dict[str, object]:
    return {
        "collection": collection.name,
        "measure": collection.measure,
        "queries": len(collection.queries),
        "documents": len(collection.documents),
        "arithmetics": {
            result.arithmetic: {
                name: {str(d): round(f, 6) for d, f in zip(DIMS, figures, strict=True)}
                for name, figures in result.figures.items()
            }
            for result in results
        },
    }


def _conditions(num_texts: int, seconds: float) -> dict[str, object]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "model": BASE_MODEL,
        "texts": num_texts,
        "run_s": round(seconds),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS)
    parser.add_argument("--queries", type=int, default=500, help="of each collection, at most")
    parser.add_argument("--documents", type=int, default=800, help="the same; all answers stay")
    options = parser.parse_args()
    begin = time.perf_counter()
    collections = []
    for folder in options.folders:
        if folder.is_dir():
            collections.append(read_collection(folder, options.queries, options.documents))
        else:
            print(f"skipped {folder.name}: there is no such folder")
    rows = number_texts([t for c in collections for t in (*c.queries, *c.documents)])
    vectors, not_measured = encode_all(list(rows)) if rows else ({}, {})
    results = {c.name: measure(c, rows, vectors) for c in collections}
    conditions = _conditions(len(rows), time.perf_counter() - begin)
    console = Console(width=110, highlight=False, markup=False)
    console.print("conditions: " + ", ".join(f"{name} {v}" for name, v in conditions.items()))
    for collection in collections:
        show(console, collection, results[collection.name])
    for arithmetic, reason in not_measured.items():
        console.print(f"{arithmetic}: not measured: {reason}")
    if collections:
        console.print(NOTES)
    report = {
        "bench": "int8-quality",
        **conditions,
        "rounded": summarise([m for found in results.values() for m in found]),
        "not_measured": not_measured,
        "results": [_as_json(c, results[c.name]) for c in collections],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
