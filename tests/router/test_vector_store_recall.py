"""Vector stores are calibrated, and their live recall is seen, over HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from services.shared.pb import router_pb2 as pb
from tests.router.conftest import Running, running
from tests.router.test_tenants import write_keys
from tests.router.test_tenants_http import served

STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
TEXT = " ".join(f"word{number}" for number in range(4000))
QUERIES = [{"text": f"query {number}", "slice": "ab"[number % 2]} for number in range(160)]
OPERATOR, ACME = ({"authorization": f"Bearer k-{who}"} for who in ("operator", "acme"))


@pytest.fixture
async def world(encoder, tmp_path) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A router with an operator and a tenant; all searches are repeated exactly."""
    keys = write_keys(tmp_path / "keys", "operator", "acme")
    watched = {"shadow_share": 1.0, "shadow_max_busy": 1.0}
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(running(encoder, tmp_path, keys, **watched))
        url = await stack.enter_async_context(served(router, tmp_path))
        client = httpx.AsyncClient(base_url=f"{url}/v1", timeout=60)
        yield router, await stack.enter_async_context(client)


async def make_store(client, headers) -> str:
    """A store with a file of some 160 chunks; return its path."""
    upload = {"file": ("a.txt", TEXT.encode()), "purpose": (None, "assistants")}
    file = (await client.post("/files", files=upload, headers=headers)).json()
    store = (await client.post("/vector_stores", json={}, headers=headers)).json()
    path = f"/vector_stores/{store['id']}"
    attached = {"file_id": file["id"], "chunking_strategy": STATIC}
    await client.post(f"{path}/files", json=attached, headers=headers)
    async with asyncio.timeout(30):
        while (await client.get(path, headers=headers)).json()["status"] != "completed":
            await asyncio.sleep(0.02)
    return path


async def test_a_store_is_calibrated_and_its_searches_keep_their_target(world):
    """The answer is what the RPC tells, and is there later; searches may then state a budget."""
    router, client = world
    path = await make_store(client, OPERATOR)
    body = {"queries": QUERIES, "recall_target": 0.8, "max_num_results": 5, "objective": "memory"}
    answer = await client.post(f"{path}/calibrate", json=body, headers=OPERATOR)
    assert answer.status_code == 200, answer.text
    calibration = answer.json()
    again = await client.get(f"{path}/calibration", headers=OPERATOR)
    assert again.json() == calibration
    store_id = path.rpartition("/")[2]
    told = await router.stub.GetCalibration(
        pb.GetCalibrationRequest(collection=store_id),
        metadata=[("authorization", "Bearer k-operator")],
    )
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    wire = MessageToDict(told.calibration, **options)
    assert (calibration["object"], calibration["vector_store_id"], calibration["source"]) == (
        "vector_store.calibration", store_id, "given",
    )  # fmt: skip
    for ours, theirs in (("max_num_results", "limit"), ("recall_target", "recall_target"),
                         ("num_queries", "num_queries"), ("chosen", "chosen"),
                         ("slice_queries", "slice_queries"), ("slice_chosen", "slice_chosen"),
                         ("confidence", "confidence")):  # fmt: skip
        assert calibration[ours] == wire[theirs], ours
    assert calibration["slice_queries"] == {"a": 40, "b": 40}
    assert calibration["objective"] == "memory"
    for plan, measured in zip(calibration["plans"], told.calibration.plans, strict=True):
        assert [stage["dim"] for stage in plan["plan"]] == [s.dim for s in measured.plan.stages]
        assert plan["bytes_per_point"] == measured.memory_bytes
        assert plan["recalls"]["a"]["bound"] == measured.recalls["a"].bound
    routing = {"recall_target": 0.8, "max_bytes_per_point": 100_000}
    search = {"query": "query 7", "routing": routing, "max_num_results": 5}
    found = (await client.post(f"{path}/search", json=search, headers=OPERATOR)).json()
    assert found["routing"]["promise"]["met"]
    assert found["routing"]["plan"] == calibration["plans"][calibration["chosen"]]["plan"]


async def test_the_recall_of_live_searches_is_seen_by_slice(world):
    """Also a tenant's of its own store; who may not see a store finds none."""
    _, client = world
    for headers, slice_ in ((OPERATOR, "de"), (ACME, "fr")):
        path = await make_store(client, headers)
        routing = {"slice": slice_, "plan": [{"dim": 8, "candidates": 10}, {"dim": 32}]}
        for number in range(6):
            body = {"query": f"query {number}", "routing": routing}
            found = await client.post(f"{path}/search", json=body, headers=headers)
            assert found.status_code == 200, found.text
        async with asyncio.timeout(30):
            while True:
                (seen,) = (await client.get(f"{path}/recall", headers=headers)).json()["data"]
                if seen["num_measured"] == 6:
                    break
                await asyncio.sleep(0.02)
        assert (seen["slice"], seen["num_searches"], seen["alarm"]) == (slice_, 6, False)
        assert seen["recall_target"] is None
        assert seen["lower"] <= seen["mean"] <= seen["upper"]
        assert 1 - seen["mean"] == pytest.approx(sum(seen["lost_to"].values()))
        assert seen["lost_to"]["prefix"] > 0
        hidden = await client.get(f"{path}/recall", headers=ACME if headers is OPERATOR else {})
        assert hidden.status_code == (404 if headers is OPERATOR else 401)


async def test_tenants_may_not_calibrate_nor_be_calibrated(world):
    """What would be measured holds for none of a tenant's searches, and is not hidden."""
    _, client = world
    path = await make_store(client, ACME)
    for method, call in (("POST", "calibrate"), ("GET", "calibration")):
        refused = await client.request(method, f"{path}/{call}", headers=ACME)
        assert refused.status_code == 403
    refused = await client.post(
        f"{path}/calibrate", content=json.dumps({"queries": QUERIES}), headers=OPERATOR
    )
    assert refused.status_code == 400
    assert "is a tenant's; tenants' searches run without" in refused.json()["error"]["message"]
