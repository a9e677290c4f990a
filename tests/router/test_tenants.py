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

from services.router.filters import OfTenant
from services.router.hybrid.text_index import TextIndex
from services.router.service import RouterService
from services.router.storage.qdrant import QdrantStore
from services.router.storage.store import point_uuid
from services.router.tenants import owner
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
# How rare a word is is counted at each search, so that time changes nothing.
SETTINGS = {
    "edge_indexing_threshold_kb": 10**6, "shadow_share": 1.0, "shadow_max_busy": 1.0,
    "rarity_age_s": 0,
}  # fmt: skip


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
    if rpc == "GetRecall":  # how many of the searches were measured yet is a matter of time
        return [[(s.slice, s.num_searches) for s in answer.slices] for answer in answers]
    return [tidied(MessageToDict(answer)) for answer in answers]


_TIMES = {"encodeSeconds", "searchSeconds", "exactSeconds", "seconds"}
_FOR_PEOPLE = {"note"}
# Only an operator is told them.
_ALIASES = {"aliases"}


def tidied(value):
    if isinstance(value, dict):
        left_out = _TIMES | _FOR_PEOPLE | _ALIASES
        return {key: tidied(part) for key, part in value.items() if key not in left_out}
    if isinstance(value, list):
        return [tidied(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


@pytest.fixture(params=["edge", "memory"])
async def world(request, encoder, tmp_path, monkeypatch) -> AsyncIterator[World]:
    if request.param == "memory":
        # The twin in memory has no address that settings could say.
        monkeypatch.setattr(
            "services.router.parts._build_store",
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
    by_words = TextIndex("any")
    await service._parts.catalog.create("docs", "small", (), text_index=by_words)
    await service._parts.catalog.set_alias("latest", "docs")
    for name, tenant in owners.items():
        await service._parts.catalog.create(name, "small", (), tenant, by_words)


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
    if draw(st.booleans()):
        # Points tie by words; how many are fused must leave none of them to chance.
        request.hybrid.CopyFrom(pb.Hybrid(text=text, candidates=100))
        request.hybrid.weight = draw(st.sampled_from([0.1, 0.7]))
    return request


# Every RPC that tenants may call; one that is added fails the test below until it is here.
CALLS = {
    "Upsert": upserts(),
    "Delete": st.builds(pb.DeleteRequest, collection=collections, ids=ids),
    "SetAttributes": st.builds(
        lambda collection, ids, attributes: pb.SetAttributesRequest(
            collection=collection,
            ids=ids,
            attributes={k: pb.AttributeValue(string_value=v) for k, v in attributes.items()},
        ),
        collections,
        ids,
        attributes,
    ),
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


async def test_an_operator_is_told_whose_a_point_is(shared: Running) -> None:
    """A tenant is not, nor who acts for it: by which name it is known is the operator's."""
    for who in ("operator", *TENANTS):
        await put(shared, who, "docs", "a", "b")
    hits = (await search(shared, "operator", limit=10)).hits
    assert sorted((hit.id, hit.tenant) for hit in hits) == [
        (id_, tenant) for id_ in "ab" for tenant in ("", *TENANTS)
    ]
    for hit in hits:
        assert hit.text == text_of(hit.id, f"red {hit.tenant or 'operator'}")
    acting = (("authorization", "Bearer k-operator"), ("x-matryoshka-tenant", "acme"))
    request = pb.SearchRequest(collection="docs", text="a red")
    answers = [await search(shared, "acme"), await shared.stub.Search(request, metadata=acting)]
    for answer in answers:
        assert [hit.tenant for hit in answer.hits] == ["", ""]


async def search(router: Running, who: str, **more) -> pb.SearchResponse:
    metadata = (("authorization", f"Bearer k-{who}"),)
    request = pb.SearchRequest(collection="docs", text="a red", **more)
    return await router.stub.Search(request, metadata=metadata)


async def put(router: Running, who: str, name: str, *ids: str) -> None:
    points = [pb.Point(id=id_, text=text_of(id_, f"red {who}")) for id_ in ids]
    metadata = (("authorization", f"Bearer k-{who}"),)
    call = router.stub.Upsert(iter([pb.UpsertRequest(collection=name, points=points)]),
                              metadata=metadata)  # fmt: skip
    assert [answer.num_points async for answer in call] == [len(ids)]


@pytest.fixture
async def shared(encoder, tmp_path) -> AsyncIterator[Running]:
    keys = write_keys(tmp_path / "keys", "operator", *TENANTS)
    async with running(encoder, tmp_path / "shared", keys, **SETTINGS, shadow_slices=2) as router:
        await set_up(router.service, dict(zip(OWN, TENANTS, strict=True)))
        yield router


async def test_a_migration_leaves_each_tenant_its_points(shared: Running) -> None:
    """Points of the same id, of several tenants and of nobody, stay whose they were."""
    for who in ("operator", *TENANTS):
        await put(shared, who, "docs", *IDS)
    operator = (("authorization", "Bearer k-operator"),)
    request = pb.MigrateCollectionRequest(source="docs", target="new", model="wide", alias="latest")
    async for _ in shared.stub.MigrateCollection(request, metadata=operator):
        pass
    for who in TENANTS:
        metadata = (("authorization", f"Bearer k-{who}"),)
        request = pb.SearchRequest(collection="new", text="a red", limit=100, plan=None)
        hits = (await shared.stub.Search(request, metadata=metadata)).hits
        assert {hit.text for hit in hits} == {text_of(id_, f"red {who}") for id_ in IDS}
    counted = await shared.stub.GetCollection(
        pb.GetCollectionRequest(name="new"), metadata=operator
    )
    assert counted.collection.num_points == 3 * len(IDS)
    request = pb.MigrateCollectionRequest(source="own-acme", target="own", model="wide")
    async for _ in shared.stub.MigrateCollection(request, metadata=operator):
        pass
    assert (await shared.service._parts.store.find("own")).tenant == "acme"


async def test_what_was_measured_of_all_is_told_to_no_tenant(shared: Running) -> None:
    """A calibration of everybody's points changes neither a tenant's plan nor its promise."""
    for who in ("operator", *TENANTS):
        await put(shared, who, "docs", *(f"p{i}" for i in range(60)))
    before = [await search(shared, "acme", recall_target=target) for target in (0.5, 0.99)]
    plain = await search(shared, "acme")
    texts = [f"query {i}" for i in range(120)]
    request = pb.CalibrateRequest(collection="docs", texts=texts, recall_target=0.8)
    async for _ in shared.stub.Calibrate(
        request, metadata=(("authorization", "Bearer k-operator"),)
    ):
        pass
    assert (await search(shared, "operator")).HasField("promise"), "it has an effect"
    after = [await search(shared, "acme", recall_target=target) for target in (0.5, 0.99)]
    for old, new in zip([*before, plain], [*after, await search(shared, "acme")], strict=True):
        assert (old.plan, old.promise) == (new.plan, new.promise)
    assert after[0].promise.exact
    assert after[0].promise.met


async def test_repeated_searches_see_the_tenants_points_only(shared: Running) -> None:
    """What watches recall looks for what the search looked for, with the same condition."""
    seen: list = []
    shared.service._parts.shadow.offer = seen.append
    await search(shared, "acme", slice="de")
    await search(shared, "operator", slice="de")
    acme, operator = seen
    assert acme.condition == OfTenant("acme")
    assert operator.condition is None
    assert (acme.slice, operator.slice) == ("tenant/acme/de", "de")
    assert (owner(acme.slice), owner(operator.slice)) == ("tenant/acme", "")


async def test_no_tenant_takes_the_room_of_anothers_slices(shared: Running) -> None:
    """So many slices are told apart of each; and an operator's is never a tenant's."""
    for name in ("a", "b", "c", "d"):
        await search(shared, "globex", slice=name)
    await search(shared, "acme", slice="x")
    for who, wanted in (("acme", ["x"]), ("globex", ["a", "b"])):
        metadata = (("authorization", f"Bearer k-{who}"),)
        answer = await shared.stub.GetRecall(
            pb.GetRecallRequest(collection="docs"), metadata=metadata
        )
        assert [watched.slice for watched in answer.slices] == wanted
    with pytest.raises(grpc.aio.AioRpcError, match="for tenants' searches"):
        await search(shared, "operator", slice="tenant/acme/x")


async def test_the_encoder_is_told_for_whom_a_text_is(shared: Running) -> None:
    """Queries and documents of a tenant are encoded for it, an operator's for nobody."""
    shared.encoder.tenants.clear()
    for who in ("acme", "operator"):
        await put(shared, who, "docs", "a")
        await search(shared, who)
    assert shared.encoder.tenants == ["acme", "acme", None, None]


async def test_ids_of_before_there_were_tenants_stay() -> None:
    """Points that are stored are found by them; a tenant's are others, also of clever names."""
    assert point_uuid("doc/1") == "d1b4e93a-e1bd-55a9-8aad-fa7b460f47b3"
    taken = {
        point_uuid(id_, tenant)
        for id_ in ("x", "acme/x", "acme\0x")
        for tenant in (None, "acme", "globex")
    }
    assert len(taken) == 9
