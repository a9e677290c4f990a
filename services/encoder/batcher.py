"""Joins the texts of many callers into batches of a bounded number of tokens, for one model.

In: requests of one or more tokenised texts, each in a lane. Out: their full vectors. Knows
nothing of models, dimensions, wires or other batchers: the forward thread (`turns.py`) takes
a batch when it is this batcher's turn, and what may wait at all is decided at the door
(`admission.py`). Callers that left are dropped before their texts are run. A batch that fails is
run again one request at a time, so that only the request that cannot be run fails.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from services.encoder.metrics import EncoderMetrics
from services.encoder.pace import Pace
from services.shared.errors import ServiceError
from services.shared.packing import Tokens
from services.shared.trace import Place, place, record
from services.shared.vectors import Array

log = logging.getLogger(__name__)

# Interactive requests go first, bulk ones have a share (see `turns.py`).
Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")

RunBatch = Callable[[Sequence[Tokens]], Array]


@dataclass(eq=False, slots=True)
class _Request:
    """One caller's texts; `waiting` shrinks as batches take from its end."""

    texts: Sequence[Tokens]
    vectors_BD: Array
    result: asyncio.Future[Array]
    on_done: Callable[[int], None]
    # Rows of `texts` not yet taken, longest first, so that batches hold similar lengths.
    waiting: list[int]
    arrived: float = field(default_factory=time.perf_counter)
    running: int = 0
    caller: Place | None = field(default_factory=place)
    """Whose call it is, where calls are traced."""

    def leave(self) -> None:
        self.waiting.clear()

    def finish(self, tokens: int) -> None:
        """On the event loop, after a pass: tell how much is done, and answer when all is."""
        self.on_done(tokens)
        if not self.waiting and not self.running and not self.result.done():
            self.result.set_result(self.vectors_BD)

    def fail(self, error: Exception) -> None:
        self.waiting.clear()
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one or several requests that run together."""

    parts: list[tuple[_Request, list[int]]]
    tokens: int

    @property
    def texts(self) -> list[Tokens]:
        return [request.texts[row] for request, rows in self.parts for row in rows]


class Batcher:
    """What waits for one model.

    Methods are called on the event loop, except where they say otherwise.

    Args:
        run: runs one batch, on the forward thread.
        full: width of the vectors that `run` returns.
        pace: how fast `run` is; learns from every pass.
        ready: guards what waits, and is told when something does; shared with the forward thread.
    """

    def __init__(
        self,
        run: RunBatch,
        full: int,
        pace: Pace,
        ready: threading.Condition,
        metrics: EncoderMetrics,
    ) -> None:
        self.pace = pace
        self._run = run
        self._full = full
        self._ready = ready
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        # By (when it should be done, order of arrival): see `encode`.
        self._queues: dict[Lane, list[tuple[float, int, _Request]]] = {lane: [] for lane in LANES}
        self._count = itertools.count()
        self._requests: set[_Request] = set()
        self._closed_by: ServiceError | None = None

    async def encode(
        self,
        texts: Sequence[Tokens],
        lane: Lane = "interactive",
        on_done: Callable[[int], None] = lambda _: None,
    ) -> Array:
        """Return the full vectors of the texts, in their order.

        Args:
            texts: what to run; anything whose length is its number of tokens.
            lane: where to wait.
            on_done: told the number of tokens that each pass has finished.

        Raises:
            ServiceError: the model failed on these texts, or was unloaded.
        """
        if self._closed_by:
            raise self._closed_by
        request = _Request(
            texts,
            np.empty((len(texts), self._full), dtype=np.float32),
            self._loop.create_future(),
            on_done,
            sorted(range(len(texts)), key=lambda row: -len(texts[row])),
        )
        # First who would be done first, alone, from when he came: small requests overtake large
        # ones, and who came long enough ago is overtaken by nobody.
        due = request.arrived + self.pace.seconds(sum(map(len, texts)))
        self._requests.add(request)
        with self._ready:
            heapq.heappush(self._queues[lane], (due, next(self._count), request))
            self._ready.notify()
        try:
            return await request.result
        finally:
            # A caller that went away cancelled this: what has not run will not.
            with self._ready:
                request.leave()
            self._requests.discard(request)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing waits or runs, or until `timeout_s` have passed."""
        results = [request.result for request in self._requests]
        if results:
            await asyncio.wait(results, timeout=timeout_s)

    def close(self, error: ServiceError) -> None:
        """Take nothing more; requests still here fail with `error`."""
        self._closed_by = error
        with self._ready:
            for queue in self._queues.values():
                queue.clear()
        for request in list(self._requests):
            request.fail(error)

    # For the forward thread, which holds `ready`.

    def has_waiting(self, lane: Lane) -> bool:
        """Say whether there is a batch to take; forgets requests that are taken or gone."""
        queue = self._queues[lane]
        while queue and not queue[0][2].waiting:
            heapq.heappop(queue)
        return bool(queue)

    def take(self, lane: Lane) -> Batch:
        """Take texts up to one pass; a single longer text goes alone."""
        parts: list[tuple[_Request, list[int]]] = []
        budget, tokens, is_full = self.pace.pass_tokens, 0, False
        while not is_full and self.has_waiting(lane):
            request = self._queues[lane][0][2]
            rows: list[int] = []
            while request.waiting:
                length = len(request.texts[request.waiting[-1]])
                if tokens and tokens + length > budget:
                    is_full = True
                    break
                rows.append(request.waiting.pop())
                tokens += length
            if rows:
                request.running += len(rows)
                parts.append((request, rows))
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_fill.observe(tokens / budget)
        return Batch(parts, tokens)

    # For the forward thread, which holds nothing.

    def run(self, batch: Batch, lane: Lane) -> float:
        """Run a batch and hand out its vectors; return the seconds that it took."""
        start = time.perf_counter()
        for request, _ in batch.parts:
            self._metrics.queue_seconds.labels(lane).observe(start - request.arrived)
        self._run_parts(batch.parts)
        end = time.perf_counter()
        for request, rows in batch.parts:
            record(request.caller, "batch wait", request.arrived, start)
            record(request.caller, "forward", start, end, texts=len(rows), tokens=batch.tokens)
        seconds = end - start
        self.pace.observe(batch.tokens, seconds)
        return seconds

    def _run_parts(self, parts: list[tuple[_Request, list[int]]]) -> None:
        texts = [request.texts[row] for request, rows in parts for row in rows]
        try:
            with self._metrics.stage("forward"):
                vectors_BD = self._run(texts)
            if vectors_BD.shape != (len(texts), self._full):
                raise RuntimeError(f"{len(texts)} texts gave vectors of shape {vectors_BD.shape}")
        except Exception as error:
            self._run_apart(parts, error)
            return
        done = 0
        for request, rows in parts:
            request.vectors_BD[rows] = vectors_BD[done : done + len(rows)]
            done += len(rows)
        self._tell(self._finish, parts)

    def _run_apart(self, parts: list[tuple[_Request, list[int]]], error: Exception) -> None:
        """After a failure: run each request by itself, so that one cannot fail the others."""
        if len(parts) == 1:
            log.error("a batch failed", exc_info=error)
            self._tell(parts[0][0].fail, ServiceError("the model failed on this request"))
            return
        for part in parts:
            self._run_parts([part])

    def _finish(self, parts: list[tuple[_Request, list[int]]]) -> None:
        for request, rows in parts:
            request.running -= len(rows)
            request.finish(sum(len(request.texts[row]) for row in rows))

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        # The loop is closed only when the process ends without waiting for its callers.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *arguments)
