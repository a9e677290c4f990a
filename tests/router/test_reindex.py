"""A collection built again in another space, while people search and somebody wants to write."""

import asyncio

import grpc
import pytest

from services.shared.pb import router_pb2 as pb
from tests.router.conftest import encode
from tests.router.test_service import create, fill, make_points, refused, upsert, vectors_of

REINDEX = pb.ReindexRequest(source="current", target="new", model="wide", alias="current")


async def set_up(router, rows=35):
    await create(router, "old")
    await fill(router, rows, "old")
    await router.stub.SetCollectionAlias(
        pb.SetCollectionAliasRequest(alias="current", collection="old")
    )


async def run(router, request=REINDEX):
    return [answer async for answer in router.stub.Reindex(request)]


async def search(router, text="text of p3", name="current"):
    return await router.stub.Search(pb.SearchRequest(collection=name, text=text, limit=1))


async def names(router):
    listed = await router.stub.ListCollections(pb.ListCollectionsRequest())
    return [collection.name for collection in listed.collections]


async def wait_for_refusal(router):
    """Wait until the reindex has closed the source."""
    async with asyncio.timeout(5):
        while "new" not in await names(router):
            await asyncio.sleep(0.01)


async def test_a_collection_is_built_again_and_its_alias_moves(router):
    """Progress counts up to all points; then the alias finds them in the new space."""
    await set_up(router)
    steps = await run(router)
    assert [(s.num_points, s.total_points, s.done) for s in steps] == [
        (0, 35, False), (10, 35, False), (20, 35, False), (30, 35, False), (35, 35, False),
        (35, 35, True),
    ]  # fmt: skip
    answer = await search(router)
    assert (answer.collection, answer.space_id) == ("new", "space-wide")
    assert answer.hits[0].id == "p3"
    assert answer.hits[0].attributes["row"].int_value == 3
    new = (await router.stub.GetCollection(pb.GetCollectionRequest(name="new"))).collection
    assert [(s.dim, s.hnsw_m) for s in new.sizes] == [(8, 16), (16, 16), (48, 0)]
    assert new.num_points == 35
    assert list(new.aliases) == ["current"]
    await router.stub.DeleteCollection(pb.DeleteCollectionRequest(name="old"))


async def test_searches_by_alias_never_fail_while_it_moves(router):
    """Each search sees the old or the new collection, whole, and finds its document."""
    await set_up(router)
    spaces = []
    moved = asyncio.Event()

    async def keep_searching():
        after = 0
        while after < 5:
            answer = await search(router)
            assert answer.hits[0].id == "p3"
            assert answer.hits[0].score == pytest.approx(1, abs=1e-5)
            spaces.append((answer.collection, answer.space_id))
            after += moved.is_set()

    searching = [asyncio.create_task(keep_searching()) for _ in range(4)]
    await asyncio.sleep(0.1)
    await run(router)
    moved.set()
    await asyncio.gather(*searching)
    assert set(spaces) == {("old", "space-small"), ("new", "space-wide")}


async def test_a_search_outlives_the_collection_it_began_on(router):
    """The alias moves and the old collection goes while a query is encoded: it is answered."""
    await set_up(router)
    await run(router)
    point_back = pb.SetCollectionAliasRequest(alias="current", collection="old")
    await router.stub.SetCollectionAlias(point_back)
    router.encoder.may_answer.clear()
    searching = asyncio.create_task(search(router))
    await asyncio.sleep(0.1)
    point_on = pb.SetCollectionAliasRequest(alias="current", collection="new")
    await router.stub.SetCollectionAlias(point_on)
    await router.stub.DeleteCollection(pb.DeleteCollectionRequest(name="old"))
    router.encoder.may_answer.set()
    answer = await searching
    assert (answer.collection, answer.hits[0].id) == ("new", "p3")


async def test_writes_to_the_source_are_refused_until_the_end(router):
    """Upserts and deletes are told to come back; afterwards the old collection takes them again."""
    await set_up(router)
    router.encoder.may_answer.clear()
    reindexing = asyncio.create_task(run(router))
    await wait_for_refusal(router)
    unavailable = grpc.StatusCode.UNAVAILABLE
    for name in ("current", "old", "new"):
        model = ("wide", 48) if name == "new" else ("small", 32)
        batch = pb.UpsertRequest(
            collection=name,
            points=make_points("a"),
            vectors=vectors_of("a", *model),
            space_id=f"space-{model[0]}",
        )
        await refused(router.stub.Upsert(iter([batch])), unavailable, "is being reindexed")
    delete = router.stub.Delete(pb.DeleteRequest(collection="old", ids=["p1"]))
    await refused(delete, unavailable, "is being reindexed")
    drop = router.stub.DeleteCollection(pb.DeleteCollectionRequest(name="new"))
    await refused(drop, unavailable, "is being reindexed")
    second = router.stub.Reindex(pb.ReindexRequest(source="old", target="third", model="wide"))
    await refused(second, grpc.StatusCode.FAILED_PRECONDITION, "being reindexed already")
    router.encoder.may_answer.set()
    await reindexing
    await upsert(router, pb.UpsertRequest(collection="old", points=make_points("late")))


async def test_a_write_under_way_is_in_the_target(router):
    """A batch that was being encoded when the reindex began is waited for, and comes along."""
    await set_up(router, 5)
    router.encoder.may_answer.clear()
    batch = pb.UpsertRequest(collection="current", points=make_points("just in time"))
    writing = asyncio.create_task(upsert(router, batch))
    await asyncio.sleep(0.1)
    reindexing = asyncio.create_task(run(router))
    router.encoder.may_answer.set()
    results = await asyncio.gather(writing, reindexing, return_exceptions=True)
    found = (await search(router, "text of just in time")).hits[0].id
    if isinstance(results[0], grpc.aio.AioRpcError):  # it came too late: refused, not lost
        assert results[0].code() == grpc.StatusCode.UNAVAILABLE
    else:
        assert found == "just in time"


async def wait_for_writes(router):
    """Wait until the source takes writes again, just after the target is gone."""
    async with asyncio.timeout(5):
        while True:
            delete = router.stub.Delete(pb.DeleteRequest(collection="old", ids=["unknown"]))
            if await delete.code() == grpc.StatusCode.OK:
                return


async def assert_nothing_changed(router):
    assert await names(router) == ["old"]
    assert (await search(router)).collection == "old"
    await upsert(router, pb.UpsertRequest(collection="old", points=make_points("again")))
    await run(router)
    assert (await search(router)).collection == "new"


async def test_a_failed_run_leaves_nothing_behind(router):
    """The half-built target goes, the alias stays, writes are taken, and a second run works."""
    await set_up(router)
    router.encoder.fail_after = 2
    await refused(router.stub.Reindex(REINDEX), grpc.StatusCode.UNAVAILABLE, "the encoder")
    router.encoder.fail_after = None
    await assert_nothing_changed(router)


async def test_a_run_left_by_its_caller_leaves_nothing_behind(router):
    """Cancelling the call does the same as a failure."""
    await set_up(router)
    router.encoder.may_answer.clear()
    call = router.stub.Reindex(REINDEX)
    assert (await call.read()).total_points == 35
    call.cancel()
    async with asyncio.timeout(5):
        while await names(router) != ["old"]:
            await asyncio.sleep(0.02)
    router.encoder.may_answer.set()
    await wait_for_writes(router)
    await assert_nothing_changed(router)


async def test_a_run_does_not_hold_the_shutdown(router):
    """When the server closes its caller is told to try again, and nothing is left behind."""
    await set_up(router)
    router.encoder.may_answer.clear()
    call = router.stub.Reindex(REINDEX)
    assert (await call.read()).total_points == 35
    router.state.close()
    await refused(asyncio.wait_for(call.read(), 5), grpc.StatusCode.UNAVAILABLE, "stopping")
    assert dict(await call.trailing_metadata())["retry-after"] == "1"
    router.state.is_open = True  # to see what is there
    async with asyncio.timeout(5):
        while await names(router) != ["old"]:
            await asyncio.sleep(0.02)


async def test_points_without_a_text_are_refused_before_any_work(router):
    """They could not be encoded; nothing is created."""
    await set_up(router, 3)
    bare = pb.UpsertRequest(
        collection="old",
        points=[pb.Point(id="bare")],
        vectors=encode("small", "bare", 32).tobytes(),
        space_id="space-small",
    )
    await upsert(router, bare)
    state = grpc.StatusCode.FAILED_PRECONDITION
    await refused(router.stub.Reindex(REINDEX), state, "1 points of collection 'old' have no text")
    assert await names(router) == ["old"]


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"target": "old"}, grpc.StatusCode.ALREADY_EXISTS, "'old' is taken"),
        ({"target": ""}, grpc.StatusCode.INVALID_ARGUMENT, "target must be 1 to 255"),
        ({"alias": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "alias must be 1 to 255"),
        ({"alias": "old"}, grpc.StatusCode.ALREADY_EXISTS, "name of a collection"),
        ({"alias": "new"}, grpc.StatusCode.ALREADY_EXISTS, "name of a collection"),
        ({"source": "gone"}, grpc.StatusCode.NOT_FOUND, "'gone'"),
        ({"model": "gone"}, grpc.StatusCode.NOT_FOUND, "'gone'"),
        ({"sizes": [pb.Size(dim=49)]}, grpc.StatusCode.INVALID_ARGUMENT, "between 1 and 48"),
    ],
)
async def test_a_bad_reindex_is_refused_before_any_work(router, fields, code, says):
    """What could not end well does not begin; an existing target is left alone."""
    await set_up(router, 3)
    request = pb.ReindexRequest()
    request.CopyFrom(REINDEX)
    for field, value in fields.items():
        if field == "sizes":
            request.sizes.extend(value)
        else:
            setattr(request, field, value)
    await refused(router.stub.Reindex(request), code, says)
    assert await names(router) == ["old"]
    assert (await search(router)).hits[0].id
    await upsert(router, pb.UpsertRequest(collection="old", points=make_points("again")))
