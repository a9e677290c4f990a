"""The batcher's invariants, each with a run function that the test controls."""

import asyncio
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.encoder.batcher import Batcher
from services.encoder.metrics import EncoderMetrics
from services.encoder.pace import Pace
from services.encoder.turns import ForwardThread
from services.shared.errors import ServiceError, Unavailable

FULL = 2
POISON = 666
PASS_TOKENS = 10


class Machine:
    """Stands for a model: a text's vector is (its first token, its length)."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, texts):
        self.batches.append([list(text) for text in texts])
        assert self.gate.wait(20)
        if any(POISON in text for text in texts):
            raise RuntimeError("cannot run this")
        return np.array([[text[0], len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
async def machine():
    return Machine()


@pytest.fixture
async def forward():
    thread = ForwardThread(bulk_share=0.2)
    yield thread
    await thread.close()


@pytest.fixture
async def batcher(machine, forward):
    batcher = new_batcher(machine, forward)
    yield batcher
    machine.gate.set()
    batcher.close(Unavailable("closed"))


def new_batcher(machine, forward):
    pace = Pace(max_pass_s=10, max_batch_tokens=PASS_TOKENS)
    batcher = Batcher(machine.run, FULL, pace, forward.ready, EncoderMetrics(CollectorRegistry()))
    forward.add(batcher)
    return batcher


async def held(machine, batcher):
    """Occupy the machine, so that what comes next has to queue."""
    machine.gate.clear()
    task = asyncio.create_task(batcher.encode([[0]]))
    while not machine.batches:
        await asyncio.sleep(0.001)
    return task


async def queued(batcher, texts, lane="interactive"):
    task = asyncio.create_task(batcher.encode(texts, lane))
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
    assert all(sum(map(len, batch)) <= PASS_TOKENS for batch in machine.batches)


async def test_one_long_text_runs_alone(machine, batcher):
    """A text over the whole budget is not stuck."""
    vectors = await batcher.encode([[7] * 50, [8]])
    assert vectors.tolist() == [[7, 50], [8, 1]]
    assert [[7] * 50] in machine.batches


async def test_callers_share_batches(machine, batcher):
    """Requests that wait together run together."""
    first = await held(machine, batcher)
    others = [await queued(batcher, [[i]]) for i in range(1, 6)]
    machine.gate.set()
    await asyncio.gather(first, *others)
    assert len(machine.batches) == 2
    assert len(machine.batches[1]) == 5


async def test_departed_callers_are_not_run(machine, batcher):
    """A request whose caller left is dropped before it costs anything."""
    first = await held(machine, batcher)
    gone = await queued(batcher, [[5] * 4])
    gone.cancel()
    await asyncio.sleep(0)
    stays = await queued(batcher, [[6] * 4])
    machine.gate.set()
    await asyncio.gather(first, stays)
    assert [5] * 4 not in [text for batch in machine.batches for text in batch]


async def test_leaving_while_running_harms_nobody(machine, batcher):
    """A result for a caller who left is thrown away, and the thread lives on."""
    first = await held(machine, batcher)
    first.cancel()
    await asyncio.sleep(0)
    machine.gate.set()
    assert (await batcher.encode([[3]])).tolist() == [[3, 1]]


async def test_a_failing_request_fails_alone(machine, batcher):
    """Of the requests in a failing batch, only the one that cannot be run fails."""
    first = await held(machine, batcher)
    good = await queued(batcher, [[1], [2]])
    bad = await queued(batcher, [[POISON]])
    machine.gate.set()
    await first
    assert (await good).tolist() == [[1, 1], [2, 1]]
    with pytest.raises(ServiceError):
        await bad
    assert (await batcher.encode([[9]])).tolist() == [[9, 1]]


async def test_a_small_request_overtakes_a_large_one(machine, batcher):
    """In one lane, a request of one text that comes late rides in the very next batch."""
    first = await held(machine, batcher)
    large = await queued(batcher, [[1] * 5] * 150)
    small = await queued(batcher, [[2]])
    machine.gate.set()
    await small
    await asyncio.gather(first, large)
    assert [2] in machine.batches[1]


async def test_progress_is_told_as_it_is_made(machine, batcher):
    """Whoever counts what waits hears of each pass, and in the end of every token."""
    done = []
    await batcher.encode([[1] * 6] * 5, on_done=done.append)
    assert done == [6] * 5


async def test_closing_fails_those_who_wait(machine, batcher):
    """Unloading a model leaves nobody hanging, and says that a retry may help."""
    first = await held(machine, batcher)
    waiting = await queued(batcher, [[1]])
    batcher.close(Unavailable("unloaded"))
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await batcher.encode([[1]])
    first.cancel()


async def test_draining_waits_for_those_who_are_there(machine, batcher):
    """A model is unloaded under nobody's feet."""
    first = await held(machine, batcher)
    drain = asyncio.create_task(batcher.drain(timeout_s=20))
    await asyncio.sleep(0.01)
    assert not drain.done()
    machine.gate.set()
    await drain
    assert first.done()
