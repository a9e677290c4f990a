"""The router's side of one Edge worker: start it, ask it, notice its death.

The worker is a fresh interpreter (exec, never a fork of this one), in a session of its own so
that Ctrl-C on a terminal reaches the router alone and the router can drain. It ends when its
input is closed, by us or by our death.
"""

import asyncio
import logging
import sys
from collections import deque
from pathlib import Path
from typing import Any, Self

from services.router.storage.frames import Frame, encode, take
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


class EdgeWorker(asyncio.SubprocessProtocol):
    """A running worker. Build it with `start`.

    It is the protocol of its own pipes: a stream, and a task that reads it, would bring an answer
    to its caller two turns of the event loop later, 40 us of a search (measured).

    Args:
        max_waiting: requests that may wait; one more is refused.

    Attributes:
        is_alive: False once the worker has died or was stopped.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[Frame]] = deque()
        self._received = bytearray()
        self.is_alive = True
        self._has_ended = asyncio.Event()

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
        worker = cls(max_waiting)
        opened = worker._expect()
        await asyncio.get_running_loop().subprocess_exec(
            lambda: worker,
            sys.executable, "-m", _MODULE, metadata, str(shard), *(["build"] if is_builder else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None,
            start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(start_timeout_s):
                await opened
        except BaseException as error:
            await worker.kill()
            if isinstance(error, Unavailable | TimeoutError):
                raise Unavailable(
                    "the collection's storage could not be opened; see the router's log"
                ) from error
            raise
        return worker

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.get_pid()

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
        answering = self._expect()
        # Whole, and with no wait before the answer's: a caller may leave at any.
        self._requests.write(encode({"op": op, **arguments}))
        answer = await answering
        if "error" in answer:
            log.error("the engine failed at %s: %s", op, ": ".join(answer["error"]))
            raise ServiceError(f"the storage engine failed at {op}; see the router's log")
        return answer["result"]

    async def stop(self) -> None:
        """Let the worker answer what it was asked, close its shard and end."""
        self._requests.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._has_ended.wait()
        except TimeoutError:
            log.warning("worker %s does not end; killing it", self.pid)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End the worker at once; calls that wait for it fail."""
        self._process.close()
        self._give_up()
        await self._has_ended.wait()

    def _expect(self) -> asyncio.Future[Frame]:
        """Return what the next answer that nobody waits for yet will be handed to."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the process and the pipe to it."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        requests = transport.get_pipe_transport(0)
        assert isinstance(requests, asyncio.WriteTransport)
        self._process, self._requests = transport, requests

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand each answer to the call that waits for it."""
        if not self.is_alive:
            return
        self._received += data
        try:
            while (answer := take(self._received)) is not None:
                future = self._waiting.popleft()
                if not future.done():  # its caller may have left
                    future.set_result(answer)
        except Exception:  # not a worker's words; nobody may wait for what will not come
            self._process.close()
            raise

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Notice that there will be no more answers."""
        if fd == 1:  # of the other pipe: what it was asked before, it may still answer
            log.debug("worker %s has ended", self.pid)
            self._give_up()

    def process_exited(self) -> None:
        """Note the end."""
        self._has_ended.set()

    def _give_up(self) -> None:
        self.is_alive = False
        for future in self._waiting:
            if not future.done():
                future.set_exception(_died())
        self._waiting.clear()


def _died() -> Unavailable:
    return Unavailable("the collection's storage worker ended; it is started again, try again")
