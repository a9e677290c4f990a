"""Two rankings of the same points made one: by their scores, or by their ranks.

Each side is {key: score}, best first. Pure functions of that; engines and wires are elsewhere.
"""

from collections.abc import Mapping, Sequence

Ranking = Mapping[str, float]

# Of the first place; Cormack, Clarke and Buettcher 2009 take 60, on which the best of many runs
# hangs less. Of two runs 2 was better (`docs/hybrid.md` has the figures), and is Qdrant's own.
_RANK_CONSTANT = 2


def by_score(cosines: Ranking, text_scores: Ranking, weight: float) -> list[tuple[str, float]]:
    """Weigh what both sides say of each point; needs both scores of all of them.

    Cosines are taken as they are, text scores divided by the best of them. Neither is stretched to
    the range that it happened to have, so one odd hit moves no others.
    Source: Bruch, Gai and Ingber 2023, "An Analysis of Fusion Functions for Hybrid Retrieval",
    arXiv:2210.11934, section 4, with 0 as the least cosine of a text that has to do with another.

    Args:
        cosines: of every point.
        text_scores: of those that have any term of the query; 0 or more.
        weight: of the cosines, 0..1.

    Returns:
        (key, score -1..1), best first.

    >>> by_score({"a": 1.0, "b": 0.5}, {"b": 7.5}, 0.5)
    [('b', 0.75), ('a', 0.5)]
    """
    best = max(text_scores.values(), default=0.0) or 1.0
    fused = {
        key: weight * cosine + (1 - weight) * text_scores.get(key, 0.0) / best
        for key, cosine in cosines.items()
    }
    return sorted(fused.items(), key=lambda item: -item[1])


def by_rank(
    cosines: Sequence[str], text_scores: Sequence[str], weight: float
) -> list[tuple[str, float]]:
    """Add up what each side's rank of a point is worth: reciprocal rank fusion, weighted.

    Source: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and
    individual Rank Learning Methods", SIGIR.

    Args:
        cosines: keys by cosine, best first.
        text_scores: keys by text score.
        weight: of the cosines' side, 0..1.

    Returns:
        (key, score 0..1), best first; first on both sides makes 1.

    >>> by_rank(["a", "b"], ["b"], 0.5)
    [('b', 0.875), ('a', 0.5)]
    """
    fused: dict[str, float] = {}
    for keys, share in ((cosines, weight), (text_scores, 1 - weight)):
        for place, key in enumerate(keys):
            worth = share * _RANK_CONSTANT / (_RANK_CONSTANT + place)
            fused[key] = fused.get(key, 0.0) + worth
    return sorted(fused.items(), key=lambda item: -item[1])
