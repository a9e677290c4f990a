"""Files that a process reads again when they change, without a restart: keys, certificates.

Polled, as mounted secrets change by a rename of a folder above them, which no watch of a file sees.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks."""


class Watched:
    """Files, and what reads them.

    Args:
        name: of what is in them, for the log.
        paths: of all files that are read.
        read: reads them, to wherever they are used; called at once and after each change.
        error: what `read` raises when they cannot be used. At once it is passed on; later it is
            logged, and `read` must have changed nothing.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], read: Callable[[], None], error: type[Exception]
    ) -> None:
        self._name = name
        self._paths = paths
        self._read = read
        self._error = error
        self._seen = self._signatures()
        read()

    async def watch(self) -> None:
        """Look every second whether they have changed, in a thread, for ever."""
        while self._paths:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # our bug; what changes later must be seen all the same
                log.exception("the %s could not be read again", self._name)

    def refresh(self) -> None:
        """Read the files again if they have changed; what cannot be used changes nothing."""
        # Seen before they are read: what changes meanwhile is read at the next look.
        seen = self._signatures()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._read()
        except self._error as error:
            log.error("the %s stay as they were: %s", self._name, error)
        else:
            log.info("the %s were read again", self._name)

    def _signatures(self) -> list[object]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> object:
    """Return what differs whenever a file's content does; None: it cannot be seen."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return (seen.st_mtime_ns, seen.st_size, seen.st_ino)
