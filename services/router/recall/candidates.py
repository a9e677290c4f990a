"""Plans worth measuring for a collection, from where its true neighbours stand at each size.

Everything that the field sets by hand is here: which size, how long a shortlist, how wide a walk
through the graph, what codes are rescored. Which of them is good is for the measurement to say.

Letters: N points, K shortlist.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from services.router.plan import MAX_EF, Plan, Stage, rerank
from services.router.recall.ranks import Neighbours
from services.router.sizes import Key, Size

# Shortlists from the one that keeps this share of the true neighbours ...
_LEAST_RECALL = 0.85
# ... to the one that keeps this share, and further for codes, which blur ranks.
_MOST_RECALL = 0.999
_STEP = 1.2
_BEYOND = {False: 1.0, True: 3.0}
# Widths of the walk. A short size is limited by its prefix: the walk goes with the shortlist, from
# once to four times as wide. A size near the full one is limited by its graph, and needs a walk as
# wide as the full one's however short the list is: at 224 nested numbers of 384, lists of 20.
_EFS = (16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
_EF_FACTORS = (1.0, 1.5, 2.5, 4.0)
_LEAST_EF = _EFS[0]
_WIDEST_OF_SHORT_LISTS = 256
_OVERSAMPLINGS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
# Numbers that a scan may read; more take longer than any plan that is worth it (some 20 ms).
_MAX_SCANNED = 50_000_000


def candidate_plans(
    sizes: Sequence[Size], neighbours: Neighbours, num_points: int, limit: int, max_candidates: int
) -> list[Plan]:
    """Return distinct plans to measure, each resolved for `limit` hits."""
    full = sizes[-1]
    plans = list(_single_stage(full, num_points, limit))
    for size in sizes[:-1]:
        shortlists = list(_shortlists(size, neighbours, limit, min(max_candidates, num_points)))
        for first in _first_stages(size, shortlists, num_points):
            plans.append(Plan((first, rerank(full, limit))))
    for plan in _funnels(sizes, neighbours, limit, min(max_candidates, num_points)):
        plans.append(plan)
    return list(dict.fromkeys(plans))


def _single_stage(full: Size, num_points: int, limit: int) -> Iterator[Plan]:
    is_coded = full.quantization != "none"
    times: tuple[float | None, ...] = (0.0, *_OVERSAMPLINGS) if is_coded else (None,)
    for oversampling in times:
        if full.hnsw_m:
            for ef in _EFS:
                if ef >= limit:
                    yield Plan((Stage(full.dim, limit, ef=ef, oversampling=oversampling),))
        elif is_coded and num_points * full.dim <= _MAX_SCANNED:
            yield Plan((Stage(full.dim, limit, oversampling=oversampling),))


def _shortlists(size: Size, neighbours: Neighbours, limit: int, most: int) -> Iterator[int]:
    """Give lengths of a shortlist, ascending, a step apart."""
    least = _shortest(size.key, neighbours, _LEAST_RECALL, most)
    end = _shortest(size.key, neighbours, _MOST_RECALL, most)
    end = min(most, math.ceil(end * _BEYOND[size.quantization != "none"]))
    candidates = max(limit, least)
    while candidates < end:
        yield candidates
        candidates = max(candidates + 1, math.ceil(candidates * _STEP))
    if end >= limit:
        yield end


def _shortest(size: Key, neighbours: Neighbours, share: float, most: int) -> int:
    """Return the shortest shortlist that keeps a share of the true neighbours, at most `most`."""
    ranks = sorted(rank or most for query in neighbours.ranks[size] for rank in query)
    place = min(len(ranks) - 1, math.ceil(share * len(ranks)) - 1)
    return min(most, ranks[place]) if ranks else most


def _first_stages(size: Size, shortlists: Sequence[int], num_points: int) -> Iterator[Stage]:
    times: tuple[float | None, ...] = (None,)
    if size.quantization != "none":
        times = (0.0, 1.0) if size.is_coarse else (0.0,)
    stage = Stage(size.dim, is_nested=size.is_nested)
    for candidates in shortlists:
        if size.hnsw_m:
            for ef in _walks(candidates):
                for oversampling in times:
                    yield replace(stage, candidates=candidates, ef=ef, oversampling=oversampling)
        if num_points * size.dim <= _MAX_SCANNED:
            # Without a graph the engine scans by itself, codes if there are any.
            if size.hnsw_m:
                yield replace(stage, candidates=candidates, exact=True)
            else:
                for oversampling in times:
                    yield replace(stage, candidates=candidates, oversampling=oversampling)


def _walks(candidates: int) -> list[int]:
    """Return widths of a walk that ends in so many candidates, ascending."""
    near = {max(_LEAST_EF, math.ceil(candidates * factor)) for factor in _EF_FACTORS}
    wide = {ef for ef in _EFS if max(near) < ef <= _WIDEST_OF_SHORT_LISTS}
    return sorted(min(MAX_EF, ef) for ef in near | wide)


def _funnels(
    sizes: Sequence[Size], neighbours: Neighbours, limit: int, most: int
) -> Iterator[Plan]:
    """Give plans with a stage between the shortest size and the full one."""
    full = sizes[-1]
    short = next((size for size in sizes[:-1] if size.hnsw_m), None)
    for middle in sizes[:-1]:
        if short is None or middle.dim <= short.dim:
            continue
        for share in (0.95, 0.98, 0.99, 0.995, 0.999):
            first = _shortest(short.key, neighbours, share, most)
            second = max(limit, _shortest(middle.key, neighbours, share, most))
            if second < first:
                yield Plan(
                    (
                        Stage(short.dim, first, ef=max(_LEAST_EF, first), oversampling=0.0
                              if short.quantization != "none" else None,
                              is_nested=short.is_nested),
                        Stage(middle.dim, second, is_nested=middle.is_nested),
                        rerank(full, limit),
                    )
                )  # fmt: skip
