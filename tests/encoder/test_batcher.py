"""The batcher's invariants, each with a run function that the test controls."""

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.encoder.batcher import Batcher
from services.encoder.metrics import EncoderMetrics
from services.shared.errors import Overloaded, ServiceError

FULL = 2
POISON = 666


class Machine:
    """Stands for a model: a text's vector is (its first token, its length)."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, texts):
        self.batches.append([list(text) for text in texts])
        await self.gate.wait()
        if any(POISON in text for text in texts):
            raise RuntimeError("cannot run this")
        return np.array([[text[0], len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
async def machine():
    return Machine()


@pytest.fixture
async def batcher(machine):
    batcher = Batcher(machine.run, FULL, 10, 100, EncoderMetrics(CollectorRegistry()))
    yield batcher
    await batcher.close()


async def held(machine, batcher):
    """Occupy the machine, so that what comes next has to queue."""
    machine.gate.clear()
    task = asyncio.create_task(batcher.encode([[0]]))
    while not machine.batches:
        await asyncio.sleep(0)
    return task


async def test_rows_come_back_in_order(machine, batcher):
    """Whatever order the texts run in, each row is its own text's."""
    texts = [[i] * (1 + i % 4) for i in range(20)]
    vectors = await batcher.encode(texts)
    assert vectors.tolist() == [[i, 1 + i % 4] for i in range(20)]


async def test_batches_stay_in_the_token_budget(machine, batcher):
    """No batch of several texts is over the budget."""
    await asyncio.gather(*(batcher.encode([[i] * 4, [i] * 3]) for i in range(8)))
    assert all(sum(map(len, batch)) <= 10 for batch in machine.batches)


async def test_one_long_text_runs_alone(machine, batcher):
    """A text over the whole budget is not stuck."""
    vectors = await batcher.encode([[7] * 50, [8]])
    assert vectors.tolist() == [[7, 50], [8, 1]]
    assert [[7] * 50] in machine.batches


async def test_callers_share_batches(machine, batcher):
    """Requests that wait together run together."""
    first = await held(machine, batcher)
    others = [asyncio.create_task(batcher.encode([[i]])) for i in range(1, 6)]
    await asyncio.sleep(0)
    machine.gate.set()
    await asyncio.gather(first, *others)
    assert len(machine.batches) == 2
    assert len(machine.batches[1]) == 5


async def test_a_full_queue_refuses_at_once(machine, batcher):
    """The caller over the bound is told immediately; those within it are served."""
    first = await held(machine, batcher)
    queued = asyncio.create_task(batcher.encode([[1] * 90]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="at most 100"):
        await batcher.encode([[2] * 11])
    machine.gate.set()
    await asyncio.gather(first, queued)


async def test_departed_callers_are_not_run(machine, batcher):
    """A request whose caller left is dropped before it costs anything, and its room is free."""
    first = await held(machine, batcher)
    gone = asyncio.create_task(batcher.encode([[5] * 95]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    stays = asyncio.create_task(batcher.encode([[6] * 95]))
    await asyncio.sleep(0)
    machine.gate.set()
    await asyncio.gather(first, stays)
    assert [[5] * 95] not in machine.batches


async def test_leaving_while_running_harms_nobody(machine, batcher):
    """A result for a caller who left is thrown away, and the loop lives on."""
    first = await held(machine, batcher)
    first.cancel()
    await asyncio.sleep(0)
    machine.gate.set()
    assert (await batcher.encode([[3]])).tolist() == [[3, 1]]


async def test_a_failing_request_fails_alone(machine, batcher):
    """Of the requests in a failing batch, only the one that cannot be run fails."""
    first = await held(machine, batcher)
    good = asyncio.create_task(batcher.encode([[1], [2]]))
    bad = asyncio.create_task(batcher.encode([[POISON]]))
    await asyncio.sleep(0)
    machine.gate.set()
    await first
    assert (await good).tolist() == [[1, 1], [2, 1]]
    with pytest.raises(ServiceError):
        await bad
    assert (await batcher.encode([[9]])).tolist() == [[9, 1]]


async def test_a_query_does_not_wait_behind_bulk(machine, batcher):
    """A small request that comes late rides in the very next batch."""
    first = await held(machine, batcher)
    bulk = asyncio.create_task(batcher.encode([[1] * 5] * 15))
    await asyncio.sleep(0)
    query = asyncio.create_task(batcher.encode([[2]]))
    await asyncio.sleep(0)
    machine.gate.set()
    await asyncio.gather(first, bulk, query)
    assert [2] in machine.batches[1]


async def test_closing_fails_those_who_wait(machine, batcher):
    """Unloading a model leaves nobody hanging."""
    first = await held(machine, batcher)
    waiting = asyncio.create_task(batcher.encode([[1]]))
    await asyncio.sleep(0)
    await batcher.close()
    with pytest.raises(ServiceError):
        await waiting
    first.cancel()
