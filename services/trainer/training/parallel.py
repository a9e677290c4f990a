"""One batch between several processes, each on a device of its own.

Every process knows all pairs of a step and takes its share. Queries stay where they are encoded;
documents are gathered once, at full width, so that each query meets all of them at every size.
Gradients are averaged once before the step. Then weights stay equal everywhere, and are those that
one process would have made of the whole batch.

Without a process group, which torchrun's launch begins, nothing is shared.
Shapes: B pairs of the step, S pairs of this process, D full width, K sizes.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import distributed

from services.trainer.training import ranks


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if ranks.are_several() else 0


def size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if ranks.are_several() else 1


def share(rows_B: torch.Tensor) -> slice:
    """Return the places of this process in a step's pairs; what cannot be divided is left out.

    Raises:
        ValueError: there are fewer pairs than processes.
    """
    count = len(rows_B) // size()
    if not count:
        raise ValueError(f"a batch of {len(rows_B)} pairs is too small for {size()} processes")
    return slice(rank() * count, (rank() + 1) * count)


def gather(vectors_SD: torch.Tensor) -> torch.Tensor:
    """Return the vectors of all processes, of the first first; gradients find their way back."""
    if size() == 1:
        return vectors_SD
    gathered: torch.Tensor = _Gather.apply(vectors_SD)  # type: ignore[no-untyped-call]
    return gathered


@torch.no_grad()
def average(parameters: Collection[torch.nn.Parameter], losses_K: torch.Tensor) -> torch.Tensor:
    """Make every gradient the mean of all processes'; return the mean of the losses.

    All in one message, after a short one: a process whose share has no picture, for example, has
    no gradient for what reads them.
    """
    losses_K = losses_K.detach()
    if size() == 1:
        return losses_K
    is_used_P = losses_K.new_tensor([p.grad is not None for p in parameters])
    distributed.all_reduce(is_used_P, distributed.ReduceOp.MAX)
    for parameter, is_used in zip(parameters, is_used_P.tolist(), strict=True):
        if is_used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([losses_K, *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(message)
    message /= size()
    losses_K, *parts = torch.split(message, [len(losses_K), *(g.numel() for g in gradients)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return losses_K


class _Gather(torch.autograd.Function):
    """Each process's vectors have a part in the losses of all, so their gradients are added."""

    @staticmethod
    def forward(ctx: Any, vectors_SD: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.count = len(vectors_SD)
        parts = [torch.empty_like(vectors_SD) for _ in range(size())]
        distributed.all_gather(parts, vectors_SD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_BD: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        gradient_BD = gradient_BD.contiguous().clone()
        distributed.all_reduce(gradient_BD)
        return gradient_BD[rank() * ctx.count : (rank() + 1) * ctx.count]
