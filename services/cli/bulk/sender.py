"""One stream of upserts to the router: batches out, acknowledgements back, in order.

As many batches are on their way as the window holds; the router reads no faster than encoder and
storage take them. When the router or what is behind it goes away, or has too much to do, what was
not acknowledged is sent again for a bounded time: documents are known by their ids, so one that
was written and not acknowledged is written twice and there once.
"""

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from services.cli.bulk.batches import Batch
from services.cli.peer import connect
from services.shared.errors import (
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
    peer_errors,
)
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.server import channel_options
from services.shared.tls import TlsFiles

MAX_MESSAGE_BYTES = 64 * 2**20
_RETRIED = (Unavailable, Overloaded, TookTooLong)
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0
# gRPC itself would wait up to two minutes before it looks for a router that was started again.
_RECONNECT_MS = 1000
_BROKEN_WRITE = "Internal error from Core"
_END: object = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it


@dataclass(frozen=True, slots=True)
class Router:
    """Where the router is."""

    address: str
    """host:port of its gRPC."""
    api_key: str | None = None
    tls: TlsFiles | None = None
    """Set, as the command may go on in processes of other machines; None: no TLS."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    @property
    def key_digest(self) -> str:
        """Tells keys apart, and says nothing else of them; "": there is none."""
        return hashlib.sha256(self.api_key.encode()).hexdigest()[:12] if self.api_key else ""

    def connect(self) -> grpc.aio.Channel:
        """Open a channel; to be closed by the caller."""
        options = channel_options(MAX_MESSAGE_BYTES)
        reconnect = ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS)
        return connect(self.address, [*options, reconnect], self.tls)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A batch that is durable."""

    batch: Batch
    truncated: int
    """Documents that were longer than the model reads."""


OnAcknowledged = Callable[[Acknowledged], Awaitable[None]]


@contextlib.contextmanager
def _broken_writes() -> Iterator[None]:
    """Read a write that met the end of its stream as that end: grpc.aio calls it INTERNAL.

    It says so instead of the status that the router gave. Seen when the encoder was killed: the
    router ends the stream, and the next batch is on its way already.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _BROKEN_WRITE:
            raise Unavailable("the router ended the stream") from error
        raise


class Sender:
    """Sends batches.

    Args:
        router: where to.
        window: batches on their way at once.
        max_wait_s: how long to go on without an acknowledgement while the router is out of reach
            or has too much to do.
        on_acknowledged: called once for each batch, in order. For the last one only when the
            router has indexed too: a run that is killed before sends it again, and so indexes.
        on_wait: called with what is waited for, and how long until the next try, in seconds.
    """

    def __init__(
        self,
        router: Router,
        window: int,
        max_wait_s: float,
        on_acknowledged: OnAcknowledged,
        on_wait: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self._router = router
        self._window = window
        self._max_wait_s = max_wait_s
        self._on_acknowledged = on_acknowledged
        self._on_wait = on_wait
        self._unsent: asyncio.Queue[Batch | None] = asyncio.Queue(1)
        self._waiting: deque[Batch] = deque()
        self._room = asyncio.Event()
        self._last_answer: pb.UpsertResponse | None = None
        self._give_up_s = 0.0
        self._wait_s = _FIRST_WAIT_S
        self.settle_s = 0.0
        """From the last acknowledgement to the end of the stream: the router indexes."""

    async def send(self, batches: Iterator[Batch]) -> None:
        """Send all batches; they are read in a thread, one ahead.

        Raises:
            ServiceError: the router refused a batch, or was away for too long.
            OSError: a file could not be read.
        """
        reading = asyncio.create_task(self._read(batches))
        self._progressed()
        try:
            while True:
                try:
                    await self._stream()
                    return await reading
                except _RETRIED as error:
                    await self._back_off(error)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, batches: Iterator[Batch]) -> None:
        try:
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                await self._unsent.put(batch)
        except Exception:
            await self._unsent.put(None)  # what was read is sent before the error is told
            raise
        await self._unsent.put(None)

    async def _stream(self) -> None:
        """Send on one stream until its end, or its failure."""
        async with self._router.connect() as channel:
            call: Any = pb_grpc.RouterServiceStub(channel).Upsert(metadata=self._router.metadata)  # type: ignore[call-arg]  # grpc.aio takes the requests later
            writing = asyncio.create_task(self._write(call))
            try:
                with peer_errors("router"), _broken_writes():
                    while (answer := await call.read()) is not _END:
                        await self._take(answer)
            except ServiceError as error:
                raise self._named(error) from error
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                call.cancel()
            await self._settled()

    async def _write(self, call: Any) -> None:  # noqa: ANN401 (grpc.aio's call)
        # Ends with an error where the stream does; the reading side learns of it and tells why.
        for batch in list(self._waiting):
            await call.write(batch.request)
        while True:
            while len(self._waiting) >= self._window:
                self._room.clear()
                await self._room.wait()
            following = await self._unsent.get()
            if following is None:
                self._unsent.put_nowait(None)  # for the stream that follows, should this one fail
                break
            self._waiting.append(following)
            await call.write(following.request)
        await call.done_writing()

    async def _take(self, answer: pb.UpsertResponse) -> None:
        self._progressed()
        if self._waiting[0].is_last:
            self._last_answer = answer
            return
        batch = self._waiting.popleft()
        self._room.set()
        await self._on_acknowledged(Acknowledged(batch, len(answer.truncated_ids)))

    async def _settled(self) -> None:
        if self._waiting and self._last_answer is not None:
            self.settle_s = time.monotonic() - self._acknowledged_s
            truncated = len(self._last_answer.truncated_ids)
            await self._on_acknowledged(Acknowledged(self._waiting.popleft(), truncated))

    def _progressed(self) -> None:
        self._acknowledged_s = time.monotonic()
        self._give_up_s = self._acknowledged_s + self._max_wait_s
        self._wait_s = _FIRST_WAIT_S

    async def _back_off(self, error: ServiceError) -> None:
        wait_s = max(self._wait_s, error.retry_after_s or 0)
        if time.monotonic() + wait_s > self._give_up_s:
            raise error
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        self._on_wait(error.message, wait_s)
        await asyncio.sleep(wait_s)

    def _named(self, error: ServiceError) -> ServiceError:
        """Say which documents were refused: answers come in order, so it is the oldest batch."""
        if isinstance(error, _RETRIED) or not self._waiting:
            return error
        batch = self._waiting[0]
        documents = f"{len(batch.request.points)} documents from {batch.first} on were refused"
        return type(error)(f"{documents}: {error.message}", error.param)
