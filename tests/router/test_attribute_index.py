"""Attributes are indexed by themselves, so that filters need not read all points' payloads."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient, models

from services.router.attributes import Attributes
from services.router.filters import Equals, Filter, Range
from services.router.plan import exact_plan
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage import attribute_index, edge_shard
from services.router.storage.attribute_index import MAX_INDEXED, unindexed
from services.router.storage.conditions import to_conditions
from services.router.storage.qdrant import QdrantStore
from services.router.storage.store import (
    TENANT,
    Collection,
    Point,
    attributes_payload,
    point_uuid,
    to_payload,
)
from services.shared.vectors import pack

SIZES = resolve_sizes([SizeRequest(8)], 32)
OF_ALL_KINDS: Attributes = {"lang": "en", "year": 1990, "share": 0.5, "new": True}
PATHS = {
    "attributes.string.lang": "string",
    "attributes.number.year": "number",
    "attributes.number.share": "number",
    "attributes.bool.new": "bool",
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    edge_shard.create(str(tmp_path), SIZES, None, indexing_threshold_kb=1000)
    return str(tmp_path)


def write(shard: edge_shard.Shard, first: int, rows: int, attributes: Attributes) -> list[str]:
    points = [Point(str(row), "text", attributes) for row in range(first, first + rows)]
    vectors = np.random.default_rng(first).standard_normal((rows, 32)).astype("<f4")
    keys = [point_uuid(point.id) for point in points]
    shard.upsert(keys, [to_payload(point) for point in points], pack(vectors))
    return keys


def indexed(shard: edge_shard.Shard) -> set[str]:
    return set(shard._shard.info().payload_schema) - {TENANT}


def count(shard: edge_shard.Shard, condition: Filter) -> int:
    return shard.count(to_conditions(condition))


def test_what_is_written_is_indexed_and_stays_so(path):
    """Each kind has an index from the first write on, over a restart, and finds what it should."""
    shard = edge_shard.Shard(path, SIZES, None)
    write(shard, 0, 5, OF_ALL_KINDS)
    for _ in range(2):
        assert indexed(shard) == set(PATHS)
        assert count(shard, Equals("lang", "en")) == 5
        assert count(shard, Equals("year", 1990)) == 5
        assert count(shard, Equals("year", 1990.0)) == 5
        assert count(shard, Range("share", gt=0.4)) == 5
        assert count(shard, Equals("new", True)) == 5
        assert count(shard, Equals("new", False)) == count(shard, Equals("lang", "1990")) == 0
        shard.close()
        shard = edge_shard.Shard(path, SIZES, None)
    shard.close()


def test_an_attribute_that_points_get_later_is_indexed(path):
    """Also one that came without the point."""
    shard = edge_shard.Shard(path, SIZES, None)
    keys = write(shard, 0, 5, {})
    assert indexed(shard) == set()
    shard.set_payload(keys[:2], attributes_payload({"lang": "en"}))
    assert indexed(shard) == {"attributes.string.lang"}
    assert count(shard, Equals("lang", "en")) == 2
    shard.close()


def test_many_points_are_indexed_beside_the_searches(path, monkeypatch):
    """What would hold up searches waits for the next build; until then the filter works without."""
    monkeypatch.setattr(edge_shard, "_MAX_INDEXED_AT_ONCE", 10)
    shard = edge_shard.Shard(path, SIZES, None)
    write(shard, 0, 20, {})
    write(shard, 20, 4, OF_ALL_KINDS)
    write(shard, 24, 4, OF_ALL_KINDS)
    assert indexed(shard) == set()
    assert count(shard, Equals("lang", "en")) == 8
    shard.optimize()
    assert indexed(shard) == set(PATHS)
    assert count(shard, Equals("lang", "en")) == 8
    shard.close()


def test_indexes_are_bounded_and_filters_are_not(path, monkeypatch):
    """Of further attributes there is none, and filters by them are as right."""
    monkeypatch.setattr(attribute_index, "MAX_INDEXED", 3)
    shard = edge_shard.Shard(path, SIZES, None)
    write(shard, 0, 5, dict.fromkeys("abcd", "x"))
    assert indexed(shard) == {"attributes.string.a", "attributes.string.b"}
    assert {count(shard, Equals(key, "x")) for key in "abcd"} == {5}
    query = np.ones(32, dtype="<f4").tobytes()
    (stage,) = exact_plan(SIZES, 10).stages
    fields = [getattr(stage, name) for name in stage.__dataclass_fields__]
    _, hits = shard.search([fields], query, to_conditions(Equals("d", "x")), with_payload=False)
    assert len(hits) == 5
    shard.close()


VALUES = st.one_of(st.text(max_size=3), st.integers(-9, 9), st.booleans())


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdefgh"), VALUES)), st.integers(0, MAX_INDEXED + 2)
)
def test_what_has_an_index_gets_none_again(some, num_indexed):
    """Every attribute is found by its kind, those indexed are left out, and the bound holds."""
    payloads = [attributes_payload(attributes) for attributes in some]
    everything = unindexed(payloads, ())
    assert set(everything.values()) <= {"string", "number", "bool"}
    present = [TENANT, *list(everything)[:2], *(f"other.{n}" for n in range(num_indexed))]
    found = unindexed(payloads, present)
    assert found.items() <= everything.items()
    assert not found.keys() & set(present)
    assert len(found) == min(
        len(set(everything) - set(present)), max(0, MAX_INDEXED - len(present))
    )


async def test_a_server_is_asked_for_indexes(monkeypatch):
    """By kind, with an attribute's first write, without waiting; never for one that is there."""
    client = AsyncQdrantClient(":memory:")
    store = QdrantStore(client)
    await store.create(Collection("docs", "model", "space", SIZES))
    asked: dict[str, object] = {}

    async def note(name, path, kind, wait):
        assert (name, wait) == ("docs", False)
        asked[path] = kind

    monkeypatch.setattr(client, "create_payload_index", note)
    vectors = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    await store.upsert("docs", [Point("a", "text", OF_ALL_KINDS)], vectors)
    assert {path: kind.value for path, kind in asked.items()} == {
        path: {"string": "keyword", "number": "float", "bool": "integer"}[kind]
        for path, kind in PATHS.items()
    }
    asked.clear()
    await store.set_attributes("docs", ["a"], {"colour": "red"})
    assert list(asked) == ["attributes.string.colour"]
    asked.clear()
    get_collection = client.get_collection

    async def with_schema(name):
        info = await get_collection(name)
        there = models.PayloadIndexInfo(data_type=models.PayloadSchemaType.KEYWORD, points=1)
        return info.model_copy(update={"payload_schema": {"attributes.string.lang": there}})

    monkeypatch.setattr(client, "get_collection", with_schema)
    await store.upsert("docs", [Point("b", "text", {"lang": "en"})], vectors)
    assert asked == {}
    await store.close()
