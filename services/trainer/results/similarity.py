"""How the cosines of scored pairs go with their scores, at each size.

Spearman's correlation is what is told of the field's scored pairs: any scale of scores will do, and
a cosine need not be a score, only stand in the same order. Pearson's stands beside it.

A correlation is no mean over pairs, but it is the mean of what each pair has for its part: with x
and y of mean 0 and variance 1 and r their correlation, the pair's influence on r is
x y - r (x^2 + y^2) / 2, of mean 0. Each pair is told as r plus its influence. So the mean over all
pairs is r to the last digits, and draws of as many pairs show how far r may move by chance, as
they do for the scores of queries. For Spearman the ranks stay those among all pairs.

Source: Hampel 1974, JASA 69, "The influence curve" (it is that of the correlation too).
Shapes: Q queries, N documents, P scored pairs, K sizes, D full width; 2: `SimilarityScores`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.shared.vectors import Array, truncate

Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]
Parts = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]


def correlate_each(
    queries_QD: Array,
    documents_ND: Array,
    scores: Sequence[Mapping[int, float]],
    dims: Sequence[int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Parts:
    """Measure each scored pair at each size.

    Args:
        queries_QD: float32, finite, not cut: the first texts.
        documents_ND: the same of the second ones.
        scores: for each query, rows of documents with the score of the two.
        dims: sizes to measure.
        on_progress: called with the number of sizes done.

    Returns:
        parts_PK2, whose means over the pairs are the correlations of Spearman and of Pearson;
        pairs in the order of the scores. Where all cosines or all scores are equal, 0.

    Raises:
        ValueError: a vector is not finite.
    """
    if not (np.isfinite(queries_QD).all() and np.isfinite(documents_ND).all()):
        raise ValueError("vectors to evaluate must be finite")
    queries = [row for row, found in enumerate(scores) for _ in found]
    documents = [row for found in scores for row in found]
    scores_P = np.array([score for found in scores for score in found.values()])
    parts_PK2 = np.empty((len(scores_P), len(dims), 2))
    for place, dim in enumerate(dims):
        firsts_PM, seconds_PM = (
            truncate(queries_QD, dim)[queries],
            truncate(documents_ND, dim)[documents],
        )
        cosines_P = np.einsum("pm,pm->p", firsts_PM, seconds_PM, dtype=np.float64)
        parts_PK2[:, place, 0] = _parts(_ranks(cosines_P), _ranks(scores_P))
        parts_PK2[:, place, 1] = _parts(cosines_P, scores_P)
        on_progress(place + 1)
    return parts_PK2


def _parts(first_P: Numbers, second_P: Numbers) -> Numbers:
    """Return the correlation plus each pair's influence on it."""
    x_P, y_P = (_standardize(side_P) for side_P in (first_P, second_P))
    correlation = float(np.mean(x_P * y_P))
    influences_P: Numbers = x_P * y_P - correlation * (x_P**2 + y_P**2) / 2
    return influences_P + correlation


def _standardize(numbers_P: Numbers) -> Numbers:
    """Return them with mean 0 and variance 1; zeros, where all are equal."""
    if (numbers_P == numbers_P[0]).all():
        return np.zeros_like(numbers_P)
    centred_P: Numbers = numbers_P - numbers_P.mean()
    centred_P /= np.sqrt(np.mean(centred_P**2))
    return centred_P


def _ranks(numbers_P: Numbers) -> Numbers:
    """Return the rank of each, from 1; equals share the mean of theirs."""
    _, places_P, counts = np.unique(numbers_P, return_inverse=True, return_counts=True)
    ranks_P: Numbers = (np.cumsum(counts) - (counts - 1) / 2)[places_P]
    return ranks_P
