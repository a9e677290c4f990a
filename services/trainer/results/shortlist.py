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
_UNCUT_QUERIES = 50  # all scores are the same there, so a few show whether something broke


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
        dims: sizes to measure, ascending; the full one on few of the queries, as none is lost.
        on_progress: called with the number of the three that are done.
    """
    queries, documents = torch.from_numpy(queries_QD), torch.from_numpy(documents_ND)
    exact_QN = best(queries, documents, TOP)
    cut = [dim for dim in dims if dim < documents.shape[1]]
    rows = []
    for done, turn in enumerate((None, axes_DD, rotation_DD), start=1):
        sides = queries, documents
        turn_DD = None if turn is None else torch.from_numpy(turn)
        if turn_DD is not None and cut:
            sides = queries @ turn_DD[: cut[-1]].T, documents @ turn_DD[: cut[-1]].T
        shares = [recall(*sides, dim, exact_QN) for dim in cut]
        if len(cut) < len(dims):
            shares.append(_recall_uncut(queries, documents, turn_DD, exact_QN))
        rows.append(shares)
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
    return _share(exact_QN, short_QK)


def _recall_uncut(
    queries_QD: torch.Tensor,
    documents_ND: torch.Tensor,
    turn_DD: torch.Tensor | None,
    exact_QN: torch.Tensor,
) -> float:
    """Return what all numbers keep, which is all, unless a rotation is none.

    (T q) (T d) is (T^T T q) d: so the queries are turned there and back, and documents stay.
    """
    some_QD = queries_QD[:_UNCUT_QUERIES]
    if turn_DD is not None:
        some_QD = some_QD @ turn_DD.T @ turn_DD
    short_QK = best(some_QD, documents_ND, SHORTLIST)
    return _share(exact_QN[: len(some_QD)], short_QK)


def _share(exact_QN: torch.Tensor, short_QK: torch.Tensor) -> float:
    return float((exact_QN[:, :, None] == short_QK[:, None, :]).any(dim=2).float().mean())


def best(queries_QM: torch.Tensor, documents_NM: torch.Tensor, count: int) -> torch.Tensor:
    """Return the rows of each query's best documents; a query's length changes no order."""
    found = []
    for chunk_CM in torch.split(queries_QM, max(1, _CHUNK_SCORES // len(documents_NM))):
        found.append((chunk_CM @ documents_NM.T).topk(min(count, len(documents_NM)), dim=1).indices)
    return torch.cat(found)
