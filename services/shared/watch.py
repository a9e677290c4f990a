"""Files that may change while a process runs: told from what the file system says of them.

Polled, as mounted secrets change by a rename of a folder above them, which no watch of a file sees.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks."""


def signature(path: Path | None) -> object:
    """Return what differs whenever a file's content does; None: it cannot be seen."""
    try:
        seen = path.stat() if path is not None else None
    except OSError:
        return None
    return seen and (seen.st_mtime_ns, seen.st_size, seen.st_ino)


async def watch(look: Callable[[], None]) -> None:
    """Call `look` every second, in a thread, for ever."""
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            await asyncio.to_thread(look)
        except Exception:  # our bug; what changes later must be seen all the same
            log.exception("files could not be looked at")
