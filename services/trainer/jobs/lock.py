"""Locks between processes: a file that one process holds; the kernel frees that of a dead one."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.05


@contextmanager
def hold_lock(path: Path, timeout_s: float) -> Iterator[None]:
    """Be the only one that holds the lock.

    Raises:
        TimeoutError: another process still holds it after `timeout_s`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {path.name}") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)
