"""Joins the texts of many callers into batches of a bounded number of tokens.

In: requests of one or more tokenised texts. Out: their full vectors. Knows nothing of models,
dimensions or wires. The queue is bounded in tokens and refuses at once when full. Callers that
left are dropped before their texts are run. A batch that fails is run again one request at a
time, so that only the request that cannot be run fails.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.encoder.metrics import EncoderMetrics
from services.shared.errors import Overloaded, ServiceError
from services.shared.packing import Tokens
from services.shared.vectors import Array

log = logging.getLogger(__name__)

RunBatch = Callable[[Sequence[Tokens]], Awaitable[Array]]


@dataclass(eq=False, slots=True)
class _Request:
    """One caller's texts; `waiting` shrinks as batches take from its end."""

    texts: Sequence[Tokens]
    vectors_BD: Array
    result: asyncio.Future[Array]
    # Rows of `texts` not yet taken, longest first, so that batches hold similar lengths.
    waiting: list[int]
    waiting_tokens: int
    arrived: float = field(default_factory=time.perf_counter)
    running: int = 0

    def finish_rows(self, rows: list[int], vectors_BD: Array) -> None:
        self.vectors_BD[rows] = vectors_BD
        self.running -= len(rows)
        if not self.waiting and not self.running and not self.result.done():
            self.result.set_result(self.vectors_BD)

    def fail(self, error: Exception) -> None:
        self.waiting.clear()
        if not self.result.done():
            self.result.set_exception(error)


class Batcher:
    """Feeds one model.

    Args:
        run: runs one batch; at most one call at a time is in flight.
        full: width of the vectors that `run` returns.
        max_batch_tokens: bound on a batch; a single longer text still runs, alone.
        max_queued_tokens: bound on what waits; a request is always admitted to an empty queue.
    """

    def __init__(
        self,
        run: RunBatch,
        full: int,
        max_batch_tokens: int,
        max_queued_tokens: int,
        metrics: EncoderMetrics,
    ) -> None:
        self._run = run
        self._full = full
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._metrics = metrics
        self._requests: list[_Request] = []
        self._arrived = asyncio.Event()
        self._loop_task = asyncio.create_task(self._serve())

    async def encode(self, texts: Sequence[Tokens]) -> Array:
        """Return the full vectors of the texts, in their order.

        Raises:
            Overloaded: the queue is full; nothing was queued.
            ServiceError: the model failed on these texts.
        """
        tokens = sum(map(len, texts))
        queued = sum(r.waiting_tokens for r in self._requests if not r.result.done())
        if queued and queued + tokens > self._max_queued_tokens:
            self._metrics.refusals.labels("queue_full").inc()
            raise Overloaded(
                f"{queued} tokens are waiting and at most {self._max_queued_tokens} may; "
                "try again shortly"
            )
        request = _Request(
            texts,
            np.empty((len(texts), self._full), dtype=np.float32),
            asyncio.get_running_loop().create_future(),
            sorted(range(len(texts)), key=lambda row: -len(texts[row])),
            tokens,
        )
        self._requests.append(request)
        self._arrived.set()
        # A caller that goes away cancels the future: the loop then drops the request.
        return await request.result

    async def close(self) -> None:
        """Stop; requests still waiting fail."""
        self._loop_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loop_task
        for request in self._requests:
            request.fail(ServiceError("the model was unloaded"))

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._take_batch()
            if not batch:
                self._arrived.clear()
                continue
            await self._run_batch(batch)

    def _take_batch(self) -> list[tuple[_Request, list[int]]]:
        """Take texts up to the budget, the smallest request first.

        So a query of one text rides in the next batch, whatever bulk work is waiting.
        """
        self._requests = [r for r in self._requests if r.waiting and not r.result.done()]
        batch: list[tuple[_Request, list[int]]] = []
        tokens = 0
        for request in sorted(self._requests, key=lambda r: r.waiting_tokens):
            rows: list[int] = []
            while request.waiting:
                length = len(request.texts[request.waiting[-1]])
                if tokens and tokens + length > self._max_batch_tokens:
                    break
                rows.append(request.waiting.pop())
                tokens += length
                request.waiting_tokens -= length
            if rows:
                request.running += len(rows)
                batch.append((request, rows))
        if batch:
            self._metrics.batch_tokens.observe(tokens)
        return batch

    async def _run_batch(self, batch: list[tuple[_Request, list[int]]]) -> None:
        start = time.perf_counter()
        for request, _ in batch:
            self._metrics.stage_seconds.labels("queue").observe(start - request.arrived)
        texts = [request.texts[row] for request, rows in batch for row in rows]
        try:
            with self._metrics.stage("forward"):
                vectors_BD = await self._run(texts)
            if vectors_BD.shape != (len(texts), self._full):
                raise RuntimeError(f"{len(texts)} texts gave vectors of shape {vectors_BD.shape}")
        except Exception as error:
            await self._run_apart(batch, error)
            return
        done = 0
        for request, rows in batch:
            request.finish_rows(rows, vectors_BD[done : done + len(rows)])
            done += len(rows)

    async def _run_apart(self, batch: list[tuple[_Request, list[int]]], error: Exception) -> None:
        """After a failure: run each request by itself, so that one cannot fail the others."""
        if len(batch) == 1:
            log.error("a batch failed", exc_info=error)
            batch[0][0].fail(ServiceError("the model failed on this request"))
            return
        for part in batch:
            await self._run_batch([part])
