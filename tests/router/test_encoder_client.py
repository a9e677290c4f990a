"""What the router does when its encoder has too much to do, and what it puts first."""

import asyncio
import itertools
import time

import grpc
import pytest

from services.router.encoder_client import EncoderClient
from services.shared.errors import Overloaded, TooLarge, Unavailable
from services.shared.pb import encoder_pb2
from services.shared.pb import router_pb2 as pb
from tests.router.conftest import encode
from tests.router.test_service import create, make_points, read_all, upsert

BATCH = pb.UpsertRequest(collection="docs", points=make_points("a"))
SEARCH = pb.SearchRequest(collection="docs", text="x")
MIGRATE = pb.MigrateCollectionRequest(source="docs", target="new", model="wide")


@pytest.fixture
async def client(encoder):
    """A client whose documents wait for almost four seconds, and whose messages are short."""
    client = EncoderClient(encoder[1], max_message_bytes=4096, max_wait_s=3.9)
    yield client
    await client.close()


async def busy(call):
    """Await a call that is refused as too much; return when it says to come back."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "much work is waiting" in caught.value.details()
    return dict(caught.value.trailing_metadata())["retry-after"]


async def test_queries_go_before_documents(router):
    """Writes and migrations are bulk work to the encoder, searches are interactive."""
    await create(router)
    await upsert(router, BATCH)
    await router.stub.Search(SEARCH)
    await read_all(router.stub.MigrateCollection(MIGRATE), [])
    document = (encoder_pb2.ROLE_DOCUMENT, encoder_pb2.PRIORITY_BULK)
    query = (encoder_pb2.ROLE_QUERY, encoder_pb2.PRIORITY_INTERACTIVE)
    asked = [(embed.role, embed.priority) for embed in router.encoder.embeds]
    assert asked == [document, query, document]


async def test_documents_come_back_when_the_encoder_says(router):
    """A write and a migration that are refused as too much wait, and then are done."""
    await create(router)
    for work in (
        lambda: upsert(router, BATCH),
        lambda: read_all(router.stub.MigrateCollection(MIGRATE), []),
    ):
        before = len(router.encoder.embeds)
        router.encoder.refusals = iter([2])
        start = time.monotonic()
        await work()
        assert time.monotonic() - start >= 2
        assert len(router.encoder.embeds) == before + 2
    found = await router.stub.Search(pb.SearchRequest(collection="new", text="text of a"))
    assert found.hits[0].id == "a"


async def test_a_query_is_told_at_once_when_to_come_back(router):
    """Its caller decides whether it is worth the wait."""
    await create(router)
    router.encoder.refusals = iter([7])
    assert await busy(router.stub.Search(SEARCH)) == "7"
    assert len(router.encoder.embeds) == 1


async def test_a_write_that_would_wait_too_long_is_told_when_to_come_back(router):
    """Longer than documents ever wait is passed on, with the number of the batch."""
    await create(router)
    router.encoder.refusals = iter([601])
    assert await busy(upsert(router, BATCH)) == "601"
    assert len(router.encoder.embeds) == 1


async def test_documents_wait_for_a_bounded_time(client, encoder):
    """An encoder that never has room is asked as long as its times to wait fit, and no longer."""
    encoder[0].refusals = itertools.repeat(2)
    with pytest.raises(Overloaded, match="much work"):
        await client.embed_many("small", ["a"])
    assert len(encoder[0].embeds) == 2


@pytest.mark.parametrize("refused_before", [0, 2])
async def test_an_encoder_that_is_gone_is_asked_again_in_one_place(client, encoder, refused_before):
    """By the channel, four times in all, whoever asks; waiting for a busy one adds to it only."""
    encoder[0].fail_after = 0
    encoder[0].refusals = iter([1] * refused_before)
    with pytest.raises(Unavailable):
        await client.embed_many("small", ["a"])
    assert len(encoder[0].embeds) == refused_before + 4
    with pytest.raises(Unavailable):
        await client.embed_query("small", "a")
    assert len(encoder[0].embeds) == refused_before + 8


async def test_nobody_waits_for_a_caller_whose_deadline_has_passed(router):
    """A write ends at its caller's deadline, however long documents may wait."""
    await create(router)
    router.encoder.refusals = itertools.repeat(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(router.stub.Upsert(iter([BATCH]), timeout=2), [])
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    asked = len(router.encoder.embeds)
    assert asked
    await asyncio.sleep(1.5)
    assert len(router.encoder.embeds) == asked


async def test_texts_too_long_for_a_message_are_refused_at_once(client, encoder):
    """They would be as long after any wait; what just fits is encoded."""
    with pytest.raises(TooLarge, match="at most 4096"):
        await client.embed_many("small", ["x" * 4096])
    assert not encoder[0].embeds
    encoded = await client.embed_many("small", ["x" * 4000])
    assert encoded.vectors_BD[0].tolist() == encode("small", "x" * 100, 32).tolist()
