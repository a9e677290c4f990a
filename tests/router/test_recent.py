"""Recent queries: bounded, fair to small slices, and there again after a restart."""

import numpy as np
import pytest

from services.router.recall.recent import Recent
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection

COLLECTION = Collection("asked", "m", "space", resolve_sizes([SizeRequest(4)], 8))


def query(number):
    vector_D = np.zeros(8, dtype=np.float32)
    vector_D[0], vector_D[1] = 1.0, number
    return vector_D


@pytest.fixture
async def store(tmp_path):
    opened = EdgeStore(tmp_path / "collections")
    await opened.open()
    await opened.create(COLLECTION)
    yield opened
    await opened.close()


async def test_queries_survive_a_restart(store):
    """Written when the router stops, read by the next one, with their slices."""
    recent = Recent(store, 10, 4, 60.0)
    recent.start()
    for number in range(3):
        recent.observe(COLLECTION, query(number), f"s{number}")
    await recent.stop()
    again = Recent(store, 10, 4, 60.0)
    again.observe(COLLECTION, query(9), "new")
    kept = await again.of(COLLECTION)
    assert sorted(kept.slices) == ["new", "s0", "s1", "s2"]
    rows = {slice_: row for row, slice_ in enumerate(kept.slices)}
    assert np.array_equal(kept.vectors_QD[rows["s2"]], query(2))


async def test_they_are_bounded_and_a_small_slice_stays(store):
    """A thousand queries of one tenant do not crowd out three of another."""
    recent = Recent(store, 20, 4, 60.0)
    for number in range(3):
        recent.observe(COLLECTION, query(number), "small")
    for number in range(1000):
        recent.observe(COLLECTION, query(number), "large")
    kept = await recent.of(COLLECTION)
    assert len(kept.slices) == 20
    assert kept.slices.count("small") == 3
    assert kept.vectors_QD[:, 1].max() > 900  # the old ones have faded


async def test_a_dropped_collection_is_no_error(store):
    """And one of the same name, of another width, does not inherit its queries."""
    recent = Recent(store, 20, 4, 60.0)
    recent.observe(COLLECTION, query(1), "")
    await store.drop("asked")
    await recent.stop()
    other = Collection("asked", "m", "space", resolve_sizes([SizeRequest(4)], 16))
    await store.create(other)
    assert (await recent.of(other)).slices == []


async def test_queries_of_two_spaces_never_meet(store):
    """Of a collection made again for another model of the same width, old queries are gone."""
    recent = Recent(store, 20, 4, 60.0)
    recent.observe(COLLECTION, query(1), "old")
    await store.drop("asked")
    again = Collection("asked", "other", "other-space", COLLECTION.sizes)
    await store.create(again)
    recent.observe(again, query(2), "new")
    await recent.stop()
    assert (await recent.of(again)).slices == ["new"]
    assert (await store.kept_queries("asked")).slices == ["new"]


async def test_nothing_is_kept_when_it_is_turned_off(store):
    """0 queries means none."""
    recent = Recent(store, 0, 4, 60.0)
    recent.observe(COLLECTION, query(1), "")
    await recent.stop()
    assert (await store.kept_queries("asked")).slices == []
