"""The name of a service among those that share a folder: the same after a restart, no other's.

A name is a locked file below the folder. The kernel frees the lock of a process that was killed,
so the next service on that machine takes its name, and with it the jobs that it left, at once.
"""

import itertools
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.trainer.jobs.lock import hold_lock


@contextmanager
def hold_name(folder: Path) -> Iterator[str]:
    """Have a name that no other service with this folder has, until the block ends.

    Args:
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A shared disk need not tell machines of each other's locks.
    machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64] or "machine"
    for number in itertools.count():
        with ExitStack() as held:
            try:
                held.enter_context(hold_lock(folder / f"{machine}-{number}", 0.0))
            except TimeoutError:
                continue
            yield f"{machine}-{number}"
            return
