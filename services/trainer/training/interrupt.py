"""How a job's process is asked to stop: by SIGTERM, or by the end of the service that started it.

SIGTERM sets a flag that the work looks at between steps, so that a checkpoint can be written
first. The end of the parent stops the process at once: every file is written whole or not at
all, so this is safe anywhere.
"""

import os
import signal
import threading
import time
from pathlib import Path

NOT_FINISHED = 75
"""Exit code of a process that stopped before its job was done (EX_TEMPFAIL)."""
DISK_FULL = 74
"""Exit code of a process that found the disk full (EX_IOERR): it goes on when there is room."""
_PARENT_POLL_S = 1.0


class Interrupted(Exception):
    """The work was asked to stop."""


class Interrupt:
    """Whether the work shall stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether this process was asked to stop."""
        return self._event.is_set()

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


def exit_with_silence(lease: Path, silence_s: float) -> None:
    """End this process, exit code 75, when a file was not touched for `silence_s`.

    So it ends before another may begin where its service hangs, or cannot reach the database.
    """

    def watch() -> None:
        seen, since = _touched(lease), time.monotonic()
        while time.monotonic() - since < silence_s:
            time.sleep(min(_PARENT_POLL_S, silence_s / 10))
            if (now := _touched(lease)) != seen:
                seen, since = now, time.monotonic()
        os._exit(NOT_FINISHED)

    threading.Thread(target=watch, name="lease-watch", daemon=True).start()


def _touched(path: Path) -> int:
    """Return when a file was touched, in nanoseconds; 0: it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
