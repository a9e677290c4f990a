"""Retrieval quality at each size: encoded once, cut many times.

In: full vectors of queries and documents, and which documents answer which query. Out: nDCG@10,
recall@10 and MRR@10 per size. Knows nothing of where vectors come from.

`score_each` tells it of each query, so that two models can be compared in pairs; `evaluate` is
its mean.

Source: Järvelin and Kekäläinen 2002 (nDCG, with the grade itself as the gain, as trec_eval).
Shapes: Q queries, N documents, K sizes, D full width, M width after the cut; 3: `METRICS`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from services.shared.card import DimScores
from services.shared.vectors import Array, truncate

TOP = 10
METRICS = ("ndcg10", "recall10", "mrr10")
_CHUNK_SCORES = 2**24  # 64 MiB of float32 scores at a time
Scores = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]
_DISCOUNTS = [1 / math.log2(rank + 2) for rank in range(TOP)]


def evaluate(
    queries_QD: Array,
    documents_ND: Array,
    relevant: Sequence[Mapping[int, float]],
    dims: Sequence[int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[DimScores, ...]:
    """Measure each size.

    Args:
        queries_QD: float32, finite, not cut.
        documents_ND: the same of the documents.
        relevant: for each query, rows of documents with their grades (> 0 is relevant). Queries
            without any are left out of the means.
        dims: sizes to measure.
        on_progress: called with the number of sizes done.

    Raises:
        ValueError: no query has a relevant document, or a vector is not finite.
    """
    return means(score_each(queries_QD, documents_ND, relevant, dims, on_progress), dims)


def score_each(
    queries_QD: Array,
    documents_ND: Array,
    relevant: Sequence[Mapping[int, float]],
    dims: Sequence[int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Measure each query at each size; arguments and errors as `evaluate`.

    Returns:
        scores_QK3, each 0..1, NaN for a query without a relevant document.
    """
    if not (np.isfinite(queries_QD).all() and np.isfinite(documents_ND).all()):
        raise ValueError("vectors to evaluate must be finite")
    judged = [row for row, grades in enumerate(relevant) if any(g > 0 for g in grades.values())]
    if not judged:
        raise ValueError("no query has a relevant document")
    scores_QK3 = np.full((len(relevant), len(dims), len(METRICS)), np.nan)
    for place, dim in enumerate(dims):
        rankings = rank(truncate(queries_QD[judged], dim), truncate(documents_ND, dim))
        scores = [_score(r, relevant[row]) for r, row in zip(rankings, judged, strict=True)]
        scores_QK3[judged, place] = scores
        on_progress(place + 1)
    return scores_QK3


def means(scores_QK3: Scores, dims: Sequence[int]) -> tuple[DimScores, ...]:
    """Return the mean scores of each size over the queries that have a relevant document."""
    judged_QK3 = scores_QK3[~np.isnan(scores_QK3[:, 0, 0])]
    rows = []
    for place, dim in enumerate(dims):
        ndcg, recall, mrr = (min(1.0, float(mean)) for mean in judged_QK3[:, place].mean(axis=0))
        rows.append(DimScores(dim=dim, ndcg10=ndcg, recall10=recall, mrr10=mrr))
    return tuple(rows)


def rank(queries_QM: Array, documents_NM: Array) -> list[list[int]]:
    """Return the best 10 documents of each query, best first; of equals the first row wins."""
    queries, documents = torch.from_numpy(queries_QM), torch.from_numpy(documents_NM)
    top = min(TOP, len(documents))
    rankings: list[list[int]] = []
    for chunk in torch.split(queries, max(1, _CHUNK_SCORES // len(documents))):
        scores_CN = chunk @ documents.T
        lowest_C1 = scores_CN.topk(top, dim=1).values[:, -1:]
        # All that reach the tenth score, so that the choice among equals is ours.
        rows, columns = (scores_CN >= lowest_C1).nonzero(as_tuple=True)
        counts = rows.bincount(minlength=len(chunk)).tolist()
        values = torch.split(scores_CN[rows, columns], counts)
        for found, score in zip(torch.split(columns, counts), values, strict=True):
            best_first = score.argsort(descending=True, stable=True)[:top]
            rankings.append(found[best_first].tolist())
    return rankings


def _score(ranking: Sequence[int], grades: Mapping[int, float]) -> tuple[float, float, float]:
    """Return nDCG, recall and reciprocal rank of one ranking."""
    gains = [grades.get(document, 0.0) for document in ranking]
    ideal = sorted(grades.values(), reverse=True)[:TOP]
    best = sum(gain * discount for gain, discount in zip(ideal, _DISCOUNTS, strict=False))
    found = sum(gain * discount for gain, discount in zip(gains, _DISCOUNTS, strict=False))
    num_relevant = sum(grade > 0 for grade in grades.values())
    num_found = sum(gain > 0 for gain in gains)
    first = next((place for place, gain in enumerate(gains) if gain > 0), None)
    return found / best, num_found / num_relevant, 0.0 if first is None else 1 / (first + 1)
