"""How a job's process is asked to stop: by SIGTERM, or by the end of the service that started it.

SIGTERM sets a flag that the work looks at between steps, so that a checkpoint can be written
first. The end of the parent stops the process at once: every file is written whole or not at
all, so this is safe anywhere.
"""

import os
import signal
import threading
import time

NOT_FINISHED = 75
"""Exit code of a process that stopped before its job was done (EX_TEMPFAIL)."""
_PARENT_POLL_S = 1.0


class Interrupted(Exception):
    """The work was asked to stop."""


class Interrupt:
    """Whether the work shall stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Stop here if asked to.

        Raises:
            Interrupted: asked to.
        """
        if self._event.is_set():
            raise Interrupted

    def catch_sigterm(self) -> None:
        """Be set by SIGTERM; only in the main thread."""
        signal.signal(signal.SIGTERM, lambda *_: self.set())


def exit_with_parent(parent_pid: int) -> None:
    """End this process, exit code 75, within about a second of its parent's end."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_PARENT_POLL_S)
        os._exit(NOT_FINISHED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
