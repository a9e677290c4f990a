"""A tenant's calls over gRPC answer as if no other tenant were there.

Random calls of two tenants and an operator go to one router that they share. Each tenant's calls
go, alone, to a router of its own too, where there are no tenants at all: what it is told must be
the same, down to scores, counts and errors. Only times, and what a promise says for people, are
left out.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient

from services.router.service import RouterService
from services.router.storage.qdrant import QdrantStore
from services.shared.keys import Keys
from services.shared.pb import router_pb2 as pb
from services.shared.vectors import pack
from tests.router.conftest import Running, encode, running

# The in-memory twin always searches exactly and says so once.
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

DIM = 32
TENANTS = ("acme", "globex")
OWN = ("own-acme", "own-globex")
# Scanned, so that which hits a plan finds is no matter of chance; searches are all watched.
SETTINGS = {"edge_indexing_threshold_kb": 10**6, "shadow_share": 1.0, "shadow_max_busy": 1.0}


def write_keys(path, *names: str) -> Keys:
    entries = [
        {"name": name, "sha256": hashlib.sha256(f"k-{name}".encode()).hexdigest()}
        | ({} if name == "operator" else {"tenant": name})
        for name in names
    ]
    path.write_text(json.dumps(entries))
    return Keys(None, path)


@dataclass
class World:
    """The router that all share, and the ones where each tenant is alone."""

    shared: Running
    alone: dict[str, Running]

    async def shared_call(self, who: str, rpc: str, request):
        metadata = (("authorization", f"Bearer k-{who}"),)
        return await told(getattr(self.shared.stub, rpc), rpc, request, metadata)

    async def alone_call(self, who: str, rpc: str, request):
        return await told(getattr(self.alone[who].stub, rpc), rpc, request, ())


async def told(call, rpc: str, request, metadata):
    """All that a caller learns, but for times."""
    try:
        if rpc == "Upsert":
            answers = [answer async for answer in call(iter(request), metadata=metadata)]
        else:
            answers = [await call(request, metadata=metadata)]
    except grpc.aio.AioRpcError as error:
        # What a plan costs is known to nobody here, and each is told so in other words.
        is_state = error.code() == grpc.StatusCode.FAILED_PRECONDITION
        return [error.code().name, "" if is_state else error.details()]
    return [tidied(MessageToDict(answer)) for answer in answers]


_TIMES = {"encodeSeconds", "searchSeconds", "exactSeconds", "seconds"}
# How much of the live searches was measured yet is a matter of time.
_MEASURED = {"numMeasured", "mean", "lower", "upper"}
_FOR_PEOPLE = {"note"}
# Only an operator is told them.
_ALIASES = {"aliases"}


def tidied(value):
    if isinstance(value, dict):
        left_out = _TIMES | _MEASURED | _FOR_PEOPLE | _ALIASES
        return {key: tidied(part) for key, part in value.items() if key not in left_out}
    if isinstance(value, list):
        return [tidied(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


@pytest.fixture(params=["edge", "memory"])
async def world(request, encoder, tmp_path, monkeypatch) -> AsyncIterator[World]:
    if request.param == "memory":
        # The twin in memory has no address that settings could say.
        monkeypatch.setattr(
            "services.router.service._build_store",
            lambda *_: QdrantStore(AsyncQdrantClient(":memory:")),
        )
    keys = write_keys(tmp_path / "keys", "operator", *TENANTS)
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(
            running(encoder, tmp_path / "shared", keys, **SETTINGS)
        )
        alone = {
            tenant: await stack.enter_async_context(running(encoder, tmp_path / tenant, **SETTINGS))
            for tenant in TENANTS
        }
        await set_up(shared.service, dict(zip(OWN, TENANTS, strict=True)))
        for tenant, router in alone.items():
            await set_up(router.service, {f"own-{tenant}": None})
        yield World(shared, alone)


async def set_up(service: RouterService, owners: dict[str, str | None]) -> None:
    """A collection for all, with an alias, and some for one tenant, as vector stores have them."""
    await service._catalog.create("docs", "small", ())
    await service._catalog.set_alias("latest", "docs")
    for name, tenant in owners.items():
        await service._catalog.create(name, "small", (), tenant)


COLLECTIONS = ("docs", "latest", *OWN, "missing")
IDS = ("a", "b", "c", "d", "acme", "globex")
collections = st.sampled_from(COLLECTIONS[:1] * 4 + COLLECTIONS)
ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)
words = st.sampled_from(["red", "green", "x" * 120])
# An attribute that is called as the payload's own field must not pass for it.
attributes = st.dictionaries(
    st.sampled_from(["tenant", "tag"]), st.sampled_from([*TENANTS, "other"]), max_size=2
)


def text_of(id_: str, word: str) -> str:
    return f"{id_} {word}"


@st.composite
def upserts(draw, collections=collections, max_batches=2):
    requests = []
    for _ in range(draw(st.integers(1, max_batches))):
        chosen, word = draw(ids), draw(words)
        texts = [text_of(id_, word) for id_ in chosen]
        points = [
            pb.Point(
                id=id_,
                text=text,
                attributes={
                    key: pb.AttributeValue(string_value=value)
                    for key, value in draw(attributes).items()
                },
            )
            for id_, text in zip(chosen, texts, strict=True)
        ]
        request = pb.UpsertRequest(collection=draw(collections), points=points)
        if draw(st.booleans()):
            request.vectors = pack(np.stack([encode("small", text, DIM) for text in texts]))
            request.space_id = "space-small"
        requests.append(request)
    return requests


def equals(key: str, value: str) -> pb.Filter:
    return pb.Filter(equals=pb.Equals(key=key, value=pb.AttributeValue(string_value=value)))


leaves = st.builds(equals, st.sampled_from(["tenant", "tag"]), st.sampled_from([*TENANTS, "x"]))
filters = leaves | st.builds(
    lambda inner: pb.Filter(negated=inner), leaves
) | st.builds(
    lambda *arms: pb.Filter(any=pb.FilterList(filters=[*arms, pb.Filter(negated=arms[0])])),
    leaves, leaves,
)  # fmt: skip
EXACT = pb.Plan(stages=[pb.Stage(dim=DIM, exact=True)])
STAGES = pb.Plan(stages=[pb.Stage(dim=8, candidates=6), pb.Stage(dim=DIM)])


@st.composite
def searches(draw):
    request = pb.SearchRequest(
        collection=draw(collections),
        limit=draw(st.integers(0, 6)),
        explain=draw(st.booleans()),
        measure_recall=draw(st.booleans()),
        slice=draw(st.sampled_from(["", "de", "tenant", "de/tenant"])),
        filter=draw(st.none() | filters),
    )
    text = text_of(draw(st.sampled_from(IDS)), draw(words))
    if draw(st.booleans()):
        request.text = text
    else:
        request.vector, request.space_id = pack(encode("small", text, DIM)[None]), "space-small"
    match draw(st.sampled_from(["", "plan", "stages", "target", "budget"])):
        case "plan":
            request.plan.CopyFrom(EXACT)
        case "stages":
            request.plan.CopyFrom(STAGES)
        case "target":
            request.recall_target = 0.9
        case "budget":
            request.max_engine_ms = 5
    return request


# Every RPC that tenants may call; one that is added fails the test below until it is here.
CALLS = {
    "Upsert": upserts(),
    "Delete": st.builds(pb.DeleteRequest, collection=collections, ids=ids),
    "Search": searches(),
    "GetCollection": st.builds(pb.GetCollectionRequest, name=collections),
    "ListCollections": st.just(pb.ListCollectionsRequest()),
    "GetRecall": st.builds(pb.GetRecallRequest, collection=collections),
}
# Everybody has something from the start.
beginnings = st.tuples(
    *(
        st.tuples(st.just(who), st.tuples(st.just("Upsert"), upserts(st.just("docs"), 1)))
        for who in ("operator", *TENANTS)
    )
)
calls = st.one_of(
    *(st.tuples(st.just(rpc), requests) for rpc, requests in CALLS.items()),
    st.tuples(st.just("Upsert"), upserts()),
    st.tuples(st.just("Search"), searches()),
)


def test_every_rpc_for_tenants_is_tried():
    """An RPC that is opened to tenants is in the property below, or this fails."""
    rpcs = {name for name in RouterService.open_to_tenants if " /" not in name}
    assert rpcs == set(CALLS)


async def test_no_tenant_learns_of_another(world: World) -> None:
    """Whatever the others do, each tenant is told what it would be told alone."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=50, suppress_health_check=list(HealthCheck), database=None)
    @given(
        beginnings,
        st.lists(
            st.tuples(st.sampled_from(["operator", *TENANTS * 2]), calls), min_size=6, max_size=16
        ),
    )
    def are_alone(beginning: tuple, script: list) -> None:
        # The routers live in the test's loop.
        running = run(world, [*beginning, *script])
        asyncio.run_coroutine_threadsafe(running, loop).result()

    await asyncio.to_thread(are_alone)


async def run(world: World, script: list) -> None:
    for who in ("operator", *TENANTS):
        for name in ("docs", *OWN):
            await call_both(world, who, "Delete", pb.DeleteRequest(collection=name, ids=IDS))
    for who, (rpc, request) in script:
        await call_both(world, who, rpc, request)
    for who in TENANTS:
        for name in COLLECTIONS:
            await call_both(world, who, "GetCollection", pb.GetCollectionRequest(name=name))
            await call_both(world, who, "GetRecall", pb.GetRecallRequest(collection=name))


async def call_both(world: World, who: str, rpc: str, request) -> None:
    answered = await world.shared_call(who, rpc, request)
    if who in TENANTS:
        assert answered == await world.alone_call(who, rpc, request), (who, rpc, request)
