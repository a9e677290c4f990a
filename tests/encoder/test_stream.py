"""Streams: in order, bounded reading ahead, errors in their place, nothing left behind."""

import asyncio
import contextlib

import grpc
import numpy as np
import pytest

from services.encoder.stream import answer_in_order
from services.shared.errors import InvalidRequest, Overloaded
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc

READ_AHEAD = 3


async def collect(stream, given):
    async for answer in stream:
        given.append(answer)


class Asker:
    """A stream of numbers that counts how many were read."""

    def __init__(self, numbers) -> None:
        self.numbers = numbers
        self.read = 0

    async def __aiter__(self):
        for number in self.numbers:
            self.read += 1
            yield number


async def later_first(number):
    await asyncio.sleep(0.01 if number % 2 else 0)
    return number


async def test_answers_follow_the_order_of_the_requests():
    """However long each takes."""
    answers = [a async for a in answer_in_order(Asker(range(20)), later_first, READ_AHEAD)]
    assert answers == list(range(20))


async def test_a_slow_reader_stops_the_reading():
    """No more requests are read than may wait, however many are offered."""
    asker = Asker(range(100))
    answers = answer_in_order(asker, later_first, READ_AHEAD)
    for given in range(1, 5):
        await anext(answers)
        await asyncio.sleep(0.05)
        assert asker.read <= given + READ_AHEAD
    await answers.aclose()


async def test_an_error_comes_after_the_answers_before_it():
    """What was asked before the wrong request is answered."""

    async def answer(number):
        if number == 5:
            raise InvalidRequest("5 is wrong")
        return await later_first(number)

    given = []
    with pytest.raises(InvalidRequest, match="5 is wrong"):
        await collect(answer_in_order(Asker(range(10)), answer, READ_AHEAD), given)
    assert given == [0, 1, 2, 3, 4]


async def test_a_broken_source_ends_it_after_what_was_read():
    """An error of the stream itself does not take answers back."""

    async def source():
        yield 1
        yield 2
        raise InvalidRequest("closing")

    given = []
    with pytest.raises(InvalidRequest, match="closing"):
        await collect(answer_in_order(source(), later_first, READ_AHEAD), given)
    assert given == [1, 2]


async def test_a_full_queue_is_waited_for():
    """A stream is slowed down by overload, not ended by it."""
    tries = 0

    async def answer(number):
        nonlocal tries
        tries += 1
        if tries < 3:
            error = Overloaded("full")
            error.retry_after_s = 0.001
            raise error
        return number

    assert [a async for a in answer_in_order(Asker([7]), answer, READ_AHEAD)] == [7]


async def test_leaving_cancels_all_that_is_under_way():
    """Nothing works on for a reader who left."""
    running = set()

    async def answer(number):
        running.add(number)
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        finally:
            running.discard(number)
        return number

    answers = answer_in_order(Asker(range(10)), answer, READ_AHEAD)
    assert await anext(answers) == 0
    await asyncio.sleep(0.01)
    assert running
    await answers.aclose()
    assert not running


# The same on the real service.


@pytest.fixture
def stub(encoder_channel):
    return pb_grpc.EncoderServiceStub(encoder_channel)


def asked(*texts, **fields):
    return pb.EmbedStreamRequest(embed=pb.EmbedRequest(texts=texts, **fields))


async def test_a_stream_gives_what_single_calls_give(stub):
    """Every message is an Embed: same vectors, same fields."""
    texts = [f"text {i} " + "pad " * (i % 30) for i in range(40)]
    requests = [
        asked(*texts[i : i + 4], dimensions=[64, 384], role=pb.ROLE_DOCUMENT)
        for i in range(0, 40, 4)
    ]
    answers = [answer.embed async for answer in stub.EmbedStream(iter(requests))]
    single = await stub.Embed(pb.EmbedRequest(texts=texts, dimensions=[384]))
    alone = np.frombuffer(single.vectors[0].data, "<f4").reshape(40, 384)
    streamed = np.concatenate(
        [np.frombuffer(a.vectors[1].data, "<f4").reshape(-1, 384) for a in answers]
    )
    assert (alone * streamed).sum(1).min() > 0.999
    assert {a.model for a in answers} == {single.model}


async def test_an_invalid_message_ends_the_stream_after_the_answers_before_it(stub):
    """The error is that of Embed, and says what would be accepted."""
    given = []
    requests = [asked("a"), asked("b"), asked(), asked("c")]
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as caught:
        await collect(stub.EmbedStream(iter(requests)), given)
    assert len(given) == 2
    assert "1 to 2048 texts" in caught.value.details()


async def test_a_reader_who_does_not_read_is_not_worked_for(stub, encoder_process, http_client):
    """With nobody reading, the service stops after a few requests: memory is bounded."""
    before = texts_encoded(http_client)
    sent = 0

    async def requests():
        nonlocal sent
        while True:
            sent += 1
            yield asked(*[f"{sent} word"] * 200, dimensions=[384])

    call = stub.EmbedStream(requests())
    await call.read()
    await asyncio.sleep(3)
    after = texts_encoded(http_client)
    await asyncio.sleep(2)
    assert texts_encoded(http_client) == after, "it goes on working"
    # What the wire itself buffers is a few MiB: here an answer has 300 KiB.
    assert (after - before) / 200 < 60
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call.read()
    assert (await stub.Embed(pb.EmbedRequest(texts=["well"]))).vectors


def texts_encoded(http_client):
    page = http_client.get("/metrics").text
    line = next(row for row in page.splitlines() if row.startswith("matryoshka_encoder_texts_tot"))
    return float(line.split()[1])
