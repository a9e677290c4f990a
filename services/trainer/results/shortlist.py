"""What a shortlist on few numbers keeps: recall of the exact full-width top 10 in its best 50.

No labels: what is right is what all numbers say. In: vectors of queries and documents, before and
after a rotation. Out: one row a size. The full-width order is that of the vectors as they came.

Shapes: Q queries, N documents, C queries of a chunk, D full width, M width after the cut.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from services.shared.vectors import Array
from services.trainer.jobs.spec import NestScores

TOP, SHORTLIST = 10, 50
_CHUNK_SCORES = 2**24  # 64 MiB of float32 scores at a time


def compare(
    queries_QD: Array,
    documents_ND: Array,
    axes_DD: Array,
    rotation_DD: Array,
    dims: Sequence[int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[NestScores, ...]:
    """Measure the vectors as they came, on their principal axes, and rotated.

    Args:
        queries_QD: of unit length; not among the documents.
        documents_ND: of unit length.
        axes_DD: applied as `vectors @ axes.T`.
        rotation_DD: the same.
        dims: sizes to measure.
        on_progress: called with the number of the three that are done.
    """
    queries, documents = torch.from_numpy(queries_QD), torch.from_numpy(documents_ND)
    exact_QN = best(queries, documents, TOP)
    rows = []
    for done, turn_DD in enumerate((None, axes_DD, rotation_DD), start=1):
        sides = queries, documents
        if turn_DD is not None:
            turned_MD = torch.from_numpy(turn_DD[: max(dims)])
            sides = queries @ turned_MD.T, documents @ turned_MD.T
        rows.append([recall(*sides, dim, exact_QN) for dim in dims])
        on_progress(done)
    return tuple(
        NestScores(dim=dim, plain=plain, pca=pca, nested=nested)
        for dim, plain, pca, nested in zip(dims, *rows, strict=True)
    )


def recall(
    queries_QD: torch.Tensor, documents_ND: torch.Tensor, dim: int, exact_QN: torch.Tensor
) -> float:
    """Return the share of `exact_QN` in the shortlists of the first `dim` numbers."""
    cut_NM = functional.normalize(documents_ND[:, :dim])
    short_QK = best(queries_QD[:, :dim].contiguous(), cut_NM, SHORTLIST)
    return float((exact_QN[:, :, None] == short_QK[:, None, :]).any(dim=2).float().mean())


def best(queries_QM: torch.Tensor, documents_NM: torch.Tensor, count: int) -> torch.Tensor:
    """Return the rows of each query's best documents; a query's length changes no order."""
    found = []
    for chunk_CM in torch.split(queries_QM, max(1, _CHUNK_SCORES // len(documents_NM))):
        found.append((chunk_CM @ documents_NM.T).topk(min(count, len(documents_NM)), dim=1).indices)
    return torch.cat(found)
