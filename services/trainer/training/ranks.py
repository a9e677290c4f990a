"""One job in several processes that torchrun has started: how they keep in step.

The first of them does what is done once: it holds the job's lock, encodes, and writes events,
checkpoints and the model. The others train beside it, from the same checkpoint, and stop at the
same step. Without torchrun there is one process, and nothing here waits for anybody.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")

# The others wait while the first one encodes a corpus.
_PATIENCE = timedelta(days=2)
_is_alone = False


def begin() -> None:
    """Join the other processes, if torchrun has started this one."""
    if not distributed.is_torchelastic_launched():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(distributed.get_node_local_rank())
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)


def end() -> None:
    """Leave the others."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let the first process train something by itself; the others wait for it elsewhere."""
    global _is_alone  # one job, one process
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


def are_several() -> bool:
    """Say whether other processes train beside this one."""
    return distributed.is_initialized() and not _is_alone


def is_first() -> bool:
    """Say whether this is the process that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def any_of(is_set: bool) -> bool:
    """Say whether it is set in one of the processes; the same answer for all."""
    if not are_several():
        return is_set
    flag = torch.tensor([float(is_set)])
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())


def together(read: Callable[[], T]) -> T:
    """Read what the first process writes, while it does not write."""
    meet()
    found = read()
    meet()
    return found


def meet() -> None:
    """Wait until all processes are here."""
    if not are_several():
        return
    # By the CPU: a barrier of NCCL keeps a GPU busy for as long as it waits.
    distributed.all_reduce(torch.zeros(1))
