"""Two rankings made one: what any two sides may say, and what must follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.hybrid.fusion import by_rank, by_score

KEYS = "abcdefgh"
COSINES = st.dictionaries(st.sampled_from(KEYS), st.floats(-1, 1), min_size=1)
WEIGHTS = st.floats(0, 1)


@st.composite
def sides(draw):
    cosines = draw(COSINES)
    worded = draw(st.lists(st.sampled_from(sorted(cosines)), unique=True))
    return cosines, {key: draw(st.floats(0.001, 50)) for key in worded}


@given(sides(), WEIGHTS)
def test_scores_are_weighed_of_every_point_once(both, weight):
    """Each point once, best first, within the bounds that the wire states."""
    cosines, text_scores = both
    fused = by_score(cosines, text_scores, weight)
    assert sorted(key for key, _ in fused) == sorted(cosines)
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(-1 - 1e-9 <= score <= 1 + 1e-9 for score in scores)


@given(sides())
def test_all_weight_on_one_side_is_that_side_alone(both):
    """Weight 1 is the vectors' own order and score, weight 0 the words'."""
    cosines, text_scores = both
    assert dict(by_score(cosines, text_scores, 1.0)) == pytest.approx(cosines)
    if text_scores:
        best = max(text_scores, key=lambda key: text_scores[key])
        assert by_score(cosines, text_scores, 0.0)[0][1] == pytest.approx(1.0)
        assert dict(by_score(cosines, text_scores, 0.0))[best] == pytest.approx(1.0)


@given(sides(), WEIGHTS, st.floats(0.1, 100))
def test_the_scale_of_text_scores_does_not_matter(both, weight, scale):
    """BM25 has no upper bound: only what a score is beside the best counts."""
    cosines, text_scores = both
    longer = {key: score * scale for key, score in text_scores.items()}
    assert dict(by_score(cosines, longer, weight)) == pytest.approx(
        dict(by_score(cosines, text_scores, weight)), abs=1e-9
    )


RANKINGS = st.lists(st.sampled_from(KEYS), unique=True)


@given(RANKINGS, RANKINGS, WEIGHTS)
def test_ranks_are_fused_of_every_point_once(near, worded, weight):
    """What either side found is there once; first on both sides makes 1, nothing makes more."""
    fused = by_rank(near, worded, weight)
    assert sorted(key for key, _ in fused) == sorted({*near, *worded})
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 + 1e-9 for score in scores)
    if near and worded and near[0] == worded[0]:
        assert fused[0] == (near[0], pytest.approx(1.0))


@given(RANKINGS, RANKINGS)
def test_ahead_on_both_sides_is_ahead(near, worded):
    """A point that both sides put before another is before it."""
    place = {key: rank for rank, (key, _) in enumerate(by_rank(near, worded, 0.5))}
    for key in set(near) & set(worded):
        for other in set(near) & set(worded) - {key}:
            if near.index(key) < near.index(other) and worded.index(key) < worded.index(other):
                assert place[key] < place[other]
