"""A collection migrated to another space, while people search and write, and things end."""

import asyncio
import random

import grpc
import numpy as np
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.vectors import pack
from tests.router.conftest import encode, running, turn
from tests.router.test_service import create, fill, make_points, refused, upsert

MIGRATE = pb.MigrateCollectionRequest(source="current", target="new", model="wide", alias="current")
STATE, UNAVAILABLE = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE


async def set_up(router, rows=35):
    await create(router, "old")
    await fill(router, rows, "old")
    await router.stub.SetCollectionAlias(
        pb.SetCollectionAliasRequest(alias="current", collection="old")
    )


async def run(router, request=MIGRATE):
    return [answer async for answer in router.stub.MigrateCollection(request)]


def asked(**changes):
    """The request with some fields changed."""
    request = pb.MigrateCollectionRequest()
    request.CopyFrom(MIGRATE)
    request.MergeFrom(pb.MigrateCollectionRequest(**changes))
    return request


async def search(router, text="text of p3", name="current"):
    return await router.stub.Search(pb.SearchRequest(collection=name, text=text, limit=1))


async def names(router):
    listed = await router.stub.ListCollections(pb.ListCollectionsRequest())
    return [collection.name for collection in listed.collections]


async def get(router, name="new"):
    return (await router.stub.GetCollection(pb.GetCollectionRequest(name=name))).collection


async def write(router, *ids, name="current", text="text of"):
    points = [pb.Point(id=id_, text=f"{text} {id_}") for id_ in ids]
    await upsert(router, pb.UpsertRequest(collection=name, points=points))


async def whole(router, name, model, dim):
    """What a collection holds: {id: text}; every vector must be the one of its text."""
    page = await router.service._parts.store.scroll(name, None, 10_000, with_vectors=True)
    for point, vector_D in zip(page.points, page.vectors_BD, strict=True):
        np.testing.assert_allclose(vector_D, encode(model, point.text, dim), atol=2e-6)
    return {point.id: point.text for point in page.points}


async def same_in_both(router, model="wide", dim=48):
    old = await whole(router, "old", "small", 32)
    assert await whole(router, "new", model, dim) == old
    return old


async def settled(router):
    """Wait until the change has ended, or waits for somebody's word; return the target."""
    async with asyncio.timeout(60):
        while True:
            collection = await get(router)
            assert not collection.change.error
            if collection.change.step in ("", "ready", "watch"):
                return collection
            await asyncio.sleep(0.02)


async def test_a_collection_is_built_in_another_space_and_its_alias_moves(router):
    """Progress counts up to all points; then the alias finds them in the new space."""
    await set_up(router)
    *steps, last = await run(router)
    copied = [step.change.done for step in steps if step.change.step == "copy"]
    assert copied == sorted(copied)
    assert (copied[0], copied[-1], steps[-1].change.total) == (0, 35, 35)
    answer = await search(router)
    assert (answer.collection, answer.space_id) == ("new", "space-wide")
    assert answer.hits[0].id == "p3"
    assert answer.hits[0].attributes["row"].int_value == 3
    assert [(s.dim, s.hnsw_m) for s in last.collection.sizes] == [(8, 16), (16, 16), (48, 0)]
    assert last.collection.num_points == 35
    assert list(last.collection.aliases) == ["current"]
    assert not last.collection.HasField("change")
    await write(router, "later")
    assert "later" not in await whole(router, "old", "small", 32), "the two have parted"
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


async def test_writes_go_on_and_none_is_lost(router):
    """Upserts and deletes while it is filled are in both collections, each with its own vectors."""
    await set_up(router, 95)
    migrating = asyncio.create_task(run(router, asked(watch=True)))
    chance = random.Random(3)
    num_writes = 0
    while not migrating.done():
        ids = [f"p{chance.randrange(110)}" for _ in range(4)]
        await write(router, *dict.fromkeys(ids), text=f"version {num_writes} of")
        gone = [f"p{chance.randrange(110)}"]
        await router.stub.Delete(pb.DeleteRequest(collection="current", ids=gone))
        num_writes += 1
    await migrating
    assert num_writes > 5
    kept = await same_in_both(router)
    assert any(text.startswith("version") for text in kept.values())


async def test_what_is_written_while_its_page_is_encoded_is_not_undone(router):
    """The page holds what was read before; the newer point stays, and the deleted one away."""
    await set_up(router)
    router.encoder.embeds.clear()
    router.encoder.held = "text of p3"
    router.encoder.may_answer.clear()
    # One page, so that both points are on it.
    migrator = router.service._parts.migrations._migrator
    migrator._page_points = 100
    migrating = asyncio.create_task(run(router, asked(watch=True)))
    async with asyncio.timeout(10):
        while not any("text of p3" in sent.texts for sent in router.encoder.embeds):
            await asyncio.sleep(0.01)
    await write(router, "p3", text="newer text of")
    await router.stub.Delete(pb.DeleteRequest(collection="current", ids=["p4"]))
    router.encoder.may_answer.set()
    await migrating
    kept = await same_in_both(router)
    assert kept["p3"] == "newer text of p3"
    assert "p4" not in kept


async def test_a_write_under_way_comes_along(router):
    """A batch that was being encoded when it began is in the target, too."""
    await set_up(router, 5)
    router.encoder.may_answer.clear()
    writing = asyncio.create_task(write(router, "just in time"))
    await asyncio.sleep(0.1)
    migrating = asyncio.create_task(run(router))
    await asyncio.sleep(0.1)
    router.encoder.may_answer.set()
    await asyncio.gather(writing, migrating)
    assert (await search(router, "text of just in time")).hits[0].id == "just in time"


async def test_one_can_wait_switch_and_go_back_without_losing_a_write(router):
    """Held, both take writes; after the switch too, so going back and forth loses none."""
    await set_up(router)
    *_, last = await run(router, asked(hold=True, watch=True))
    assert last.collection.change.step == "ready"
    assert (await search(router)).collection == "old"
    of_source = router.stub.CancelChange(pb.CancelChangeRequest(name="old"))
    await refused(of_source, STATE, "is being migrated to 'new'; give that name")
    await write(router, "held")
    name = {"name": "new"}
    for call in (router.stub.RollBack(pb.RollBackRequest(**name)),
                 router.stub.FinishMigration(pb.FinishMigrationRequest(**name))):  # fmt: skip
        await refused(call, STATE, "whose step is 'watch', and its step is 'ready'")
    await router.stub.CutOver(pb.CutOverRequest(**name))
    assert (await search(router)).collection == "new"
    await refused(router.stub.CutOver(pb.CutOverRequest(**name)), STATE, "its step is 'watch'")
    await refused(router.stub.CancelChange(pb.CancelChangeRequest(**name)), STATE, "in use already")
    await write(router, "switched")
    assert {"held", "switched"} <= (await same_in_both(router)).keys()
    await router.stub.RollBack(pb.RollBackRequest(**name))
    assert (await search(router, "text of switched")).hits[0].id == "switched"
    assert (await search(router)).collection == "old"
    await write(router, "back")
    await router.stub.CutOver(pb.CutOverRequest(**name))
    await router.stub.FinishMigration(pb.FinishMigrationRequest(**name))
    assert "back" in await same_in_both(router)
    assert (await search(router)).collection == "new"
    assert not (await get(router)).HasField("change")
    await router.stub.DeleteCollection(pb.DeleteCollectionRequest(name="old"))


@pytest.mark.parametrize("model", ["wide", "turned"])
async def test_live_searches_show_what_both_find(encoder, tmp_path, model):
    """Each slice's share of common hits; a head that turns all alike finds the same. It is kept
    over a restart, to the migration's end, and the target has queries to be calibrated with."""
    async with running(encoder, tmp_path, shadow_max_busy=1.0) as router:
        await set_up(router)
        await run(router, asked(model=model, hold=True))
        for number in range(20):
            request = pb.SearchRequest(
                collection="current", text=f"text of p{number}", limit=5, slice="ab"[number % 2]
            )
            await router.stub.Search(request)
        async with asyncio.timeout(10):
            seen = []
            while sum(one.num_compared for one in seen) < 20:
                await asyncio.sleep(0.02)
                seen = (await get(router)).change.agreements
        assert sorted(one.slice for one in seen) == ["a", "b"]
        overlaps = [one.overlap for one in seen]
        assert overlaps == sorted(overlaps)
        if model == "turned":
            assert overlaps == [1.0, 1.0]
        else:  # random vectors: the searched document, and others by chance
            assert all(0.2 <= overlap < 0.7 for overlap in overlaps)
        assert [one.num_compared for one in seen] == [10, 10]
        recent = await router.service._parts.recent.of(
            await router.service._parts.store.find("new")
        )
        wanted = sorted(
            encode(model, f"text of p{n}", len(recent.vectors_QD[0]))[0] for n in range(20)
        )
        np.testing.assert_allclose(sorted(recent.vectors_QD[:, 0]), wanted, atol=1e-6)
    async with running(encoder, tmp_path) as again:
        assert list((await get(again)).change.agreements) == list(seen)
        parts = again.service._parts
        change_id = (await parts.store.find("new")).change["id"]
        await again.stub.CutOver(pb.CutOverRequest(name="new"))
        assert not (await get(again)).HasField("change")
        assert parts.agreements.of(change_id) == {}


async def test_neither_half_can_be_deleted_meanwhile(router):
    """Source and target are refused by name, with what ends the migration."""
    await set_up(router)
    await run(router, asked(hold=True, alias="other"))
    for name in ("old", "new"):
        await router.stub.SetCollectionAlias(
            pb.SetCollectionAliasRequest(
                alias="current", collection="new" if name == "old" else "old"
            )
        )
        drop = router.stub.DeleteCollection(pb.DeleteCollectionRequest(name=name))
        await refused(drop, STATE, "is part of the migration to 'new'")


@pytest.mark.parametrize("num_pages", [0, 2])
async def test_a_migration_that_its_router_left_is_gone_on_with(encoder, tmp_path, num_pages):
    """The next router goes on at the page that was not copied; no page is encoded twice."""
    async with running(encoder, tmp_path) as first:
        await set_up(first)
        first.encoder.fail_after = num_pages
        call = first.stub.MigrateCollection(MIGRATE)
        async for answer in call:
            if answer.change.step.startswith("waits"):
                break
        await first.service._parts.changes.stop()
        call.cancel()
        done = (await first.service._parts.store.find("new")).change["num_copied"]
        assert done == 10 * num_pages
    encoder[0].fail_after = None
    encoder[0].embeds.clear()
    async with running(encoder, tmp_path, change_lease_s=0.4) as second:
        await write(second, "in between")
        await settled(second)
        assert (await search(second)).collection == "new"
        await same_in_both(second)
        num_wide = sum(len(sent.texts) for sent in encoder[0].embeds if sent.model == "wide")
        assert num_wide <= 35 - done + 3  # the new point, twice perhaps, and the search


async def test_an_encoder_that_is_away_is_waited_for(router):
    """The migration says that it waits, and goes on when the encoder is back."""
    await set_up(router)
    router.encoder.fail_after = 2
    call = router.stub.MigrateCollection(MIGRATE)
    async for answer in call:
        if answer.change.step.startswith("waits"):
            assert "the encoder cannot be reached" in answer.change.step
            router.encoder.fail_after = None
    assert (await search(router)).collection == "new"
    await same_in_both(router)


async def test_what_cannot_go_on_says_why_and_can_be_cancelled(encoder, tmp_path):
    """After the patience is over the target tells the error; CancelChange deletes it."""
    async with running(encoder, tmp_path, change_patience_s=0) as router:
        await set_up(router)
        router.encoder.fail_after = 2
        await refused(router.stub.MigrateCollection(MIGRATE), UNAVAILABLE, "the encoder")
        router.encoder.fail_after = None
        assert "the encoder cannot be reached" in (await get(router)).change.error
        assert (await search(router)).collection == "old"
        await router.stub.CancelChange(pb.CancelChangeRequest(name="new"))
        assert await names(router) == ["old"]
        await write(router, "again")
        await run(router)
        assert (await search(router)).collection == "new"


async def test_a_migration_under_way_can_be_cancelled(router):
    """Its target goes, its caller hears so, and the source is free."""
    await set_up(router)
    router.encoder.may_answer.clear()
    call = router.stub.MigrateCollection(MIGRATE)
    async for answer in call:
        assert answer.change.total == 35
        break
    second = router.stub.MigrateCollection(asked(target="third"))
    await refused(second, STATE, "'old' is being migrated to 'new'")
    await router.stub.CancelChange(pb.CancelChangeRequest(name="new"))
    await refused(call, STATE, "the change was cancelled")
    router.encoder.may_answer.set()
    assert await names(router) == ["old"]
    await write(router, "again")
    await run(router)
    await same_in_both(router)


async def test_a_model_that_differs_by_its_head_needs_no_text(router):
    """Stored vectors are turned: none is encoded, not even what is written meanwhile, and scores
    at full size stay; the way back works alike."""
    await set_up(router)
    bare = pb.UpsertRequest(
        collection="old", points=[pb.Point(id="bare")],
        vectors=pack(encode("small", "", 32)[None]), space_id="space-small",
    )  # fmt: skip
    await upsert(router, bare)
    before = await search(router)
    router.encoder.embeds.clear()
    await run(router, asked(model="turned", watch=True))
    assert router.encoder.embeds == []
    await same_in_both(router, "turned", 32)
    after = await search(router)
    assert (after.space_id, after.hits[0].id) == ("space-turned", "p3")
    assert after.hits[0].score == pytest.approx(before.hits[0].score, abs=1e-6)
    turned = pb.UpsertRequest(
        collection="current", points=[pb.Point(id="late")],
        vectors=pack(encode("turned", "", 32)[None]), space_id="space-turned",
    )  # fmt: skip
    await upsert(router, turned)
    await router.stub.RollBack(pb.RollBackRequest(name="new"))
    assert "late" in await same_in_both(router, "turned", 32)


async def test_recent_queries_come_along_where_they_can_be_turned(encoder, tmp_path):
    """A calibrated source's target is calibrated too, with the recent queries of the source where a
    head turns them; a model that needs texts, which nobody has kept, begins without any."""
    few = {"calibrate_queries": 100, "migrate_page_points": 100}
    async with running(encoder, tmp_path, **few) as router:
        await set_up(router, 100)
        parts = router.service._parts
        asked_QD = np.stack([encode("small", f"query {number}", 32) for number in range(420)])
        old = await parts.store.find("old")
        for number, query_D in enumerate(asked_QD):
            parts.recent.observe(old, query_D, "ab"[number % 2])
        await run(router, pb.MigrateCollectionRequest(source="old", target="third", model="wide"))
        assert (await parts.recent.of(await parts.store.find("third"))).slices == []

        async for answer in router.stub.Calibrate(pb.CalibrateRequest(collection="old")):
            assert answer
        await run(router, asked(model="turned"))
        kept = await parts.recent.of(await parts.store.find("new"))
        np.testing.assert_allclose(kept.vectors_QD, asked_QD @ turn(32).T, atol=1e-6)
        assert kept.slices == ["a", "b"] * 210
        request = pb.GetCalibrationRequest(collection="new")
        measured = (await router.stub.GetCalibration(request)).calibration
        assert (measured.source, measured.num_queries) == (pb.QUERY_SOURCE_RECENT, 50)


async def test_a_write_that_the_target_cannot_take_is_refused_whole(router):
    """A point without a text, while a migration needs one: in neither collection, and said."""
    await set_up(router)
    await run(router, asked(hold=True))
    bare = pb.UpsertRequest(
        collection="current", points=[pb.Point(id="bare")],
        vectors=pack(encode("small", "", 32)[None]), space_id="space-small",
    )  # fmt: skip
    await refused(upsert(router, bare), STATE, "'wide', which needs texts")
    assert "bare" not in await same_in_both(router)


async def test_a_collection_that_is_only_built_parts_in_the_end(router):
    """Without an alias nothing is switched; there is nothing to hold then, either."""
    await set_up(router)
    only = pb.MigrateCollectionRequest(source="old", target="new", model="wide")
    await run(router, only)
    assert (await search(router)).collection == "old"
    await same_in_both(router)
    await write(router, "later")
    assert "later" not in await whole(router, "new", "wide", 48)
    held = pb.MigrateCollectionRequest(source="old", target="third", model="wide", hold=True)
    call = router.stub.MigrateCollection(held)
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "without an alias")
    assert await names(router) == ["new", "old"]


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
    await refused(
        router.stub.MigrateCollection(MIGRATE), STATE, "1 points of collection 'old' have no text"
    )
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
async def test_a_bad_migration_is_refused_before_any_work(router, fields, code, says):
    """What could not end well does not begin; an existing target is left alone."""
    await set_up(router, 3)
    request = asked()
    for field, value in fields.items():
        if field == "sizes":
            request.sizes.extend(value)
        else:
            setattr(request, field, value)
    await refused(router.stub.MigrateCollection(request), code, says)
    assert await names(router) == ["old"]
    assert (await search(router)).hits[0].id
    await upsert(router, pb.UpsertRequest(collection="old", points=make_points("again")))
