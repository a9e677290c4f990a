"""One stream of upserts: how much of it waits in the router, and in which order it is done."""

import asyncio

import grpc
import pytest

from services.shared.pb import router_pb2 as pb
from tests.router.conftest import running


def batch(number, text="x"):
    points = [pb.Point(id=f"{number}", text=f"{text} {number}")]
    return pb.UpsertRequest(collection="docs", points=points)


@pytest.mark.parametrize("read_ahead", [1, 3])
async def test_so_many_batches_are_encoded_ahead_and_no_more(encoder, tmp_path, read_ahead):
    """An encoder that does not answer stops the stream; when it does, all goes on in order."""
    async with running(encoder, tmp_path, upsert_read_ahead=read_ahead) as router:
        await router.stub.CreateCollection(pb.CreateCollectionRequest(name="docs", model="small"))
        router.encoder.may_answer.clear()
        call = router.stub.Upsert(batch(number) for number in range(20))
        while len(router.encoder.embeds) < read_ahead:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(router.encoder.embeds) == read_ahead
        router.encoder.may_answer.set()
        assert [answer.total_points async for answer in call] == list(range(1, 21))
        texts = [embed.texts[0] for embed in router.encoder.embeds]
        assert sorted(texts) == sorted(f"x {number}" for number in range(20))


async def test_a_bad_batch_is_named_and_none_after_it_is_written(router):
    """Those that were encoded ahead of it are not; those before it stay."""
    await router.stub.CreateCollection(pb.CreateCollectionRequest(name="docs", model="small"))
    batches = [batch(0), batch(1), batch(2, text=" " * 2000), batch(3), batch(4)]
    acknowledged = []
    with pytest.raises(grpc.aio.AioRpcError, match=r"batch 3: points\[0\]: text must have"):  # noqa: PT012
        async for answer in router.stub.Upsert(iter(batches)):
            acknowledged.append(answer.total_points)
    found = await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    assert acknowledged == [1, 2]
    assert found.collection.num_points == 2


async def test_the_last_of_two_points_with_one_id_is_kept(router):
    """Batches are written in the order in which they came, however long each took to encode."""
    await router.stub.CreateCollection(pb.CreateCollectionRequest(name="docs", model="small"))
    batches = [
        pb.UpsertRequest(collection="docs", points=[pb.Point(id="same", text=f"text {number}")])
        for number in range(30)
    ]
    assert len([answer async for answer in router.stub.Upsert(iter(batches))]) == 30
    found = await router.stub.Search(pb.SearchRequest(collection="docs", text="x"))
    assert [hit.text for hit in found.hits] == ["text 29"]
