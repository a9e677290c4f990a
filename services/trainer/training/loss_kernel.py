"""The nested loss of labels without any matrix of queries and documents, for accelerators.

Kernels in Triton. Each program holds one tile of queries and documents at a time: it adds the
products of the columns up to each size, and takes the softmax of that size as it goes (online
logsumexp), so that one sweep over the documents serves all sizes. Gradients sweep again, once for
the rows of each side. A tile's slopes wait in a scratch of their program's own, so that blocks of
columns are taken from the widest size down and nothing is made by subtraction. No two programs
write to the same place, so the result is the same each time. In all five times the products of one
size's forward pass, where `nested.py` takes three.

It has run in Triton's interpreter alone, against `nested.py`, and never on an accelerator: neither
its speed nor the size of its tiles is measured. So it is taken only where it is asked for.

Source: Dao et al. 2022, arXiv:2205.14135 (tiles and online softmax); `nested.py` (the recurrence).
Shapes: B queries, N documents, D full width, K sizes; in kernels L rows of the left side, R of the
right one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from services.trainer.training.nested import BLOCKED, EPS, TextNumbers, as_dims, prefix_sums

_TILE = 64  # rows of each side
_STEP = 32  # columns of the vectors that are multiplied at once


@triton.jit
def _add_dots(dots, left, right, rows, columns, num_rows, num_columns, width, begin, end, step: tl.constexpr):  # fmt: skip
    """Add the products of the vectors' numbers from `begin` to `end` to a tile of dot products."""
    for start in range(begin, end, step):
        places = start + tl.arange(0, step)
        is_in = places[None, :] < end
        left_tile = tl.load(
            left + rows[:, None] * width + places[None, :],
            mask=is_in & (rows[:, None] < num_rows), other=0.0,
        )  # fmt: skip
        right_tile = tl.load(
            right + columns[:, None] * width + places[None, :],
            mask=is_in & (columns[:, None] < num_columns), other=0.0,
        )  # fmt: skip
        dots += tl.dot(left_tile, tl.trans(right_tile), input_precision="ieee")
    return dots


@triton.jit
def _is_blocked(rows, columns, numbers_left, numbers_right, num_left, num_right):
    """Tell which places have the anchor or the positive in common; both numbers lie in a row."""
    is_blocked = rows[:, None] < 0
    for kind in tl.static_range(2):
        left = tl.load(numbers_left + kind * num_left + rows, mask=rows < num_left, other=-2)
        right = tl.load(numbers_right + kind * num_right + columns, mask=columns < num_right, other=-3)  # fmt: skip
        is_blocked = is_blocked | (left[:, None] == right[None, :])
    return is_blocked


@triton.jit
def _values(
    queries, documents, query_factors, document_factors, labels, query_numbers, document_numbers,
    edges, normalizers, losses, num_queries, num_documents, width, blocked_logit,
    sizes: tl.constexpr, padded_sizes: tl.constexpr, tile: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """Write the logsumexp and the loss of a tile's rows, at every size."""
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    is_row = rows < num_queries
    label = tl.load(labels + rows, mask=is_row, other=-1)
    place = tl.arange(0, padded_sizes)[None, :]
    highest = tl.full((tile, padded_sizes), float("-inf"), tl.float32)
    total = tl.zeros((tile, padded_sizes), tl.float32)
    own = tl.zeros((tile, padded_sizes), tl.float32)
    for start in range(0, num_documents, tile):
        columns = start + tl.arange(0, tile)
        is_own = label[:, None] == columns[None, :]
        is_blocked = _is_blocked(
            rows, columns, query_numbers, document_numbers, num_queries, num_documents
        ) & (is_own == 0)
        dots = tl.zeros((tile, tile), tl.float32)
        for size in tl.static_range(sizes):
            begin, end = tl.load(edges + size), tl.load(edges + size + 1)
            dots = _add_dots(dots, queries, documents, rows, columns, num_queries, num_documents, width, begin, end, step)  # fmt: skip
            left = tl.load(query_factors + size * num_queries + rows, mask=is_row, other=0.0)
            right = tl.load(document_factors + size * num_documents + columns, mask=columns < num_documents, other=0.0)  # fmt: skip
            logits = tl.where(is_blocked, blocked_logit, dots * left[:, None] * right[None, :])
            logits = tl.where(columns[None, :] < num_documents, logits, float("-inf"))
            is_size = place == size
            before = tl.max(tl.where(is_size, highest, float("-inf")), 1)
            now = tl.maximum(before, tl.max(logits, 1))
            added = tl.sum(tl.exp(logits - now[:, None]), 1)
            total = tl.where(is_size, total * tl.exp(before - now)[:, None] + added[:, None], total)
            highest = tl.where(is_size, now[:, None], highest)
            mine = tl.sum(tl.where(is_own, logits, 0.0), 1)
            own = tl.where(is_size, own + mine[:, None], own)
    normalizer = highest + tl.log(total)
    target = place * num_queries + rows[:, None]
    mask = (place < sizes) & is_row[:, None]
    tl.store(normalizers + target, normalizer, mask=mask)
    tl.store(losses + target, normalizer - own, mask=mask)


@triton.jit
def _gradients(
    lefts, rights, left_factors, right_factors, labels, left_numbers, right_numbers, edges,
    normalizers, gradient, scratch, out, weighed, num_left, num_right, width, blocked_logit,
    is_swapped: tl.constexpr, sizes: tl.constexpr, padded_sizes: tl.constexpr, tile: tl.constexpr,
    step: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile's rows of the left side, which are documents where swapped."""
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    is_row = rows < num_left
    place = tl.arange(0, padded_sizes)[None, :]
    by_row = tl.zeros((tile, padded_sizes), tl.float32)
    inner = tl.arange(0, tile)[:, None] * tile + tl.arange(0, tile)[None, :]
    mine = scratch + tl.program_id(0) * sizes * tile * tile + inner
    for start in range(0, num_right, tile):
        columns = start + tl.arange(0, tile)
        is_column = columns < num_right
        if is_swapped:
            is_own = rows[:, None] == tl.load(labels + columns, mask=is_column, other=-1)[None, :]
        else:
            is_own = tl.load(labels + rows, mask=is_row, other=-1)[:, None] == columns[None, :]
        is_blocked = _is_blocked(
            rows, columns, left_numbers, right_numbers, num_left, num_right
        ) & (is_own == 0)
        is_in = is_row[:, None] & is_column[None, :]
        dots = tl.zeros((tile, tile), tl.float32)
        for size in tl.static_range(sizes):
            begin, end = tl.load(edges + size), tl.load(edges + size + 1)
            dots = _add_dots(dots, lefts, rights, rows, columns, num_left, num_right, width, begin, end, step)  # fmt: skip
            left = tl.load(left_factors + size * num_left + rows, mask=is_row, other=0.0)
            right = tl.load(right_factors + size * num_right + columns, mask=is_column, other=0.0)
            factors = left[:, None] * right[None, :]
            logits = tl.where(is_blocked, blocked_logit, dots * factors)
            if is_swapped:
                normalizer = tl.load(normalizers + size * num_right + columns, mask=is_column, other=0.0)[None, :]  # fmt: skip
            else:
                normalizer = tl.load(normalizers + size * num_left + rows, mask=is_row, other=0.0)[:, None]  # fmt: skip
            softmax = tl.where(is_in, tl.exp(logits - normalizer), 0.0)
            slope = (softmax - tl.where(is_own & is_in, 1.0, 0.0)) * tl.load(gradient + size)
            slope = tl.where(is_blocked, 0.0, slope)
            sums = tl.sum(slope * logits, 1)
            by_row = tl.where(place == size, by_row + sums[:, None], by_row)
            tl.store(mine + size * tile * tile, slope * factors)
        tl.debug_barrier()
        joined = tl.zeros((tile, tile), tl.float32)
        for back in tl.static_range(sizes):
            size = sizes - 1 - back
            joined += tl.load(mine + size * tile * tile)
            begin, end = tl.load(edges + size), tl.load(edges + size + 1)
            for first in range(begin, end, step):
                places = first + tl.arange(0, step)
                right_tile = tl.load(
                    rights + columns[:, None] * width + places[None, :],
                    mask=is_column[:, None] & (places[None, :] < end), other=0.0,
                )  # fmt: skip
                target = out + rows[:, None] * width + places[None, :]
                mask = is_row[:, None] & (places[None, :] < end)
                made = tl.dot(joined, right_tile, input_precision="ieee")
                tl.store(target, tl.load(target, mask=mask, other=0.0) + made, mask=mask)
        tl.debug_barrier()
    tl.store(weighed + place * num_left + rows[:, None], by_row, mask=(place < sizes) & is_row[:, None])  # fmt: skip


class _KernelSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives it no type)
        queries_BD: torch.Tensor,
        documents_ND: torch.Tensor,
        scale_K: torch.Tensor,
        dims: tuple[int, ...],
        labels_B: torch.Tensor,
        numbers: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        queries_BD, documents_ND = queries_BD.contiguous(), documents_ND.contiguous()
        squares = [prefix_sums(s.square(), dims) + EPS for s in (queries_BD, documents_ND)]
        factors = scale_K[:, None] * squares[0].rsqrt(), squares[1].rsqrt()
        edges = torch.tensor([0, *dims], dtype=torch.int32, device=queries_BD.device)
        normalizers_KB, losses_KB = torch.empty_like(factors[0]), torch.empty_like(factors[0])
        count = len(queries_BD)
        _values[(triton.cdiv(count, _TILE),)](
            queries_BD, documents_ND, *factors, labels_B, *numbers, edges, normalizers_KB,
            losses_KB, count, len(documents_ND), queries_BD.shape[1], BLOCKED, sizes=len(dims),
            padded_sizes=triton.next_power_of_2(len(dims)), tile=_TILE, step=_STEP,
        )  # fmt: skip
        ctx.dims = dims
        ctx.save_for_backward(
            queries_BD, documents_ND, scale_K, *squares, *factors, labels_B, *numbers, edges,
            normalizers_KB,
        )  # fmt: skip
        losses_K: torch.Tensor = losses_KB.mean(dim=1)
        return losses_K

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient_K: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None, None]:
        queries, documents, scale_K, *squares, left, right, labels, asks, answers, edges, norm = (
            ctx.saved_tensors
        )
        gradient_K = (gradient_K / len(queries)).contiguous()
        sides = [(queries, left, asks), (documents, right, answers)]
        made, weighed = [], []
        for is_swapped in (False, True):
            (lefts, left_factors, left_numbers), (rights, right_factors, right_numbers) = (
                sides[::-1] if is_swapped else sides
            )
            out, weighed_KL = torch.zeros_like(lefts), torch.empty_like(left_factors)
            tiles = triton.cdiv(len(lefts), _TILE)
            scratch = lefts.new_empty(tiles * len(ctx.dims) * _TILE * _TILE)
            _gradients[(tiles,)](
                lefts, rights, left_factors, right_factors, labels, left_numbers, right_numbers,
                edges, norm, gradient_K, scratch, out, weighed_KL, len(lefts), len(rights),
                lefts.shape[1], BLOCKED, is_swapped=is_swapped, sizes=len(ctx.dims),
                padded_sizes=triton.next_power_of_2(len(ctx.dims)), tile=_TILE, step=_STEP,
            )  # fmt: skip
            # Each size pulls the norms of its own and all narrower blocks.
            pulls_KL = (weighed_KL / squares[int(is_swapped)]).flip(0).cumsum(dim=0).flip(0)
            for begin, end, pull_L in zip((0, *ctx.dims), ctx.dims, pulls_KL, strict=False):
                out[:, begin:end] -= pull_L[:, None] * lefts[:, begin:end]
            made.append(out)
            weighed.append(weighed_KL)
        return made[0], made[1], weighed[0].sum(dim=1) / scale_K, None, None, None


def kernel_loss(
    queries_BD: torch.Tensor,
    documents_ND: torch.Tensor,
    dims: Sequence[int],
    numbers: TextNumbers | None,
    scale: float | torch.Tensor,
    labels_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return losses_K as `loss.nested_loss` does without targets, and with gradients.

    Args:
        queries_BD: taken as float32, on an accelerator; or anywhere in Triton's interpreter.
        documents_ND: the same.
        dims: ascending.
        numbers: tells who is no negative of whom; None: every document is a negative.
        scale: as `loss.nested_loss`.
        labels_B: the row of each query's own document; None: its own row.
    """
    dims = as_dims(dims, queries_BD.shape[1])
    device, counts = queries_BD.device, (len(queries_BD), len(documents_ND))
    if labels_B is None:
        labels_B = torch.arange(counts[0], device=device)
    if numbers:
        asks = torch.stack([numbers.anchors_B, numbers.positives_B])
        answers = torch.stack([numbers.owners_N, numbers.texts_N])
    else:  # numbers that are never equal
        asks = torch.full((2, counts[0]), -2, device=device)
        answers = torch.full((2, counts[1]), -3, device=device)
    scale_K = torch.as_tensor(scale, dtype=torch.float32, device=device).expand(len(dims))
    losses_K: torch.Tensor = _KernelSoftmax.apply(
        queries_BD.float(), documents_ND.float(), scale_K, dims, labels_B, (asks, answers)
    )
    return losses_K
