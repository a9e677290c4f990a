"""Where the true neighbours of queries stand at each size: every shortlist's recall in one pass.

A shortlist of K points at a size holds a true neighbour if it is among the best K there, and
exact reranking keeps each one that it is handed. So the ranks of the true neighbours at a size
give the recall of all K at once. What a graph or codes lose beside that is measured on the
engine, see `calibrate.py`.

Shapes: Q queries, B points of a block, N points seen, D full width, M a cut width, K ranks kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.router.rotation import Rotation
from services.router.sizes import Key, Size, cut
from services.shared.vectors import Array

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The true neighbours of each query, and their ranks at each size."""

    keys: list[list[str]]
    """Of each query, best first."""
    scores: list[list[float]]
    """Cosines at full width, best first."""
    ranks: dict[Key, list[list[int]]]
    """{size: rank of each true neighbour of each query, from 1; 0: beyond the ranks kept}."""

    def recall(self, size: Key, candidates: int) -> float:
        """Return the share of true neighbours in a shortlist of so many points at a size."""
        ranks = [rank for query in self.ranks[size] for rank in query]
        return sum(0 < rank <= candidates for rank in ranks) / max(1, len(ranks))


class Scan:
    """Compares queries with points, block by block, and keeps the best at each size.

    Args:
        queries_QD: of unit length.
        own_keys: for each query, at least, the point that it is the vector of, which is left out;
            "": none.
        sizes: ascending, the full one last.
        depth: ranks kept at each size.
        rotation: of nested sizes.
    """

    def __init__(
        self,
        queries_QD: Array,
        own_keys: Sequence[str],
        sizes: Sequence[Size],
        depth: int,
        rotation: Rotation | None = None,
    ) -> None:
        self._sizes = tuple(sizes)
        self._rotation = rotation
        self._queries = cut(queries_QD, sizes, rotation)
        self._tops = {size.key: _Top(len(queries_QD), depth) for size in sizes}
        self._keys: list[str] = []
        self._places: dict[str, list[int]] = {}
        for query, key in enumerate(own_keys[: len(queries_QD)]):
            if key:
                self._places.setdefault(key, []).append(query)

    @property
    def num_points(self) -> int:
        """Points seen so far."""
        return len(self._keys)

    def add(self, keys: Sequence[str], vectors_BD: Array) -> None:
        """Take a block of points into account."""
        own = [
            (query, row)
            for row, key in enumerate(keys)
            for query in self._places.get(key, ())
        ]  # fmt: skip
        short = cut(vectors_BD, self._sizes, self._rotation)
        for size in self._sizes:
            # Of small products some BLAS compute lanes past their end, which hold anything.
            with np.errstate(invalid="ignore"):
                scores_QB = self._queries[size.vector_name] @ short[size.vector_name].T
            for query, row in own:
                scores_QB[query, row] = -np.inf
            self._tops[size.key].add(scores_QB, len(self._keys))
        self._keys.extend(keys)

    def neighbours(self, limit: int) -> Neighbours:
        """Return what was found; `limit` true neighbours of each query, or all there are."""
        best = {key: top.best() for key, top in self._tops.items()}
        true_rows, true_scores = best[self._sizes[-1].key]
        true_rows = [rows[:limit] for rows in true_rows]
        ranks = {}
        for key, (found, _) in best.items():
            rank_of = [{row: rank for rank, row in enumerate(rows, start=1)} for rows in found]
            ranks[key] = [
                [rank_of[query].get(row, 0) for row in rows] for query, rows in enumerate(true_rows)
            ]
        keys = [[self._keys[row] for row in rows] for rows in true_rows]
        return Neighbours(keys, [scores[:limit] for scores in true_scores], ranks)


class _Top:
    """The best `depth` scores of each query so far.

    Most scores of a block are below what a query has already; only the others are kept, and
    sorted in once there are many.
    """

    def __init__(self, num_queries: int, depth: int) -> None:
        self._depth = depth
        self._least_Q = np.full(num_queries, -np.inf, dtype=np.float32)
        self._queries: list[Ints] = []
        self._rows: list[Ints] = []
        self._scores: list[Array] = []
        self._num_waiting = 0

    def add(self, scores_QB: Array, first_row: int) -> None:
        queries, columns = np.nonzero(scores_QB > self._least_Q[:, None])
        self._queries.append(queries)
        self._rows.append(columns + first_row)
        self._scores.append(scores_QB[queries, columns])
        self._num_waiting += len(queries)
        if self._num_waiting > self._depth * len(self._least_Q):
            self._sort_in()

    def _sort_in(self) -> None:
        queries = np.concatenate(self._queries)
        rows = np.concatenate(self._rows)
        scores = np.concatenate(self._scores)
        order = np.lexsort((-scores, queries))
        queries, rows, scores = queries[order], rows[order], scores[order]
        places = np.arange(len(queries)) - np.searchsorted(queries, queries)
        kept = places < self._depth
        last = places == self._depth - 1
        self._least_Q[queries[last]] = scores[last]
        self._queries, self._rows, self._scores = [queries[kept]], [rows[kept]], [scores[kept]]
        self._num_waiting = 0

    def best(self) -> tuple[list[list[int]], list[list[float]]]:
        """Return the rows and the scores of each query's best, best first."""
        if self._queries:
            self._sort_in()
        num_queries = len(self._least_Q)
        if not self._queries:
            return [[] for _ in range(num_queries)], [[] for _ in range(num_queries)]
        ends = np.searchsorted(self._queries[0], np.arange(1, num_queries))
        rows = np.split(self._rows[0], ends)
        scores = np.split(self._scores[0], ends)
        return [part.tolist() for part in rows], [part.tolist() for part in scores]
