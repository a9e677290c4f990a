"""The cache: right or empty, bounded, and it holds nothing else alive."""

import tracemalloc
from array import array
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.encoder.cache import VectorCache, join
from services.encoder.embed import EmbedInput, _contents

FULL = 4


def content(*tokens, part=""):
    return part, array("q", tokens).tobytes()


def vectors(*numbers):
    return np.array([[number] * FULL for number in numbers], dtype=np.float32)


def test_what_was_put_is_found_again():
    """Each key gives its own vector, bit for bit."""
    cache = VectorCache(10_000)
    keys = cache.keys("space", [content(1), content(2)])
    cache.put(keys, vectors(0.1, 0.2))
    found = cache.find(keys[::-1])
    assert (join([found[key] for key in keys]) == vectors(0.1, 0.2)).all()
    assert cache.find(cache.keys("space", [content(3)])) == {}


tokens = st.lists(st.integers(0, 2**40), max_size=5)
names = st.tuples(st.sampled_from(["s", "t"]), st.sampled_from(["", "query", "q"]), tokens)


@given(st.lists(names, unique_by=str))
def test_other_space_part_or_tokens_is_another_key(wanted):
    """No two texts are ever taken for each other, and the same text is always known again."""
    cache = VectorCache(10_000)
    keys = [cache.keys(space, [content(*ids, part=part)])[0] for space, part, ids in wanted]
    assert len(set(keys)) == len(wanted)
    again = [cache.keys(space, [content(*ids, part=part)])[0] for space, part, ids in wanted]
    assert keys == again


def test_keys_of_two_processes_differ():
    """A text's digest says nothing outside its process."""
    one, two = (VectorCache(10_000).keys("space", [content(1)]) for _ in range(2))
    assert one != two


def test_the_bound_holds_and_the_oldest_goes_first():
    """What was asked for last stays; bytes never pass the bound."""
    cache = VectorCache(1_000)
    for number in range(10):
        cache.put(cache.keys("space", [content(number)]), vectors(number))
        # Keep the first one young.
        cache.find(cache.keys("space", [content(0)]))
        assert 0 < cache.num_bytes <= 1_000
    assert cache.find(cache.keys("space", [content(0)]))
    assert cache.find(cache.keys("space", [content(9)]))
    assert not cache.find(cache.keys("space", [content(1)]))


def test_putting_twice_counts_once():
    """Two requests that encoded the same text at the same time do not fill the cache."""
    cache = VectorCache(10_000)
    keys = cache.keys("space", [content(1)])
    cache.put(keys, vectors(1))
    once = cache.num_bytes
    cache.put(keys, vectors(1))
    assert cache.num_bytes == once


def test_a_bound_of_nothing_keeps_nothing():
    """0 switches it off."""
    cache = VectorCache(0)
    keys = cache.keys("space", [content(1)])
    cache.put(keys, vectors(1))
    assert cache.find(keys) == {}
    assert cache.num_bytes == 0


def test_an_unloaded_space_is_forgotten_alone():
    """Its vectors go, those of others stay."""
    cache = VectorCache(10_000)
    here, there = cache.keys("here", [content(1)]), cache.keys("there", [content(1)])
    cache.put(here, vectors(1))
    cache.put(there, vectors(2))
    before = cache.num_bytes
    cache.forget("here")
    assert cache.find(here) == {}
    assert cache.find(there)
    assert cache.num_bytes == before / 2
    cache.forget("there")
    assert cache.num_bytes == 0


def test_it_takes_the_memory_that_it_says_and_holds_no_batch():
    """Rows are copied out of their batches, and an entry costs about what is counted."""
    cache = VectorCache(10**9)
    tracemalloc.start()
    try:
        for begin in range(0, 4000, 100):
            # 100 rows of a batch of 1000: holding the batch would cost ten times as much.
            batch = np.zeros((1000, 64), dtype=np.float32)
            keys = cache.keys("space", [content(begin + row) for row in range(100)])
            cache.put(keys, batch[:100])
            del batch, keys
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.6 * held < cache.num_bytes < 1.5 * held


def test_two_towers_never_share_a_vector():
    """The same tokens are other vectors in the other tower; with one tower the role is nothing."""
    ids = [[1, 2]]

    def key(role, needs_role, images=()):
        model = SimpleNamespace(text_model=SimpleNamespace(needs_role=needs_role))
        wanted = EmbedInput("m", [] if images else ["x"], role=role, images=images)
        return list(_contents(model, wanted, ids))

    assert key("query", True) != key("document", True)
    assert key("query", False) == key("none", False)
    picture = array("q", ids[0]).tobytes()
    assert key("none", False, [picture]) != key("none", False)


@given(st.lists(st.tuples(st.sampled_from([None, "q", "acme", "1:q"]), names), unique_by=str))
def test_another_tenant_is_another_key(wanted):
    """Whether a text is known says nothing of what other tenants have sent."""
    cache = VectorCache(10_000)
    keys = [
        cache.keys(space, [content(*ids, part=part)], tenant)[0]
        for tenant, (space, part, ids) in wanted
    ]
    assert len(set(keys)) == len(wanted)
