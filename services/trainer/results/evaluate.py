"""Quality at each size: encoded once, cut many times.

In: full vectors of queries and documents, and which documents answer which query. Out: nDCG@10,
recall@10 and MRR@10 per size; of scored pairs what `similarity.py` says. Knows nothing of where
vectors come from.

`score_each` tells it of each query, so that two models can be compared in pairs; `evaluate` is
its mean. What is told of each is kept as an array whose last axis says of what kind it is: three
scores are retrieval's, two are correlations.

Source: Järvelin and Kekäläinen 2002 (nDCG, with the grade itself as the gain, as trec_eval).
Shapes: Q queries, or scored pairs; N documents, K sizes, D full width, M width after the cut; S:
the scores of `DimScores`, or of `SimilarityScores`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Self

import numpy as np
import torch

from services.shared.card import AnyScores, DimScores, SimilarityScores
from services.shared.vectors import Array, truncate
from services.trainer.data.pairs import Questions
from services.trainer.results.similarity import correlate_each

TOP = 10
_CHUNK_SCORES = 2**24  # 64 MiB of float32 scores at a time
Scores = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]
_DISCOUNTS = [1 / math.log2(rank + 2) for rank in range(TOP)]


def measure(
    queries_QD: Array,
    documents_ND: Array,
    asked: Questions,
    dims: Sequence[int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Measure what is asked, of each query or scored pair; otherwise as `score_each`.

    Returns:
        scores_QKS.
    """
    way = correlate_each if asked.kind == "scored" else score_each
    return way(queries_QD, documents_ND, asked.relevant, dims, on_progress)


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
    scores_QK3 = score_each(queries_QD, documents_ND, relevant, dims, on_progress)
    return tuple(row for row in means(scores_QK3, dims) if isinstance(row, DimScores))


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
    best = {row: _Best.of(relevant[row]) for row in judged}
    scores_QK3 = np.full((len(relevant), len(dims), len(DimScores.NAMES)), np.nan)
    for place, dim in enumerate(dims):
        rankings = rank(truncate(queries_QD[judged], dim), truncate(documents_ND, dim))
        scores = [
            _score(ranking, relevant[row], best[row])
            for ranking, row in zip(rankings, judged, strict=True)
        ]
        scores_QK3[judged, place] = scores
        on_progress(place + 1)
    return scores_QK3


def kind_of(scores_QKS: Scores) -> type[DimScores] | type[SimilarityScores]:
    """Return what such scores are, told by their number."""
    is_retrieval = scores_QKS.shape[2] == len(DimScores.NAMES)
    return DimScores if is_retrieval else SimilarityScores


def means(scores_QKS: Scores, dims: Sequence[int]) -> tuple[AnyScores, ...]:
    """Return the mean scores of each size over the queries that have a relevant document."""
    judged_QKS = scores_QKS[~np.isnan(scores_QKS[:, 0, 0])]
    kind = kind_of(scores_QKS)
    rows = []
    for place, dim in enumerate(dims):
        found = np.clip(judged_QKS[:, place].mean(axis=0), -1.0, 1.0).tolist()
        rows.append(kind.model_validate({"dim": dim} | dict(zip(kind.NAMES, found, strict=True))))
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


@dataclass(frozen=True, slots=True)
class _Best:
    """What a query could get at most; the same at every size."""

    gain: float
    num_relevant: int

    @classmethod
    def of(cls, grades: Mapping[int, float]) -> Self:
        return cls(
            _discounted(nlargest(TOP, grades.values())),
            sum(grade > 0 for grade in grades.values()),
        )


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain * discount for gain, discount in zip(gains, _DISCOUNTS, strict=False))


def _score(
    ranking: Sequence[int], grades: Mapping[int, float], best: _Best
) -> tuple[float, float, float]:
    """Return nDCG, recall and reciprocal rank of one ranking."""
    gains = [grades.get(document, 0.0) for document in ranking]
    num_found = sum(gain > 0 for gain in gains)
    first = next((place for place, gain in enumerate(gains) if gain > 0), None)
    reciprocal = 0.0 if first is None else 1 / (first + 1)
    return _discounted(gains) / best.gain, num_found / best.num_relevant, reciprocal
