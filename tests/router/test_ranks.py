"""True neighbours and their ranks, against numpy's sorting of everything.

Shapes: Q queries, N points, D full width, M a cut width.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.recall.ranks import Neighbours, Scan
from services.router.rotation import Rotation
from services.router.sizes import Size
from services.shared.vectors import Array, normalize, truncate

# It only swaps axes, so that what was exact stays exact.
ROTATION = Rotation.of(-np.eye(8, dtype=np.float32)[[3, 6, 1, 7, 0]])
SIZES = (
    Size(2, "none", 0),
    Size(5, "none", 0, nesting=ROTATION.id),
    Size(5, "none", 0),
    Size(8, "none", 0),
)
KEYS = [size.key for size in SIZES]
FULL = (8, False)


def draw(seed: int, rows: int) -> Array:
    return normalize(np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32))


def names(rows: int) -> list[str]:
    return [f"key-{row}" for row in range(rows)]


def blocks(rows: int, cuts: set[int]) -> Iterator[slice]:
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    for begin, end in itertools.pairwise(edges):
        yield slice(begin, end)


def scan(queries_QD, own_keys, points_ND, depth, cuts=frozenset()) -> Scan:
    found, keys = Scan(queries_QD, own_keys, SIZES, depth, ROTATION), names(len(points_ND))
    for block in blocks(len(points_ND), cuts):
        found.add(keys[block], points_ND[block])
    return found


def naive(queries_QD, own_keys, points_ND, depth: int, limit: int) -> Neighbours:
    """The same, from a sort of all points for each query and size."""
    all_keys, scores, ranks = [], [], {key: [] for key in KEYS}
    for query_D, own in zip(queries_QD, own_keys, strict=True):
        orders = {}
        for size in SIZES:
            turn = ROTATION.rows_MD.T if size.is_nested else np.eye(8, dtype=np.float32)
            cosines_N = (
                truncate(points_ND @ turn, size.dim) @ truncate(query_D[None] @ turn, size.dim)[0]
            )
            order = np.argsort(-cosines_N, kind="stable")
            orders[size.key] = [row for row in order.tolist() if f"key-{row}" != own][:depth]
        true = orders[FULL][:limit]
        all_keys.append([f"key-{row}" for row in true])
        scores.append([float(points_ND[row] @ query_D) for row in true])
        for key, order in orders.items():
            ranks[key].append([order.index(row) + 1 if row in order else 0 for row in true])
    return Neighbours(all_keys, scores, ranks)


@settings(max_examples=120, database=None, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_points=st.integers(1, 60),
    num_queries=st.integers(1, 6),
    depth=st.integers(1, 70),
    limit=st.integers(1, 12),
    own=st.lists(st.integers(-1, 59), min_size=6, max_size=6),
    cuts=st.sets(st.integers(1, 59)),
)
def test_neighbours_and_ranks_are_those_of_a_full_sort(
    seed, num_points, num_queries, depth, limit, own, cuts
):
    """For any points, depth and division into blocks; a query's own point is left out."""
    points_ND = draw(seed, num_points)
    own_keys = [f"key-{row}" if row >= 0 else "" for row in own[:num_queries]]
    queries_QD = draw(seed + 1, num_queries)
    for query, row in enumerate(own[:num_queries]):
        if 0 <= row < num_points:
            queries_QD[query] = points_ND[row]
    found = scan(queries_QD, own_keys, points_ND, depth, cuts)
    neighbours = found.neighbours(limit)
    expected = naive(queries_QD, own_keys, points_ND, depth, limit)
    assert found.num_points == num_points
    assert neighbours.keys == expected.keys
    assert neighbours.ranks == expected.ranks
    for scores, wanted in zip(neighbours.scores, expected.scores, strict=True):
        np.testing.assert_allclose(scores, wanted, atol=1e-6)  # float32 sums in another order


def test_equal_points_are_ranked_the_same_in_any_blocks():
    """Of ties the point that was seen first comes first, so that two readings agree."""
    # Numbers whose products and sums are exact, so that equal points have equal scores.
    points_ND = np.eye(8, dtype=np.float32)[np.arange(40) % 8]
    queries_QD = np.eye(8, dtype=np.float32)[:3]
    whole = scan(queries_QD, [""] * 3, points_ND, 7).neighbours(4)
    assert whole.keys[1] == ["key-1", "key-9", "key-17", "key-25"]
    for cuts in ({1}, {9, 10}, {5, 13, 30}, set(range(40))):
        assert scan(queries_QD, [""] * 3, points_ND, 7, cuts).neighbours(4) == whole


def test_recall_counts_the_true_neighbours_in_a_shortlist():
    """All neighbours of all queries count alike; one beyond the depth is in no shortlist."""
    neighbours = Neighbours(
        [["a", "b"], ["c", "d"]], [[0.9, 0.8], [0.9, 0.8]], {(2, False): [[1, 7], [3, 0]]}
    )
    recalls = [neighbours.recall((2, False), candidates) for candidates in (0, 1, 3, 6, 7, 1000)]
    assert recalls == [0.0, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_more_candidates_never_lose_a_neighbour():
    """Recall grows with the shortlist, and is whole once it holds every point."""
    queries_QD, points_ND = draw(1, 20), draw(2, 300)
    neighbours = scan(queries_QD, [""] * 20, points_ND, 300).neighbours(10)
    for key in KEYS:
        recalls = [neighbours.recall(key, candidates) for candidates in range(10, 301, 10)]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 1.0
    assert neighbours.recall((2, False), 30) < neighbours.recall((5, False), 30) < 1.0
    assert neighbours.recall(FULL, 30) == 1.0


def test_fewer_points_than_wanted_are_all_there_are():
    """No points, or only the query's own, leave nothing to find."""
    queries_QD = draw(1, 2)
    empty = scan(queries_QD, ["", ""], np.empty((0, 8), np.float32), 5).neighbours(3)
    assert empty == Neighbours([[], []], [[], []], {key: [[], []] for key in KEYS})
    one = scan(queries_QD, ["key-0", ""], draw(2, 1), 5).neighbours(3)
    assert one.keys == [[], ["key-0"]]
    assert one.ranks == {key: [[], [1]] for key in KEYS}
    assert one.recall(FULL, 1) == 1.0


def test_a_scan_that_knows_of_more_own_points_than_queries_takes_its_own():
    """Ranks are found of the first queries only, with all queries' own points at hand."""
    queries_QD, points_ND = draw(1, 2), draw(2, 9)
    few = scan(queries_QD, ["key-3", "", "key-5", "key-6"], points_ND, 9).neighbours(9)
    assert few == scan(queries_QD, ["key-3", ""], points_ND, 9).neighbours(9)
    assert "key-3" not in few.keys[0]
    assert {"key-5", "key-6"} < set(few.keys[0])
