"""Retrieval scores against numbers worked out by hand."""

import math

import numpy as np
import pytest

from services.trainer.results.evaluate import evaluate, rank


def unit(*degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_scores_equal_a_hand_computed_example():
    """One query at 0 degrees; documents rank by their angle."""
    documents = unit(50, 10, 30, 70)  # ranking: 1, 2, 0, 3
    (scores,) = evaluate(unit(0), documents, [{2: 1.0, 3: 1.0}], (2,))
    ideal = 1 + 1 / math.log2(3)
    assert scores.ndcg10 == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert scores.recall10 == 1.0
    assert scores.mrr10 == 0.5


def test_grades_weigh_the_gain():
    """A document of grade 3 in second place costs more than one of grade 1."""
    documents = unit(10, 20)
    (scores,) = evaluate(unit(0), documents, [{0: 1.0, 1: 3.0}], (2,))
    assert scores.ndcg10 == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_each_size_is_cut_and_scaled():
    """At one number, only its sign is left."""
    documents = unit(80, 10, 170)
    one, two = evaluate(unit(40), documents, [{0: 1.0}], (1, 2))
    assert one.dim == 1
    assert one.mrr10 == 1.0  # the first two tie, and the first row wins
    assert two.mrr10 == 0.5  # 30 degrees are nearer than 40


def test_of_equals_the_first_row_wins():
    """Ties are broken the same way on every machine, also across the tenth place."""
    documents = np.ones((30, 4), dtype=np.float32) / 2
    assert rank(documents[:1], documents) == [list(range(10))]


def test_unjudged_queries_are_left_out():
    """A query without a relevant document says nothing; none at all is an error."""
    documents = unit(0, 90)
    (scores,) = evaluate(unit(0, 90), documents, [{0: 1.0}, {}], (2,))
    assert scores.ndcg10 == scores.recall10 == scores.mrr10 == 1.0
    with pytest.raises(ValueError, match="no query"):
        evaluate(unit(0), documents, [{}], (2,))


def test_vectors_that_are_not_finite_are_refused():
    """A NaN would rank somewhere without a word."""
    with pytest.raises(ValueError, match="finite"):
        evaluate(unit(0) * np.nan, unit(0), [{0: 1.0}], (2,))


def test_chunks_change_nothing(monkeypatch):
    """Queries in chunks of one rank as all at once."""
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(2, 40, 8)).astype(np.float32)
    whole = rank(queries, documents)
    monkeypatch.setattr("services.trainer.results.evaluate._CHUNK_SCORES", 1)  # a bound on memory
    assert rank(queries, documents) == whole
