"""Searches that lost hits are kept for operators: what is told, how many, and to whom."""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import generate_latest

from services.router.recall.lost import MAX_TEXT_CHARS
from services.router.service import RouterService
from services.shared.auth import Principal, Scope
from services.shared.errors import PermissionDenied
from services.shared.pb import router_pb2 as pb
from tests.router.conftest import Running, running
from tests.router.test_service import create, fill
from tests.router.test_tenants import write_keys

# The vectors are random, so that a quarter of the numbers finds few of the true ten.
BOLD = pb.Plan(stages=[pb.Stage(dim=8, candidates=10, exact=True), pb.Stage(dim=32)])
EXACT = pb.Plan(stages=[pb.Stage(dim=32, exact=True)])
WATCHED = {"shadow_share": 1.0, "shadow_max_busy": 1.0, "lost_searches": 3}


@pytest.fixture
async def router(encoder, tmp_path) -> AsyncIterator[Running]:
    async with running(encoder, tmp_path, **WATCHED) as started:
        await create(started)
        await fill(started, rows=90)
        yield started


async def search(router, text, plan=BOLD, slice_="", **more) -> list[str]:
    """Search, wait until it is measured, and return the ids of the hits."""
    before = await num_measured(router)
    request = pb.SearchRequest(collection="docs", text=text, plan=plan, slice=slice_, **more)
    answer = await router.stub.Search(request)
    async with asyncio.timeout(20):
        while await num_measured(router) == before:
            await asyncio.sleep(0.01)
    return [hit.id for hit in answer.hits]


async def num_measured(router) -> int:
    request = pb.GetRecallRequest(collection="docs")
    return sum(seen.num_measured for seen in (await router.stub.GetRecall(request)).slices)


async def lost(router, newest=None, **more) -> list[pb.LostSearch]:
    """Return what is told, once `newest` is: a search is counted just before it is kept."""
    request = pb.ListLostSearchesRequest(collection="docs", **more)
    async with asyncio.timeout(20):
        while True:
            searches = list((await router.stub.ListLostSearches(request)).searches)
            if newest is None or (searches and searches[0].text == newest):
                return searches
            await asyncio.sleep(0.01)


async def test_what_is_told_is_what_the_search_lost(router):
    """Exact search's ids, parted into lost and found; of a search that lost any."""
    exact = await search(router, "which are the true ones", EXACT)
    found = await search(router, "which are the true ones", slice_="bold")
    (told,) = await lost(router, "which are the true ones")
    assert set(told.lost_ids) == set(exact) - set(found) != set()
    assert set(told.found_ids) == set(exact) & set(found)
    assert told.recall == pytest.approx(len(told.found_ids) / 10)
    assert (told.num_lost, told.num_found) == (len(told.lost_ids), len(told.found_ids))
    assert (told.text, told.text_cut, told.slice) == ("which are the true ones", False, "bold")
    assert [stage.dim for stage in told.plan.stages] == [8, 32]
    asked = pb.GetRecallRequest(collection="docs", history_of="bold")
    answer = await router.stub.GetRecall(asked)
    history = {seen.slice: list(seen.history) for seen in answer.slices}
    assert history[""] == []
    assert history["bold"][-1].mean == pytest.approx(told.recall)
    assert answer.since <= history["bold"][-1].at


async def test_the_last_ones_are_kept_and_no_more(router):
    """Newest first, of all slices or of one; a deleted collection leaves none."""
    for number in range(4):
        await search(router, f"question {number}", slice_="ab"[number % 2])
    await search(router, "x" * 1000)
    last = ["x" * 1000, "question 3", "question 2"]
    assert [told.text for told in await lost(router, last[0])] == last
    assert [told.text for told in await lost(router, slice="b")] == ["question 3"]
    assert await lost(router, slice="gone") == []
    await router.stub.DeleteCollection(pb.DeleteCollectionRequest(name="docs"))
    await create(router)
    assert await lost(router) == []
    assert not (await router.stub.GetRecall(pb.GetRecallRequest(collection="docs"))).slices


async def test_a_text_is_in_no_log_metric_or_file(router, tmp_path, caplog):
    """Not where a search is measured, and not where it is told."""
    caplog.set_level(logging.DEBUG)
    await search(router, "zanzibar")
    assert [told.text for told in await lost(router, "zanzibar")] == ["zanzibar"]
    assert "zanzibar" not in caplog.text
    assert b"zanzibar" not in generate_latest(router.registry)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"zanzibar" in path.read_bytes()]


async def test_a_long_text_is_cut_and_none_is_kept_if_none_shall_be(encoder, tmp_path):
    """It says that it was cut; and with 0 nothing is kept."""
    async with running(encoder, tmp_path / "a", **WATCHED, max_text_chars=5000) as router:
        await create(router)
        await fill(router, rows=90)
        await search(router, "y" * (MAX_TEXT_CHARS + 1))
        (told,) = await lost(router, "y" * MAX_TEXT_CHARS)
        assert (told.text, told.text_cut) == ("y" * MAX_TEXT_CHARS, True)
    async with running(encoder, tmp_path / "b", **(WATCHED | {"lost_searches": 0})) as router:
        await create(router)
        await fill(router, rows=90)
        for number in range(3):
            await search(router, f"question {number}")
        assert await lost(router) == []


async def test_only_an_operators_admin_key_may_ask(encoder, tmp_path):
    """A tenant may not, nor who acts for one, nor a key for anything else than administration."""
    keys = write_keys(tmp_path / "keys", "operator", "acme")
    acting = (("authorization", "Bearer k-operator"), ("x-matryoshka-tenant", "acme"))
    async with running(encoder, tmp_path / "data", keys) as router:
        request = pb.ListLostSearchesRequest(collection="docs")
        for metadata in ((("authorization", "Bearer k-acme"),), acting):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await router.stub.ListLostSearches(request, metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    rules = ("ListLostSearches", RouterService.open_to_tenants, RouterService.scopes)
    Principal("admin", scopes=Scope.ADMIN).check_may(*rules)
    for scope in set(Scope) - {Scope.ADMIN}:
        with pytest.raises(PermissionDenied, match="scope admin"):
            Principal("other", scopes=scope).check_may(*rules)
