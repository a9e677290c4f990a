"""The Qdrant server's side of the store: what it says over gRPC, without a server to say it to."""

import socket

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.conversion import (
    GrpcToRest,
    RestToGrpc,
    grpc_to_payload,
    payload_to_grpc,
)

from services.router.filters import All, AnyOf, Equals, Negated
from services.router.plan import Plan, Stage
from services.router.sizes import BITS, Size, SizeRequest, resolve_sizes
from services.router.storage.conditions import to_conditions
from services.router.storage.metadata import from_metadata, to_metadata
from services.router.storage.qdrant import QdrantStore
from services.router.storage.qdrant_config import vector_diff, vector_params
from services.router.storage.qdrant_search import nested_query
from services.router.storage.store import Collection, Point, from_payload, to_payload
from services.shared.errors import NotFound, Unavailable

COLLECTION = Collection(
    "docs",
    "model",
    "space",
    resolve_sizes([SizeRequest(8, "int8"), SizeRequest(16, "binary", 8), SizeRequest(32)], 32),
    {"recall": 0.95, "plans": [None, {"exact": True}]},
)
VECTORS = {size.vector_name: [1.0] * size.dim for size in COLLECTION.sizes}
CODED = tuple(
    Size(8 * place, quantization, 0, "cold") for place, quantization in enumerate(BITS, start=1)
)


def test_metadata_and_payload_survive_grpc():
    """Ints, doubles and nesting come back from protobuf as they were."""
    sent = grpc.CreateCollection(metadata=payload_to_grpc({"m": to_metadata(COLLECTION)}))
    found = from_metadata(grpc_to_payload(sent.metadata)["m"])
    assert found == COLLECTION
    assert found.calibration == COLLECTION.calibration
    point = Point("a", "t", {"i": 1, "big": 2**62 + 1, "f": 1.0, "t": True, "s": ""})
    stored = grpc.PointStruct(payload=payload_to_grpc(to_payload(point)))
    back = from_payload(grpc_to_payload(stored.payload))
    assert back == point
    assert {k: type(v) for k, v in back.attributes.items()} == {
        k: type(v) for k, v in point.attributes.items()
    }


def test_sizes_survive_grpc():
    """Links, codes and their place reach the server as chosen; the rerank size has m=0."""
    for size in (*COLLECTION.sizes, *CODED):
        params = vector_params(size, COLLECTION.full)
        assert GrpcToRest.convert_vector_params(RestToGrpc.convert_vector_params(params)) == params
    assert vector_params(COLLECTION.sizes[-1], COLLECTION.full).hnsw_config.m == 0
    assert vector_params(COLLECTION.sizes[-1], COLLECTION.full).memory == models.Memory.COLD
    assert (
        vector_params(Size(8, "none", 16, "cached"), COLLECTION.full).memory == models.Memory.CACHED
    )
    for placement in ("pinned", "cached", "cold"):
        index = vector_params(
            Size(8, "int8", 16, "cold", index_placement=placement), COLLECTION.full
        )
        assert index.hnsw_config.memory == index.quantization_config.scalar.memory == placement
        assert index.memory == models.Memory.COLD
    unset = vector_diff(Size(8, "int8", 16, "cached"), COLLECTION.full)
    # Said, as what is not said stays as it was.
    assert unset.hnsw_config.memory == models.Memory.CACHED
    assert unset.quantization_config.scalar.memory == models.Memory.PINNED
    built = [
        vector_params(Size(dim, "turbo2", 16), 32).hnsw_config.ef_construct for dim in (16, 32)
    ]
    assert built == [100, 200], "the full size's graph is built with more care"
    codes = [vector_params(size, COLLECTION.full).quantization_config for size in CODED]
    assert len({repr(code) for code in codes}) == len(BITS), "each kind of code is its own"


def test_a_nested_query_survives_grpc():
    """Stages nest first to last, with the filter at the first and exact scoring kept."""
    condition = All((Equals("a", True), Negated(AnyOf("b", ("x", 1)))))
    plan = Plan((Stage(8, 50, exact=True), Stage(16, 20), Stage(32, 5)))
    query_filter = models.Filter.model_validate(to_conditions(condition))
    query = nested_query(COLLECTION, plan, VECTORS, query_filter)
    [outer] = query["prefetch"]
    outer_sent = RestToGrpc.convert_prefetch_query(outer)
    [inner_sent] = outer_sent.prefetch
    assert (query["using"], outer_sent.using, inner_sent.using) == ("d32", "d16", "d8")
    assert (outer_sent.limit, inner_sent.limit) == (20, 50)
    assert inner_sent.params.exact
    assert not outer_sent.params.exact
    assert inner_sent.HasField("filter")
    assert not outer_sent.HasField("filter")
    assert query["query_filter"] is None


@pytest.mark.parametrize(
    ("times", "rescore", "oversampling"),
    [(None, True, None), (0.0, False, None), (1.0, True, None), (2.5, True, 2.5)],
)
def test_oversampling_survives_grpc(times, rescore, oversampling):
    """Whether codes have the last word, and how many candidates if not, reaches the server."""
    plan = Plan((Stage(16, 20, oversampling=times), Stage(32, 5)))
    query = nested_query(COLLECTION, plan, VECTORS, None)
    [first] = query["prefetch"]
    sent = RestToGrpc.convert_prefetch_query(first).params.quantization
    assert (sent.rescore, sent.ignore) == (rescore, False)
    assert (sent.oversampling if sent.HasField("oversampling") else None) == oversampling


async def test_a_server_that_is_away_is_unavailable():
    """A connection that is refused is an error to retry, not a crash."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = QdrantStore.connect("http://127.0.0.1:1", port, None, 5)
    with pytest.raises(Unavailable, match="Qdrant server cannot be reached"):
        await store.open()
    await store.close()


async def test_collections_of_others_are_left_alone():
    """A collection without our metadata is neither found, listed nor dropped."""
    client = AsyncQdrantClient(":memory:")
    params = models.VectorParams(size=4, distance=models.Distance.COSINE)
    await client.create_collection("theirs", vectors_config=params)
    store = QdrantStore(client)
    assert await store.collections() == []
    with pytest.raises(NotFound):
        await store.find("theirs")
    with pytest.raises(NotFound):
        await store.drop("theirs")
    assert await client.collection_exists("theirs")
    await store.close()


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
async def test_a_write_between_reading_and_filling_a_size_is_not_undone():
    """Its vectors at an added size are those of what was written last."""
    client = AsyncQdrantClient(":memory:")
    store = QdrantStore(client, retire_s=0)
    collection = Collection("docs", "m", "s", resolve_sizes([SizeRequest(8)], 32))
    await store.create(collection)
    old_BD, new_BD = np.random.default_rng(0).standard_normal((2, 1, 32)).astype(np.float32)
    await store.upsert("docs", [Point("a", "", {})], old_BD)
    update, is_first = client.update_vectors, True

    async def late(*arguments, **options):
        nonlocal is_first
        if is_first:
            is_first = False
            await store.upsert("docs", [Point("a", "", {})], new_BD)
        return await update(*arguments, **options)

    client.update_vectors = late
    sizes = resolve_sizes([SizeRequest(8), SizeRequest(16)], 32)
    resized = await store.resize("docs", sizes, None, lambda *_: None)
    plan = Plan((Stage(16, 1, exact=True),))
    [hit] = (await store.search(resized, plan, new_BD[0])).hits
    assert hit.score == pytest.approx(1, abs=1e-5)
    await store.close()
