"""Whose turn it is on the forward thread: lanes, shares, several models."""

import asyncio
import itertools
import threading
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.encoder.batcher import Batcher
from services.encoder.metrics import EncoderMetrics
from services.encoder.pace import Pace
from services.encoder.turns import ForwardThread
from services.shared.errors import Unavailable

SHARE = 0.25
PASS_TOKENS = 10
BULK, QUERY = [1] * PASS_TOKENS, [2]


class Machine:
    """Notes in one log what each model runs; a pass takes a while, or waits at the gate."""

    def __init__(self, name: str, log: list, gate: threading.Event, pass_s: float) -> None:
        self.name, self.log, self.gate, self.pass_s = name, log, gate, pass_s

    def run(self, texts):
        self.log.append((self.name, "bulk" if texts[0] == BULK else "query"))
        assert self.gate.wait(20)
        time.sleep(self.pass_s)
        return np.ones((len(texts), 2), dtype=np.float32)


class Bench:
    """A forward thread with batchers over machines that share a log."""

    def __init__(self, pass_s: float = 0.002) -> None:
        self.log: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.thread = ForwardThread(SHARE)
        self.metrics = EncoderMetrics(CollectorRegistry())
        self.pass_s = pass_s
        self.batchers: list[Batcher] = []

    def add(self, name: str) -> Batcher:
        machine = Machine(name, self.log, self.gate, self.pass_s)
        pace = Pace(max_pass_s=10, max_batch_tokens=PASS_TOKENS)
        batcher = Batcher(machine.run, 2, pace, self.thread.ready, self.metrics)
        self.thread.add(batcher)
        self.batchers.append(batcher)
        return batcher

    async def queue(self, batcher, texts, lane):
        task = asyncio.create_task(batcher.encode(texts, lane))
        await asyncio.sleep(0)
        return task

    async def occupy(self, batcher):
        task = await self.queue(batcher, [QUERY], "interactive")
        while not self.log:
            await asyncio.sleep(0.001)
        self.log.clear()
        return task


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    bench.gate.set()
    for batcher in bench.batchers:
        batcher.close(Unavailable("closed"))
    await bench.thread.close()


async def test_a_query_goes_before_waiting_bulk(bench):
    """However much bulk work waits, a query waits for at most one pass of it."""
    batcher = bench.add("a")
    bulk = await bench.queue(batcher, [BULK] * 30, "bulk")
    while not bench.log:
        await asyncio.sleep(0.001)
    query = await bench.queue(batcher, [QUERY], "interactive")
    bench.gate.set()
    await query
    before = bench.log.index(("a", "query"))
    await bulk
    assert before == 1


async def test_a_query_goes_before_the_bulk_work_of_another_model(bench):
    """The lanes hold over all models, as they share one thread."""
    first, second = bench.add("a"), bench.add("b")
    bulk = await bench.queue(first, [BULK] * 30, "bulk")
    while not bench.log:
        await asyncio.sleep(0.001)
    query = await bench.queue(second, [QUERY], "interactive")
    bench.gate.set()
    await query
    before = bench.log.index(("b", "query"))
    await bulk
    assert before == 1


async def test_bulk_has_its_share_under_steady_queries(bench):
    """Queries that never stop leave bulk work its share of the time, about, and spread out."""
    batcher = bench.add("a")
    first = await bench.occupy(batcher)
    tasks = [await bench.queue(batcher, [[2] * PASS_TOKENS], "interactive") for _ in range(60)]
    tasks.append(await bench.queue(batcher, [BULK] * 60, "bulk"))
    bench.gate.set()
    await asyncio.gather(first, *tasks)
    kinds = [kind for _, kind in bench.log]
    contested = kinds[: len(kinds) - kinds[::-1].index("query")]
    share = contested.count("bulk") / len(contested)
    assert SHARE / 2 < share < SHARE * 2
    # Spread out: between two bulk passes there are queries.
    assert ("bulk", "bulk") not in itertools.pairwise(contested)


async def test_models_share_a_lane_evenly(bench):
    """A model with much waiting does not hold up another with little."""
    busy, other = bench.add("a"), bench.add("b")
    first = await bench.occupy(busy)
    tasks = [await bench.queue(busy, [BULK] * 40, "bulk")]
    tasks.append(await bench.queue(other, [BULK] * 10, "bulk"))
    bench.gate.set()
    await asyncio.gather(first, *tasks)
    contested = [name for name, _ in bench.log[:20]]
    assert 5 <= contested.count("b") <= 15


async def test_a_model_that_was_idle_has_saved_nothing_up(bench):
    """A model that comes back after a long pause shares from there; it does not catch up."""
    busy, other = bench.add("a"), bench.add("b")
    bench.gate.set()
    await busy.encode([BULK] * 40, "bulk")
    bench.gate.clear()
    bench.log.clear()
    first = await bench.occupy(busy)
    tasks = [await bench.queue(b, [BULK] * 20, "bulk") for b in (busy, other)]
    bench.gate.set()
    await asyncio.gather(first, *tasks)
    assert [name for name, _ in bench.log[:12]].count("a") >= 3


async def test_a_removed_model_takes_no_more_turns(bench):
    """Unloading takes the model's work off the thread, and the thread serves the others."""
    gone, stays = bench.add("a"), bench.add("b")
    first = await bench.occupy(gone)
    waiting = await bench.queue(gone, [BULK] * 5, "bulk")
    bench.thread.remove(gone)
    gone.close(Unavailable("unloaded"))
    bench.gate.set()
    await asyncio.wait([first, waiting])
    await stays.encode([QUERY])
    assert ("a", "bulk") not in bench.log
