"""A tenant's files and vector stores answer over HTTP as if no other tenant were there.

As in `test_tenants.py`: random requests go to one router that all share, and each tenant's alone to
a router of its own without tenants. Ids differ between the two, so that requests and answers are
compared with names in their place ("$f0": the first file that anybody uploaded); all else but times
must be the same. Names of others' files, stores and batches are tried like the own ones.
"""

import asyncio
import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient

from services.router.service import RouterService
from services.router.settings import RouterSettings
from services.router.storage.qdrant import QdrantStore
from services.shared.pb import router_pb2 as pb
from services.shared.server import _build_http
from services.shared.state import State
from tests.router.conftest import Running, running
from tests.router.test_tenants import TENANTS, told, write_keys

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

EVERYBODY = (*TENANTS, "operator")
KINDS = {"f": "files", "s": "vector_stores", "b": "batches"}
TIMES = {"created_at", "last_active_at", "expires_at"}
# How many searches were repeated exactly by now is a matter of time, too.
TIMES |= {"num_measured", "mean", "lower", "upper", "lost_to"}


@dataclass
class World:
    """A router over HTTP, and what the ids in it are called."""

    client: httpx.AsyncClient
    stub: Any
    ids: dict[str, str] = field(default_factory=dict)
    """By name."""

    def resolve(self, text: str, others: "World") -> str:
        """Put ids in the place of names; what is not there has the id that it has elsewhere."""
        return re.sub(
            r"\$[fsb]\d", lambda m: self.ids.get(m[0]) or others.ids.get(m[0], "none"), text
        )

    def named(self, text: str, others: "World") -> str:
        for name, id_ in [*self.ids.items(), *others.ids.items()]:
            text = text.replace(id_, name)
        return text


@dataclass(frozen=True)
class Call:
    """A request, with names in the place of ids."""

    route: str
    path: str
    body: Any = None
    upload: str | None = None
    creates: str = ""
    """The kind of what it makes."""

    def changes(self, owners: dict[str, str]) -> bool:
        """Say whether it changes what is a tenant's."""
        names = re.findall(r"\$[fsb]\d", self.path + json.dumps(self.body))
        # A search is one: it counts in the recall that the tenant sees of its store.
        is_harmless = self.route.startswith("GET")
        return not is_harmless and any(owners.get(name) in TENANTS for name in names)


@contextlib.asynccontextmanager
async def served(router: Running, tmp_path) -> AsyncIterator[str]:
    """The router's real HTTP server."""
    server = _build_http(
        [router.service], RouterSettings(data_dir=tmp_path), State(True, True), router.registry,
        router.keys, None, None,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def worlds(encoder, tmp_path, monkeypatch) -> AsyncIterator[dict[str, World]]:
    # The twin in memory has no address that settings could say, and a collection costs it nothing.
    monkeypatch.setattr(
        "services.router.parts._build_store",
        lambda *_: QdrantStore(AsyncQdrantClient(":memory:")),
    )
    keys = write_keys(tmp_path / "keys", "operator", *TENANTS)
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for name in ("shared", *TENANTS):
            router = await stack.enter_async_context(
                running(encoder, tmp_path / name, keys if name == "shared" else None)
            )
            url = await stack.enter_async_context(served(router, tmp_path / name))
            client = httpx.AsyncClient(base_url=url, timeout=60)
            found[name] = World(await stack.enter_async_context(client), router.stub)
        yield found


_STORES, _STORE = "/v1/vector_stores", "/v1/vector_stores/{vector_store_id}"
files = st.integers(0, 4).map(lambda number: f"$f{number}")
stores = st.sampled_from([0, 0, 1, 1, 2, 3]).map(lambda number: f"$s{number}")
batches = st.integers(0, 2).map(lambda number: f"$b{number}")
texts = st.sampled_from(["wooden dolls", "fast cars", "a third text"])
tags = st.dictionaries(st.sampled_from(["tenant", "tag"]), st.sampled_from(["acme", "x"]))


def pages(cursors):
    """What a list may be asked."""
    return st.builds(
        lambda limit, order, cursor: f"?limit={limit}&order={order}{cursor}",
        st.integers(1, 4),
        st.sampled_from(["asc", "desc"]),
        st.just("") | st.builds(lambda side, id_: f"&{side}={id_}",
                                st.sampled_from(["after", "before"]), cursors),
    )  # fmt: skip


def of(route: str, path: str, *parts, body=st.none(), **more):  # noqa: B008 (a constant)
    """Requests of a route: a path with places for parts, and a body."""
    built = st.tuples(*parts).map(lambda chosen: path.format(*chosen))
    return st.builds(lambda path, body: Call(route, path, body, **more), built, body)


def search_bodies():
    filters = st.builds(
        lambda kind, value: {"type": kind, "key": "tenant", "value": value},
        st.sampled_from(["eq", "ne"]), st.sampled_from(["acme", "globex"]),
    )  # fmt: skip
    return st.fixed_dictionaries(
        {"query": texts},
        optional={
            "filters": filters,
            "max_num_results": st.integers(1, 5),
            "routing": st.just({"explain": True, "measure_recall": True}),
        },
    )


attach = st.fixed_dictionaries({"file_id": files}, optional={"attributes": tags})
# Every route that tenants may call; one that is added fails the test below until it is here.
CALLS = {
    "POST /v1/files": st.builds(
        lambda text: Call("POST /v1/files", "/v1/files", upload=text, creates="f"), texts
    ),
    "GET /v1/files": of("GET /v1/files", "/v1/files{}", pages(files)),
    "GET /v1/files/{file_id}": of("GET /v1/files/{file_id}", "/v1/files/{}", files),
    "DELETE /v1/files/{file_id}": of("DELETE /v1/files/{file_id}", "/v1/files/{}", files),
    "GET /v1/files/{file_id}/content": of(
        "GET /v1/files/{file_id}/content", "/v1/files/{}/content", files
    ),
    f"POST {_STORES}": of(
        f"POST {_STORES}", _STORES, creates="s",
        body=st.fixed_dictionaries({}, optional={"file_ids": st.lists(files, max_size=2)}),
    ),
    f"GET {_STORES}": of(f"GET {_STORES}", _STORES + "{}", pages(stores)),
    f"GET {_STORE}": of(f"GET {_STORE}", _STORES + "/{}", stores),
    f"POST {_STORE}": of(
        f"POST {_STORE}", _STORES + "/{}", stores, body=st.just({"name": "renamed"})
    ),
    f"DELETE {_STORE}": of(f"DELETE {_STORE}", _STORES + "/{}", stores),
    f"POST {_STORE}/search": of(
        f"POST {_STORE}/search", _STORES + "/{}/search", stores, body=search_bodies()
    ),
    f"GET {_STORE}/recall": of(f"GET {_STORE}/recall", _STORES + "/{}/recall", stores),
    f"POST {_STORE}/files": of(
        f"POST {_STORE}/files", _STORES + "/{}/files", stores, body=attach
    ),
    f"GET {_STORE}/files": of(
        f"GET {_STORE}/files", _STORES + "/{}/files{}", stores, pages(files)
    ),
    f"GET {_STORE}/files/{{file_id}}": of(
        f"GET {_STORE}/files/{{file_id}}", _STORES + "/{}/files/{}", stores, files
    ),
    f"POST {_STORE}/files/{{file_id}}": of(
        f"POST {_STORE}/files/{{file_id}}", _STORES + "/{}/files/{}", stores, files,
        body=st.fixed_dictionaries({"attributes": tags}),
    ),
    f"DELETE {_STORE}/files/{{file_id}}": of(
        f"DELETE {_STORE}/files/{{file_id}}", _STORES + "/{}/files/{}", stores, files
    ),
    f"GET {_STORE}/files/{{file_id}}/content": of(
        f"GET {_STORE}/files/{{file_id}}/content", _STORES + "/{}/files/{}/content", stores, files
    ),
    f"POST {_STORE}/file_batches": of(
        f"POST {_STORE}/file_batches", _STORES + "/{}/file_batches", stores, creates="b",
        body=st.fixed_dictionaries({"file_ids": st.lists(files, min_size=1, max_size=2)}),
    ),
    f"GET {_STORE}/file_batches/{{batch_id}}": of(
        f"GET {_STORE}/file_batches/{{batch_id}}", _STORES + "/{}/file_batches/{}", stores, batches
    ),
    f"POST {_STORE}/file_batches/{{batch_id}}/cancel": of(
        f"POST {_STORE}/file_batches/{{batch_id}}/cancel",
        _STORES + "/{}/file_batches/{}/cancel", stores, batches,
    ),
    f"GET {_STORE}/file_batches/{{batch_id}}/files": of(
        f"GET {_STORE}/file_batches/{{batch_id}}/files",
        _STORES + "/{}/file_batches/{}/files", stores, batches,
    ),
}  # fmt: skip
# Others' files are most likely to slip in where a store takes files.
_TAKING = [CALLS[f"POST {_STORE}/files"], CALLS[f"POST {_STORE}/file_batches"]]
calls = st.one_of(*CALLS.values(), *_TAKING * 2)
# Everybody has a file in a store from the start.
BEGINNING = [
    (who, call)
    for place, who in enumerate(EVERYBODY)
    for call in (
        Call("POST /v1/files", "/v1/files", upload=f"a text of {who}", creates="f"),
        Call(f"POST {_STORES}", _STORES, {"file_ids": [f"$f{place}"]}, creates="s"),
        Call(f"POST {_STORE}/file_batches", f"{_STORES}/$s{place}/file_batches",
             {"file_ids": [f"$f{place}"]}, creates="b"),
    )
]  # fmt: skip


def test_every_route_for_tenants_is_tried():
    """A route that is opened to tenants is in the property below, or this fails."""
    routes = {name for name in RouterService.open_to_tenants if " /v1/" in name}
    assert routes == set(CALLS)


async def test_no_tenant_learns_of_anothers_files_and_stores(worlds: dict[str, World]) -> None:
    """Whatever the others do, each tenant is told what it would be told alone."""
    loop = asyncio.get_running_loop()

    # A failure is not made smaller: each try takes seconds.
    @settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None,
              phases=[Phase.generate])  # fmt: skip
    @given(st.lists(st.tuples(st.sampled_from(EVERYBODY), calls), min_size=16, max_size=30))
    def are_alone(script: list) -> None:
        # The routers live in the test's loop.
        asyncio.run_coroutine_threadsafe(run(worlds, [*BEGINNING, *script]), loop).result()

    await asyncio.to_thread(are_alone)


async def run(worlds: dict[str, World], script: list) -> None:
    for world in worlds.values():
        await empty(world)
    created: Counter[str] = Counter()
    owners: dict[str, str] = {}
    shared = worlds["shared"]
    for who, call in script:
        if who == "operator" and call.changes(owners):
            continue  # what an operator does to a tenant's things the tenant may see
        name = f"${call.creates}{created[call.creates]}" if call.creates else ""
        answered = await ask(shared, shared, who, call, name)
        created[call.creates] += answered[0] == 200
        owners[name] = who
        if who in TENANTS:
            alone = await ask(worlds[who], shared, None, call, name)
            assert answered == alone, (who, call)
    for who in TENANTS:
        request, metadata = pb.ListCollectionsRequest(), (("authorization", f"Bearer k-{who}"),)
        listed = [
            named(world, shared, await told(world.stub.ListCollections, "", request, sent))
            for world, sent in ((shared, metadata), (worlds[who], ()))
        ]
        assert listed[0] == listed[1]


def named(world: World, shared: World, listed: Any) -> list[Any]:
    """Collections with the names of their stores, in an order that is not that of their ids."""
    collections = json.loads(world.named(json.dumps(listed), shared))[0].get("collections", [])
    return sorted(collections, key=lambda collection: collection["name"])


async def ask(world: World, shared: World, who: str | None, call: Call, name: str) -> Any:
    """Make a call and wait for what it began; return its status and all that it told."""
    options: dict[str, Any] = {"headers": {"authorization": f"Bearer k-{who}"} if who else {}}
    if call.upload is not None:
        options["files"] = {"file": ("a.txt", call.upload.encode())}
        options["data"] = {"purpose": "assistants"}
    elif call.body is not None:
        options["json"] = json.loads(world.resolve(json.dumps(call.body), shared))
    method = call.route.partition(" ")[0]
    answer = await world.client.request(method, world.resolve(call.path, shared), **options)
    assert answer.status_code < 500, answer.text
    if name and answer.status_code == 200:
        world.ids[name] = answer.json()["id"]
    await settled(world, "operator" if who else None)
    text = world.named(answer.text, shared)
    is_json = answer.headers["content-type"].startswith("application/json")
    return answer.status_code, tidied(json.loads(text)) if is_json else text


def tidied(value: Any) -> Any:
    if isinstance(value, dict):
        left_out = {key for key in value if key in TIMES or key.endswith("seconds")}
        return {key: tidied(part) for key, part in value.items() if key not in left_out}
    if isinstance(value, list):
        return [tidied(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


async def settled(world: World, who: str | None) -> None:
    """Wait until no file is in progress."""
    headers = {"authorization": f"Bearer k-{who}"} if who else {}
    while True:
        listed = (await world.client.get("/v1/vector_stores?limit=100", headers=headers)).json()
        if not sum(store["file_counts"]["in_progress"] for store in listed["data"]):
            return
        await asyncio.sleep(0.02)


async def empty(world: World) -> None:
    headers = {"authorization": "Bearer k-operator"}
    for kind in ("vector_stores", "files"):
        url = f"/v1/{kind}"
        for item in (await world.client.get(f"{url}?limit=100", headers=headers)).json()["data"]:
            deleted = await world.client.delete(f"{url}/{item['id']}", headers=headers)
            assert deleted.status_code == 200
    world.ids.clear()
