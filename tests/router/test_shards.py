"""Collections in shards and replicas on a Qdrant server, from the router's door to the server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.vectors import pack
from tests.router.conftest import Encoder, Running, running
from tests.router.sharded_qdrant import ShardedQdrant


@pytest.fixture
async def server() -> AsyncIterator[ShardedQdrant]:
    server = ShardedQdrant()
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def spread(
    encoder: tuple[Encoder, str], tmp_path: Path, server: ShardedQdrant
) -> AsyncIterator[Running]:
    """A router on that server."""
    at = {"qdrant_url": "http://127.0.0.1:1", "qdrant_grpc_port": server.port}
    async with running(encoder, tmp_path, max_shards=12, max_replicas=4, **at) as router:
        yield router


async def create(router: Running, name: str = "docs", **more: Any) -> pb.Collection:
    request = pb.CreateCollectionRequest(name=name, model="small", **more)
    return (await router.stub.CreateCollection(request)).collection


async def get(router: Running, name: str = "docs") -> pb.Collection:
    return (await router.stub.GetCollection(pb.GetCollectionRequest(name=name))).collection


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(raised.value.details())


async def test_a_collection_is_spread_as_it_was_asked_for(
    spread: Running, server: ShardedQdrant
) -> None:
    """The server gets both numbers, and two replicas must have what is acknowledged; each call that
    shows the collection shows how it lies."""
    created = await create(spread, shards=3, replicas=2)
    assert (created.shards, created.replicas) == (3, 2)
    held = server.held["docs"]
    assert (held.shards, held.replicas, held.write_consistency_factor) == (3, 2, 2)
    assert await get(spread) == created
    listed = await spread.stub.ListCollections(pb.ListCollectionsRequest())
    assert list(listed.collections) == [created]


async def test_what_is_not_said_is_left_to_the_server(
    spread: Running, server: ShardedQdrant
) -> None:
    """Its own defaults hold, and are shown; an acknowledgement is as good."""
    server.default_shards = 5
    created = await create(spread)
    assert (created.shards, created.replicas) == (5, 1)
    sent = server.held["docs"].created
    assert not sent.HasField("shard_number")
    assert not sent.HasField("replication_factor")
    assert sent.write_consistency_factor == 2


async def test_shards_are_those_that_there_are(spread: Running, server: ShardedQdrant) -> None:
    """A server that spreads a collection anew is believed, and not what was asked for."""
    await create(spread, shards=2)
    await server.reshard("docs", 4)
    assert (await get(spread)).shards == 4


async def test_what_is_kept_beside_a_collection_has_as_many_replicas(
    spread: Running, server: ShardedQdrant
) -> None:
    """Searches need its rotation: lost with one node, it would take the collection with it."""
    await create(spread, shards=3, replicas=2)
    request = pb.SearchRequest(collection="docs", text="a")
    await spread.stub.Search(request)
    await spread.service._parts.recent._flush()
    [beside] = [held for name, held in server.held.items() if name != "docs"]
    assert (beside.shards, beside.replicas, beside.write_consistency_factor) == (1, 2, 2)


async def test_a_migration_s_target_lies_as_its_source_unless_told(
    spread: Running, server: ShardedQdrant
) -> None:
    """So that moving to a model does not lose replicas, and may be used to spread anew."""
    await create(spread, shards=3, replicas=2)
    for target, more, lies in (("same", {}, (3, 2)), ("more", {"shards": 6}, (6, 2))):
        request = pb.MigrateCollectionRequest(source="docs", target=target, model="wide", **more)
        async for answer in spread.stub.MigrateCollection(request):
            last = answer
        assert (last.collection.shards, last.collection.replicas) == lies


async def test_a_calibration_knows_how_many_shards_it_was_made_in(spread: Running) -> None:
    """So that it can be told when there are fewer, whose graphs may find less."""
    await create(spread, shards=3, sizes=[pb.Size(dim=8)])
    vectors = pack(np.random.default_rng(0).standard_normal((60, 32)).astype(np.float32))
    batch = pb.UpsertRequest(
        collection="docs",
        points=[pb.Point(id=str(row)) for row in range(60)],
        vectors=vectors,
        space_id="space-small",
    )
    async for _ in spread.stub.Upsert(iter([batch])):
        pass
    queries = pack(np.random.default_rng(1).standard_normal((100, 32)).astype(np.float32))
    request = pb.CalibrateRequest(
        collection="docs", vectors=queries, space_id="space-small", limit=5
    )
    async for answer in spread.stub.Calibrate(request):
        last = answer
    assert last.calibration.shards == 3


async def test_more_than_a_collection_may_have_is_refused(
    spread: Running, server: ShardedQdrant
) -> None:
    """At the door, before anything is made, in one sentence that says what is accepted."""
    await create(spread)
    for field, bound in (("shards", 12), ("replicas", 4)):
        says = f"{field} must be 0, for the server's default, or 1 to {bound}, got {bound + 1}"
        assert says in await refused(create(spread, "other", **{field: bound + 1}))
        request = pb.MigrateCollectionRequest(
            source="docs", target="other", model="wide", **{field: bound + 1}
        )
        assert says in await refused(anext(aiter(spread.stub.MigrateCollection(request))))
    assert set(server.held) == {"docs"}


async def test_embedded_storage_keeps_a_collection_whole(router: Running) -> None:
    """More than one of either is refused, and where to have it is said; one is what there is."""
    for field in ("shards", "replicas"):
        says = await refused(create(router, **{field: 2}))
        assert f"{field} must be 0 or 1 on embedded storage" in says
        assert "MATRYOSHKA_ROUTER_QDRANT_URL" in says
    created = await create(router, shards=1, replicas=1)
    assert (created.shards, created.replicas) == (1, 1)
    assert await get(router) == created
