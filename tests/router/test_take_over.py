"""What the documents show for a collection that something else made, run on one."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from services.shared.pb import router_pb2 as pb
from tests.router.conftest import Encoder, Running, encode, running
from tests.router.sharded_qdrant import ShardedQdrant

BULK = Path(__file__).parents[2] / "docs" / "bulk.md"
ROWS = 300


@pytest.fixture
def take_over() -> Callable[..., None]:
    blocks = re.findall(r"^```python\n(.*?)^```$", BULK.read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "def take_over" in block]
    names: dict[str, Any] = {}
    exec(compile(block, str(BULK), "exec"), names)  # the document's own code
    shown: Callable[..., None] = names["take_over"]
    return shown


@pytest.fixture
async def theirs() -> AsyncIterator[QdrantClient]:
    """A client of a server that holds a collection of somebody else's."""
    server = ShardedQdrant()
    await server.start()
    options: dict[str, Any] = {"grpc_port": server.port, "prefer_grpc": True}
    writer = AsyncQdrantClient("http://127.0.0.1:1", check_compatibility=False, **options)
    params = models.VectorParams(size=32, distance=models.Distance.COSINE)
    await writer.create_collection("theirs", vectors_config={"dense": params, "other": params})
    points = [
        models.PointStruct(
            id=row,
            vector={
                "dense": (7 * encode("small", f"text {row}", 32)).tolist(),
                "other": encode("other", f"text {row}", 32).tolist(),
            },
            payload={
                "body": f"text {row}", "year": 1900 + row, "even": row % 2 == 0, "x": 0.5,
                "lang": "en", "nested": {"a": 1}, "no key": "because of the blank", "none": None,
            },
        )
        for row in range(ROWS)
    ]  # fmt: skip
    await writer.upsert("theirs", points)
    await writer.close()
    reader = QdrantClient("http://127.0.0.1:1", check_compatibility=False, **options)
    yield reader
    reader.close()
    await server.kill()


@pytest.fixture
async def router(encoder: tuple[Encoder, str], tmp_path: Path) -> AsyncIterator[Running]:
    async with running(encoder, tmp_path, max_batch_points=2048) as router:
        yield router


@pytest.mark.parametrize("vector", [None, "dense"])
async def test_a_collection_that_something_else_made_is_taken_over(
    router: Running,
    encoder: tuple[Encoder, str],
    theirs: QdrantClient,
    take_over: Callable[..., None],
    vector: str | None,
) -> None:
    """Every point with its id, text, attributes and vector, twice too; with vectors taken, no more
    texts are encoded than are compared."""
    servicer, address = encoder
    router_at = router.address
    for _ in range(2):
        await asyncio.to_thread(
            take_over, theirs, "theirs", "docs", "small", "body", vector, address, router_at
        )
    if vector:
        assert sum(len(request.texts) for request in servicer.embeds) == 2 * 16
    found = await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    assert found.collection.num_points == ROWS
    request = pb.SearchRequest(collection="docs", text="text 77", limit=1)
    [hit] = (await router.stub.Search(request)).hits
    assert (hit.id, hit.text) == ("77", "text 77")
    assert hit.score == pytest.approx(1.0, abs=1e-5)
    assert set(hit.attributes) == {"year", "even", "x", "lang"}
    assert hit.attributes["year"].int_value == 1977
    assert hit.attributes["even"].WhichOneof("value") == "bool_value"


async def test_vectors_of_another_model_are_not_taken(
    router: Running,
    encoder: tuple[Encoder, str],
    theirs: QdrantClient,
    take_over: Callable[..., None],
) -> None:
    """Nothing is made: no query would ever be like them."""
    router_at = router.address
    with pytest.raises(ValueError, match="small did not make these vectors"):
        await asyncio.to_thread(
            take_over, theirs, "theirs", "docs", "small", "body", "other", encoder[1], router_at
        )
    assert not (await router.stub.ListCollections(pb.ListCollectionsRequest())).collections
