"""Softmax losses of nested prefixes and their exact gradients, all sizes in one pass.

The dot products of a prefix are those of the shorter prefix plus those of the columns between them.
So each block of columns is multiplied once, forward and backward, and all sizes together cost the
matrix products of the widest alone; nothing is ever made by subtracting one prefix from another.
Autograd over the same recurrence gives the same numbers, but keeps what each of its operations
needs; here one softmax serves value and gradient, and the gradient then takes its place. Measured
for float32, forward and backward on one thread of a machine in use, and what is kept in between:
1024 pairs of 384 numbers at five sizes 83 and 43 ms; 1024 of 1024 at six 141 and 98 ms, 89 and
34 MB; 2048 of 768 at five 285 and 97 MB.

What training keeps of a batch is one matrix for each size. Where these would be large, rows go in
chunks twice: once for the values, and again for the gradients, which are a third more products and
hold no more for a larger batch than for a smaller one.

Source: Kusupati et al. 2022, arXiv:2205.13147 (nested prefixes); van den Oord et al. 2018,
arXiv:1807.03748 (InfoNCE).
Shapes: B queries, N documents, R rows of a chunk, D full width, M columns of a block, K sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

EPS = 1e-20
"""Keeps the norm of a prefix of zeros finite; far below any square that float32 training meets."""
BLOCKED = -1e4
"""What blocked places get as a logit; finite, so that a target of zero times it is zero."""
CHUNK_BYTES = 2**28
"""Most that the matrices of a chunk take; a batch that fits goes in one piece, and once."""


@dataclass(frozen=True, slots=True)
class TextNumbers:
    """Who must not serve whom as a negative, told from numbers of texts, equal for equal texts.

    Rows and columns that have the anchor or the positive in common are blocked, a row's own label
    never. The matrix of a large batch would be large, so it is made as its rows are wanted.
    """

    anchors_B: torch.Tensor
    positives_B: torch.Tensor
    owners_N: torch.Tensor
    """The anchor of each document; -1: it is nobody's positive."""
    texts_N: torch.Tensor

    def blocked(self, rows: slice, labels_R: torch.Tensor) -> torch.Tensor:
        """Return blocked_RN of some rows, whose own documents are in the columns `labels_R`."""
        blocked_RN = self.anchors_B[rows, None] == self.owners_N
        blocked_RN |= self.positives_B[rows, None] == self.texts_N
        return blocked_RN.scatter_(1, labels_R[:, None], False)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the softmax of each row should be.

    Exactly one of the first two is given.
    """

    labels_B: torch.Tensor | None
    """The column of each row's own document."""
    targets_BN: torch.Tensor | None
    """Each row sums to 1; zero where blocked."""
    blocked: torch.Tensor | TextNumbers | None

    def blocked_rows(self, rows: slice) -> torch.Tensor | None:
        if isinstance(self.blocked, TextNumbers):
            if self.labels_B is None:
                raise ValueError("numbers of texts go with labels; give blocked_BB with targets")
            return self.blocked.blocked(rows, self.labels_B[rows])
        return None if self.blocked is None else self.blocked[rows]


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both sides with the squared norms of their prefixes, kept as large as autograd wants."""

    queries_BD: torch.Tensor
    documents_ND: torch.Tensor
    scale_K: torch.Tensor
    dims: tuple[int, ...]

    def blocks(self) -> Iterator[slice]:
        return (slice(begin, end) for begin, end in pairwise((0, *self.dims)))

    def squares(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return query_squares_KB and document_squares_KN of the prefixes."""
        queries_KB, documents_KN = (
            prefix_sums(side.square(), self.dims) + EPS
            for side in (self.queries_BD, self.documents_ND)
        )
        return queries_KB, documents_KN


@dataclass(slots=True)
class _Slopes:
    """The gradients of a chunk's summed losses, before those of all sizes are joined.

    With L the loss of a size, S its dot products, u and v the squared norms: dL/dS, and half of
    what dL/du and dL/dv come to, negative.
    """

    dots_KRN: list[torch.Tensor]
    queries_KR: torch.Tensor
    documents_KN: torch.Tensor
    scale_K: torch.Tensor


class NestedSoftmax(torch.autograd.Function):
    """The mean cross-entropy at each size; see `loss.nested_loss`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives it no type)
        queries_BD: torch.Tensor,
        documents_ND: torch.Tensor,
        scale_K: torch.Tensor,
        dims: tuple[int, ...],
        asked: Asked,
    ) -> torch.Tensor:
        sides = _Sides(queries_BD, documents_ND, scale_K, dims)
        ctx.dims, ctx.asked = dims, asked
        ctx.chunks = _chunks(sides)
        squares = sides.squares()
        keeps = any(ctx.needs_input_grad) and len(ctx.chunks) == 1
        losses_K = scale_K.new_zeros(len(dims))
        slopes: _Slopes | None = None
        for rows in ctx.chunks:
            losses_KR, slopes = _run(sides, squares, asked, rows, keeps)
            losses_K += losses_KR.sum(dim=1)
        kept: list[torch.Tensor] = []
        if slopes:
            kept = [slopes.queries_KR, slopes.documents_KN, slopes.scale_K, *slopes.dots_KRN]
        ctx.save_for_backward(queries_BD, documents_ND, scale_K, *kept)
        return losses_K / len(queries_BD)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient_K: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        queries_BD, documents_ND, scale_K, *kept = ctx.saved_tensors
        sides = _Sides(queries_BD, documents_ND, scale_K, ctx.dims)
        gradient_K = gradient_K / len(queries_BD)
        results = torch.empty_like(queries_BD), torch.zeros_like(documents_ND)
        # Numbers behind the widest size have no part in any prefix.
        results[0][:, ctx.dims[-1] :] = 0
        scale_gradient_K = torch.zeros_like(scale_K)
        squares = sides.squares() if not kept else None
        for rows in ctx.chunks:
            if squares is None:
                slopes = _Slopes(kept[3:], kept[0], kept[1], kept[2])
            else:
                _, made = _run(sides, squares, ctx.asked, rows, keeps=True)
                assert made
                slopes = made
            _descend(sides, rows, slopes, gradient_K, results)
            scale_gradient_K += slopes.scale_K * gradient_K
        return *results, scale_gradient_K, None, None


def _chunks(sides: _Sides) -> list[slice]:
    """Split the rows so that a chunk's matrices, one for each size and two more, stay bounded."""
    row_bytes = len(sides.documents_ND) * (len(sides.dims) + 2) * sides.queries_BD.element_size()
    size = max(1, CHUNK_BYTES // max(1, row_bytes))
    return [slice(i, i + size) for i in range(0, len(sides.queries_BD), size)]


def _run(
    sides: _Sides,
    squares: tuple[torch.Tensor, torch.Tensor],
    asked: Asked,
    rows: slice,
    keeps: bool,
) -> tuple[torch.Tensor, _Slopes | None]:
    """Return losses_KR of some rows, and where they are kept, the slopes of their sum."""
    query_squares_KR, document_squares_KN = squares[0][:, rows], squares[1]
    queries_RD, blocked_RN = sides.queries_BD[rows], asked.blocked_rows(rows)
    dots_RN = queries_RD.new_zeros(len(queries_RD), len(sides.documents_ND))
    slopes = _Slopes(
        [],
        torch.empty_like(query_squares_KR),
        torch.empty_like(document_squares_KN),
        torch.empty_like(sides.scale_K),
    )
    losses = []
    for size, block in enumerate(sides.blocks()):
        dots_RN.addmm_(queries_RD[:, block], sides.documents_ND[:, block].T)
        query_factors_R1 = query_squares_KR[size].rsqrt()[:, None]
        document_factors_N = document_squares_KN[size].rsqrt()
        scale = sides.scale_K[size]
        logits_RN = (dots_RN * (scale * query_factors_R1)).mul_(document_factors_N)
        if blocked_RN is not None:
            logits_RN.masked_fill_(blocked_RN, BLOCKED)
        logs_RN = logits_RN.log_softmax(dim=1)
        losses.append(_cross_entropy(logs_RN, asked, rows))
        if not keeps:
            continue
        slope_RN = _softmax_minus_target(logs_RN, asked, rows)
        # Cosines times the slope; where blocked, the slope is zero.
        weighed_RN = logits_RN.mul_(slope_RN)
        by_query_R = weighed_RN.sum(dim=1)
        slopes.queries_KR[size] = by_query_R / query_squares_KR[size]
        slopes.documents_KN[size] = weighed_RN.sum(dim=0) / document_squares_KN[size]
        slopes.scale_K[size] = by_query_R.sum() / scale
        slopes.dots_KRN.append(slope_RN.mul_(scale * query_factors_R1).mul_(document_factors_N))
    return torch.stack(losses), slopes if keeps else None


def _cross_entropy(logs_RN: torch.Tensor, asked: Asked, rows: slice) -> torch.Tensor:
    if asked.labels_B is not None:
        return -logs_RN.gather(1, asked.labels_B[rows, None])[:, 0]
    assert asked.targets_BN is not None
    expected_R: torch.Tensor = torch.linalg.vecdot(asked.targets_BN[rows], logs_RN)
    return -expected_R


def _softmax_minus_target(logs_RN: torch.Tensor, asked: Asked, rows: slice) -> torch.Tensor:
    """Return the slope of the row losses by their logits, in the place of the logarithms."""
    slope_RN = logs_RN.exp_()
    if asked.labels_B is not None:
        labels_R1 = asked.labels_B[rows, None]
        return slope_RN.scatter_add_(1, labels_R1, slope_RN.new_full(labels_R1.shape, -1.0))
    assert asked.targets_BN is not None
    return slope_RN.sub_(asked.targets_BN[rows])


def _descend(
    sides: _Sides,
    rows: slice,
    slopes: _Slopes,
    gradient_K: torch.Tensor,
    results: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Write a chunk's gradient of its queries and add that of the documents.

    A block of columns is in its own size and in all wider ones, so the sum over them grows from
    the widest down.
    """
    query_gradient_BD, document_gradient_ND = results
    queries_RD = sides.queries_BD[rows]
    dots_RN = torch.zeros_like(slopes.dots_KRN[0])
    by_query_R = torch.zeros_like(slopes.queries_KR[0])
    by_document_N = torch.zeros_like(slopes.documents_KN[0])
    for size, block in reversed(list(enumerate(sides.blocks()))):
        gradient = gradient_K[size]
        dots_RN.addcmul_(slopes.dots_KRN[size], gradient)
        by_query_R.addcmul_(slopes.queries_KR[size], gradient)
        by_document_N.addcmul_(slopes.documents_KN[size], gradient)
        query_RM, document_NM = queries_RD[:, block], sides.documents_ND[:, block]
        query_gradient_BD[rows, block] = dots_RN @ document_NM
        query_gradient_BD[rows, block].addcmul_(by_query_R[:, None], query_RM, value=-1)
        document_gradient_ND[:, block].addmm_(dots_RN.T, query_RM)
        document_gradient_ND[:, block].addcmul_(by_document_N[:, None], document_NM, value=-1)


def prefix_sums(numbers_BD: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Return sums_KB of the first numbers of each row, as many as each size has."""
    edges = pairwise((0, *dims))
    blocks = [numbers_BD[:, begin:end].sum(dim=1) for begin, end in edges]
    return torch.stack(blocks).cumsum(dim=0)


def as_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """Check the sizes of a loss.

    Raises:
        ValueError: they are not ascending, each once, between 1 and the width.
    """
    if not dims or list(dims) != sorted(set(dims)) or dims[0] < 1 or dims[-1] > width:
        raise ValueError(f"dims must be ascending, each once, between 1 and {width}, got {dims}")
    return tuple(dims)
