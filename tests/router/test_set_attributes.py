"""Attributes of points change alone: nothing is encoded; both halves of a migration get them."""

import asyncio

import grpc
import httpx
import pytest

from services.shared.pb import encoder_pb2
from services.shared.pb import router_pb2 as pb
from tests.router.test_migrate import MIGRATE, get, same_in_both, set_up
from tests.router.test_service import INVALID, create, fill, refused
from tests.router.test_tenants_http import served


def request(ids, name="docs", **attributes):
    values = {key: pb.AttributeValue(string_value=value) for key, value in attributes.items()}
    return pb.SetAttributesRequest(collection=name, ids=ids, attributes=values)


async def attributes_of(router, name="docs"):
    page = await router.service._parts.store.scroll(name, None, 1000)
    return {point.id: point.attributes for point in page.points}


async def test_attributes_are_replaced_and_nothing_is_encoded(router):
    """Those there were are gone; texts, vectors and other points stay; unknown ids are told."""
    await create(router)
    await fill(router)
    before = await router.service._parts.store.scroll("docs", None, 1000, with_vectors=True)
    router.encoder.embeds.clear()
    ids = ["p1", "gone", "p2", "p1", "away"]
    answer = await router.stub.SetAttributes(request(ids, lang="en"))
    assert list(answer.unknown_ids) == ["gone", "away"]
    assert router.encoder.embeds == []
    after = await router.service._parts.store.scroll("docs", None, 1000, with_vectors=True)
    assert [point.text for point in after.points] == [point.text for point in before.points]
    assert (after.vectors_BD == before.vectors_BD).all()
    found = await attributes_of(router)
    assert found.pop("p1") == found.pop("p2") == {"lang": "en"}
    assert found == {f"p{row}": {"row": row} for row in range(40) if row not in (1, 2)}
    english = pb.Filter(equals=pb.Equals(key="lang", value=pb.AttributeValue(string_value="en")))
    hits = await router.stub.Search(
        pb.SearchRequest(collection="docs", text="text of p9", filter=english)
    )
    assert {hit.id for hit in hits.hits} == {"p1", "p2"}
    await router.stub.SetAttributes(request(["p1"]))
    assert (await attributes_of(router))["p1"] == {}


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (request([]), INVALID, "ids must be 1 to 100, got 0"),
        (request(["a"] * 101), INVALID, "ids must be 1 to 100, got 101"),
        (request(["a"], **{"no key": "x"}), INVALID, "attribute's key must be 1 to 64 letters"),
        (request(["a"], name="nobody"), grpc.StatusCode.NOT_FOUND, "'nobody'"),
        (
            pb.SetAttributesRequest(
                collection="docs", ids=["a"], attributes={"a": pb.AttributeValue()}
            ),
            INVALID,
            "needs a string_value",
        ),
    ],
)
async def test_bad_input_is_refused(router, bad, code, says):
    """One sentence that says what is accepted."""
    await create(router)
    await refused(router.stub.SetAttributes(bad), code, says)


async def test_both_halves_of_a_migration_get_them(router):
    """Of points that are there already, that come later, and that are just on their way."""
    await set_up(router)
    asked = pb.MigrateCollectionRequest(watch=True)
    asked.MergeFrom(MIGRATE)
    ids = [f"p{row}" for row in range(35)]

    async def set_while_pages_are_encoded():
        for page in range(4):
            while len(router.encoder.embeds) <= before + page:
                await asyncio.sleep(0.01)
            await router.stub.SetAttributes(request(ids, "current", page=str(page)))
            router.encoder.may_answer.set()
            router.encoder.may_answer.clear()

    before = len(router.encoder.embeds)
    router.encoder.may_answer.clear()
    setting = asyncio.create_task(set_while_pages_are_encoded())
    async for _ in router.stub.MigrateCollection(asked):
        pass
    await setting
    router.encoder.may_answer.set()
    assert (await get(router)).change.step == "watch"
    await router.stub.SetAttributes(request(["p3"], "current", last="one"))
    old, new = await attributes_of(router, "old"), await attributes_of(router, "new")
    assert old == new
    assert new == {id_: {"page": "3"} for id_ in ids} | {"p3": {"last": "one"}}
    await same_in_both(router)


async def test_a_file_of_a_vector_store_is_not_encoded_again(router, tmp_path):
    """Its chunks get its other attributes, also those that came while it was encoded."""
    async with served(router, tmp_path) as url, httpx.AsyncClient(base_url=url) as client:
        upload = {"file": ("a.txt", b"a wooden doll"), "purpose": (None, "assistants")}
        file_id = (await client.post("/v1/files", files=upload)).json()["id"]
        store_id = (await client.post("/v1/vector_stores", json={})).json()["id"]
        router.encoder.may_answer.clear()
        files = f"/v1/vector_stores/{store_id}/files"
        await client.post(files, json={"file_id": file_id, "attributes": {"n": 0}})
        while not router.encoder.embeds:
            await asyncio.sleep(0.01)
        for number in (1, 2):
            changed = {"attributes": {"n": number, "in stock": True}}
            answer = await client.post(f"{files}/{file_id}", json=changed)
            assert answer.json()["attributes"] == changed["attributes"]
            router.encoder.may_answer.set()
            is_new = {"type": "eq", "key": "n", "value": number}
            body = {"query": "toy", "filters": is_new}
            async with asyncio.timeout(20):
                while not (
                    await client.post(f"/v1/vector_stores/{store_id}/search", json=body)
                ).json()["data"]:
                    await asyncio.sleep(0.01)
            assert (await client.get(f"{files}/{file_id}")).json()["status"] == "completed"
    encoded = [sent for sent in router.encoder.embeds if sent.role == encoder_pb2.ROLE_DOCUMENT]
    assert [list(sent.texts) for sent in encoded] == [["a wooden doll"]]
