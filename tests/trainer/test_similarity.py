"""How cosines go with the scores of pairs: against scipy, and against resampling."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from services.shared.vectors import truncate
from services.trainer.results.evaluate import means
from services.trainer.results.gate import Rule, judge
from services.trainer.results.similarity import correlate_each
from services.trainer.results.slices import compare

DIMS = (4, 16)


def pairs(count=300, noise=1.5, seed=0):
    """Vectors of the two sides, and scores on a coarse scale that the cosines roughly follow."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, 16)).astype(np.float32)
    second = (first + noise * rng.normal(size=first.shape)).astype(np.float32)
    cosines = (truncate(first, 16) * truncate(second, 16)).sum(axis=1)
    scores = np.round(5 * cosines + rng.normal(size=count))
    return first, second, scores


def measured(first, second, scores):
    return correlate_each(first, second, [{row: s} for row, s in enumerate(scores)], DIMS)


def test_the_means_are_the_correlations():
    """Of cut and scaled vectors, ties in the scores included, as scipy has them."""
    first, second, scores = pairs()
    found = means(measured(first, second, scores), DIMS)
    for row in found:
        cosines = (truncate(first, row.dim) * truncate(second, row.dim)).sum(axis=1)
        assert row.spearman == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-6)
        assert row.pearson == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-6)
    assert 0.2 < found[0].spearman < found[1].spearman < 0.95


def test_grades_are_read_row_by_row():
    """A text with several partners: each pair once, in the order of the scores."""
    first, second, scores = pairs(6)
    grades = [{0: scores[0], 3: scores[1]}, {2: scores[2]}, {}]
    parts = correlate_each(first[:3], second, grades, DIMS)
    rows, columns = [0, 0, 1], [0, 3, 2]
    assert parts.shape == (3, 2, 2)
    same = measured(first[rows], second[columns], scores[:3])
    assert np.allclose(parts, same)


def test_the_interval_of_a_change_is_that_of_pairs_drawn_again():
    """Parts stand for drawing pairs and correlating them anew, which takes far longer."""
    first, second, scores = pairs()
    rng = np.random.default_rng(1)
    worse = (second + rng.normal(size=second.shape)).astype(np.float32)
    before, after = measured(first, second, scores), measured(first, worse, scores)
    (_, change) = compare("", before, after, DIMS).changes
    cosines = [(truncate(first, 16) * truncate(side, 16)).sum(axis=1) for side in (second, worse)]
    drawn = []
    for _ in range(400):
        rows = rng.integers(len(scores), size=len(scores))
        old, new = (spearmanr(side[rows], scores[rows]).statistic for side in cosines)
        drawn.append(new - old)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert change.mean < 0
    assert change.high - change.low == pytest.approx(high - low, rel=0.2)
    assert (change.low, change.high) == pytest.approx((low, high), abs=0.03)


def test_what_is_all_the_same_goes_with_nothing():
    """Equal cosines, or a prefix of zeros: 0, not NaN."""
    first, second, scores = pairs(20)
    second = first.copy()
    second[:, :4] = 0
    short, full = means(measured(first, second, scores), DIMS)
    assert (short.spearman, short.pearson) == (0.0, 0.0)
    assert full.spearman != 0


def test_the_gate_speaks_of_pairs_and_of_their_metric():
    """A fall of the correlation is a fall; of too few pairs nothing is said."""
    first, second, scores = pairs()
    same = measured(first, second, scores)
    assert judge(same, same, (), DIMS, Rule(max_drop=0.0)).passes
    worse = measured(first, second[::-1], scores)
    (one, _) = judge(same, worse, (), DIMS, Rule()).reasons
    assert one.startswith("all pairs: Spearman at 4 falls by 0.")
    assert "(300 pairs, 95% between" in one
    (few,) = judge(same, same, (), DIMS, Rule(min_queries=301)).reasons
    assert few.startswith("all pairs: 300 held-out pairs are too few")
