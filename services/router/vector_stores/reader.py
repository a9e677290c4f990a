"""The router's side of the process that reads documents: start it, ask it, and bound it.

Its bounds are time and memory: a file that goes over one of them fails alone, its process is killed
and the next file gets a new one.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from services.router.storage.frames import LENGTH, Frame, decode, encode
from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.rows import ErrorCode

_MODULE = "services.router.vector_stores.reader_worker"


class CannotRead(Exception):
    """A file cannot be read; `code` and `message` are for the user."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Reader:
    """Reads one document at a time, in a process that is started when it is needed.

    Args:
        max_s: for each document, without the time that its chunks wait to be taken.
        max_memory_bytes: of the process.
        max_pages: of a PDF.
        max_tokens: of a document.
    """

    def __init__(
        self, max_s: float, max_memory_bytes: int, max_pages: int, max_tokens: int
    ) -> None:
        self._max_s = max_s
        self._max_memory_bytes = max_memory_bytes
        self._max_pages = max_pages
        self._max_tokens = max_tokens
        self._process: asyncio.subprocess.Process | None = None

    async def read(
        self, path: Path, filename: str, chunking: Chunking | None
    ) -> AsyncGenerator[list[str], None]:
        """Yield the text of a document: in chunks, some at a time, or (None) in its own parts.

        Raises:
            CannotRead: see there.
        """
        process = await self._start()
        request = {
            "path": str(path),
            "filename": filename,
            "chunking": (chunking.max_tokens, chunking.overlap) if chunking else None,
            "max_pages": self._max_pages,
            "max_tokens": self._max_tokens,
            "max_s": self._max_s,
        }
        is_whole = False
        try:
            assert process.stdin
            process.stdin.write(encode(request))
            left_s = self._max_s
            while True:
                start = time.monotonic()
                answer = await asyncio.wait_for(_receive(process), left_s)
                left_s = max(0.0, left_s - (time.monotonic() - start))
                if "chunks" not in answer:
                    break
                yield answer["chunks"]
            is_whole = True
            if "error" in answer:
                raise CannotRead(*answer["error"])
        except TimeoutError as error:
            raise CannotRead(
                "invalid_file", f"reading the file takes longer than {self._max_s:g} s"
            ) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise CannotRead("invalid_file", "reading the file ended its process") from error
        finally:
            if not is_whole:  # whatever it still answers is not for the next one
                await self.close()

    async def close(self) -> None:
        """End the process; the next document gets a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert process.stdout
        # Its end is not noticed while what it has written waits to be read.
        while await process.stdout.read(2**16):
            pass
        await process.wait()
        assert process.stdin
        process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await process.stdin.wait_closed()

    async def _start(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", _MODULE, str(self._max_memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        return self._process


async def _receive(process: asyncio.subprocess.Process) -> Frame:
    assert process.stdout
    length = await process.stdout.readexactly(LENGTH.size)
    return decode(await process.stdout.readexactly(LENGTH.unpack(length)[0]))
