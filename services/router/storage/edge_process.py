"""The router's side of one Edge worker: start it, ask it, notice its death.

The worker is a fresh interpreter (exec, never a fork of this one), in a session of its own so
that Ctrl-C on a terminal reaches the router alone and the router can drain. It ends when its
input is closed, by us or by our death.
"""

import asyncio
import contextlib
import logging
import sys
from collections import deque
from pathlib import Path
from typing import Any, Self

from services.router.storage.frames import LENGTH, Frame, decode, encode
from services.shared.errors import Overloaded, ServiceError, Unavailable

log = logging.getLogger(__name__)

_MODULE = "services.router.storage.edge_worker"
_STOP_TIMEOUT_S = 30.0


async def create_shard(metadata: str, shard: Path, indexing_threshold_kb: int) -> None:
    """Create an empty shard on disk, in a process that ends with it.

    Raises:
        ServiceError: the process failed; what it printed is in the log.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _MODULE, metadata, str(shard),
        "create", str(indexing_threshold_kb),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if code != 0:
        raise ServiceError("the collection's storage could not be created; see the router's log")


class EdgeWorker:
    """A running worker. Build it with `start`.

    Args:
        process: the worker, its pipes ours.
        max_waiting: requests that may wait; one more is refused.
    """

    def __init__(self, process: asyncio.subprocess.Process, max_waiting: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._requests = process.stdin
        self._answers = process.stdout
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[Frame]] = deque()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        metadata: str,
        shard: Path,
        max_waiting: int,
        start_timeout_s: float,
        is_builder: bool = False,
    ) -> Self:
        """Start a worker and wait until its shard is open; a builder has a low priority.

        Raises:
            Unavailable: it ended or was too slow; what it printed is in the log.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", _MODULE, metadata, str(shard), *(["build"] if is_builder else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        worker = cls(process, max_waiting)
        try:
            async with asyncio.timeout(start_timeout_s):
                await worker._receive()
        except BaseException as error:
            await worker.kill()
            if isinstance(error, asyncio.IncompleteReadError | TimeoutError):
                raise Unavailable(
                    "the collection's storage could not be opened; see the router's log"
                ) from error
            raise
        worker._reader = asyncio.create_task(worker._read())
        return worker

    @property
    def is_alive(self) -> bool:
        """False once the worker has died or was stopped."""
        return self._reader is not None and not self._reader.done()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def call(self, op: str, **arguments: Any) -> Any:  # noqa: ANN401 (as the operation has it)
        """Ask the worker and wait for its answer; answers come in the order of the calls.

        Raises:
            Overloaded: too many requests wait already; nothing was done.
            Unavailable: the worker died; the request may or may not have been done.
            ServiceError: the engine failed; what it said is in the log.
        """
        if not self.is_alive:
            raise _died()
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("too many requests wait for this collection; try again shortly")
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        # Whole frames only: a caller that leaves while waiting must not tear one apart.
        self._requests.write(encode({"op": op, **arguments}))
        try:
            with contextlib.suppress(ConnectionError):  # then the reader fails the future
                await self._requests.drain()
            answer = await future
        finally:
            future.cancel()
        if "error" in answer:
            log.error("the engine failed at %s: %s", op, ": ".join(answer["error"]))
            raise ServiceError(f"the storage engine failed at {op}; see the router's log")
        return answer["result"]

    async def stop(self) -> None:
        """Let the worker answer what it was asked, close its shard and end."""
        self._requests.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            log.warning("worker %s does not end; killing it", self.pid)
        finally:
            await self.kill()

    async def _read(self) -> None:
        """Hand each answer to the call that waits for it, until the worker ends."""
        try:
            while True:
                answer = await self._receive()
                future = self._waiting.popleft()
                if not future.done():  # its caller may have left
                    future.set_result(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            log.debug("worker %s has ended", self.pid)
        finally:  # whatever ended this loop, nobody may wait for an answer that will not come
            for future in self._waiting:
                if not future.done():
                    future.set_exception(_died())
            self._waiting.clear()

    async def _receive(self) -> Frame:
        length = await self._answers.readexactly(LENGTH.size)
        return decode(await self._answers.readexactly(LENGTH.unpack(length)[0]))

    async def kill(self) -> None:
        """End the worker at once; calls that wait for it fail."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._reader is not None:
            await self._reader
        self._requests.close()
        with contextlib.suppress(ConnectionError):
            await self._requests.wait_closed()


def _died() -> Unavailable:
    return Unavailable("the collection's storage worker ended; it is started again, try again")
