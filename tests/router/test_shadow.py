"""Live recall: what is repeated, what is seen, and when the alarm rings; on a real engine."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.router.metrics import RouterMetrics
from services.router.plan import Plan, Stage, exact_plan
from services.router.recall.shadow import Live, Shadow
from services.router.recall.watched import CAUSES
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection, Point
from services.shared.vectors import normalize

FULL = 32
NUM_POINTS = 1500
SIZES = resolve_sizes([SizeRequest(8, "turbo4")], FULL)
COLLECTION = Collection("watched", "m", "space", SIZES)
BAD = Plan((Stage(8, 10, ef=16, oversampling=0.0), Stage(FULL, 10)))
GOOD = Plan((Stage(8, 1400, exact=True), Stage(FULL, 10)))


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    made = rng.standard_normal((NUM_POINTS + 400, FULL)) * np.geomspace(1, 0.3, FULL)
    return normalize(made.astype(np.float32))


@pytest.fixture
async def store(tmp_path, vectors):
    opened = EdgeStore(tmp_path / "collections", indexing_threshold_kb=1)
    await opened.open()
    await opened.create(COLLECTION)
    points = [Point(str(row), "", {"even": row % 2 == 0}) for row in range(NUM_POINTS)]
    await opened.upsert("watched", points, vectors[:NUM_POINTS])
    await opened.settle("watched")
    yield opened
    await opened.close()


@pytest.fixture
def metrics():
    return RouterMetrics(CollectorRegistry())


def shadow(store, metrics, **changes):
    settings = {"share": 1.0, "max_busy": 1.0, "max_waiting": 1000, "max_slices": 10} | changes
    return Shadow(store, metrics, **settings)


def live(query_D, plan=BAD, slice_="", target=0.95, collection=COLLECTION):
    return Live(collection, plan, query_D, None, slice_, target)


async def watch(watcher, searches):
    watcher.start()
    for search in searches:
        watcher.offer(search)
    async with asyncio.timeout(60):
        while watcher._waiting.qsize():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
    await watcher.stop()


async def test_recall_is_what_a_comparison_by_hand_gives(store, metrics, vectors):
    """The mean over repeated searches is that of plan against exact search; bounds enclose it."""
    queries = vectors[NUM_POINTS : NUM_POINTS + 60]
    watcher = shadow(store, metrics)
    await watch(watcher, [live(query_D) for query_D in queries])
    expected = []
    for query_D in queries:
        exact = await store.search(COLLECTION, exact_plan(SIZES, 10), query_D)
        found = await store.search(COLLECTION, BAD, query_D)
        keys = {hit.key for hit in exact.hits}
        expected.append(len(keys & {hit.key for hit in found.hits}) / 10)
    (seen,) = watcher.seen(COLLECTION).values()
    assert seen.num_measured == seen.num_searches == 60
    assert seen.mean == pytest.approx(np.mean(expected), abs=0.01)
    assert 0 < seen.lower < seen.mean < seen.upper < 1


async def test_what_is_lost_is_attributed_and_sums_up(store, metrics, vectors):
    """A cut to an eighth loses by its prefix; the parts sum to the whole."""
    watcher = shadow(store, metrics)
    await watch(watcher, [live(query_D) for query_D in vectors[NUM_POINTS : NUM_POINTS + 60]])
    (seen,) = watcher.seen(COLLECTION).values()
    assert sum(seen.losses.values()) == pytest.approx(1 - seen.mean, abs=1e-9)
    assert seen.losses["prefix"] > 0.1
    assert seen.losses["prefix"] == max(seen.losses.values())
    assert seen.losses["quantization"] != 0
    assert set(seen.losses) == set(CAUSES)


async def test_the_alarm_rings_for_the_slice_that_lost_and_for_no_other(store, metrics, vectors):
    """A slice whose plan fell below its target is named, once; a good one is not."""
    rung = []
    watcher = shadow(store, metrics, on_alarm=rung.append)
    searches = []
    for query_D in vectors[NUM_POINTS : NUM_POINTS + 60]:
        searches += [live(query_D, BAD, "lost"), live(query_D, GOOD, "kept")]
    await watch(watcher, searches)
    seen = watcher.seen(COLLECTION)
    assert seen["lost"].alarm.rings
    assert not seen["kept"].alarm.rings
    assert rung == [COLLECTION]
    shown = metrics._recall_alarm.labels("watched", "lost")._value.get()
    assert shown == 1


async def test_a_seldom_seen_slice_is_drawn_more_often(store, metrics, vectors):
    """Of a slice's first searches all are repeated, of a large one's few."""
    watcher = shadow(store, metrics, share=0.01, max_waiting=10_000)
    for _ in range(20_000):
        watcher.offer(live(vectors[-1], slice_="large"))
    drawn = watcher._waiting.qsize()
    assert 50 <= drawn <= 0.04 * 20_000
    for _ in range(40):
        watcher.offer(live(vectors[-1], slice_="small"))
    assert watcher._waiting.qsize() - drawn == 40


async def test_it_never_waits_and_never_grows(store, metrics, vectors):
    """What is too much is left out and counted; further slices share one place."""
    watcher = shadow(store, metrics, max_waiting=5, max_slices=3)
    for number in range(20):
        watcher.offer(live(vectors[-1], slice_=f"slice-{number}"))
    assert watcher._waiting.qsize() == 5
    assert metrics.shadow_dropped._value.get() == 15
    assert set(watcher.seen(COLLECTION)) == {"slice-0", "slice-1", "slice-2"}
    assert watcher._watched["(other)", "(other)"].num_searches == 17


async def test_a_new_calibration_begins_anew(store, metrics, vectors):
    """What was seen of other plans says nothing of those that are promised now."""
    watcher = shadow(store, metrics)
    await watch(watcher, [live(query_D) for query_D in vectors[NUM_POINTS : NUM_POINTS + 5]])
    assert watcher.seen(COLLECTION)[""].num_measured == 5
    again = replace(COLLECTION, calibration={"created_at": 7})
    watcher.offer(live(vectors[-1], collection=again))
    assert watcher.seen(COLLECTION)[""].num_measured == 0


async def test_a_dropped_collection_is_forgotten(store, metrics, vectors):
    """Its searches are no error, and its series go."""
    watcher = shadow(store, metrics)
    await watch(watcher, [live(vectors[-1])])
    await store.drop("watched")
    await watch(watcher, [live(vectors[-1])])
    assert watcher.seen(COLLECTION) == {}
