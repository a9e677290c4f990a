"""OpenAI's filters mean on points what they say of files' attributes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.filters import matches
from services.router.vector_stores.attributes import point_key, read_attributes, to_point
from services.router.vector_stores.filters import read_filters
from services.shared.errors import InvalidRequest

KEYS = st.sampled_from(["lang", "in stock", "größe", "x-" + "0" * 32, "a.b"])
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, -1.5])
VALUES = NUMBERS | st.booleans() | st.sampled_from(["en", "de", "1", ""])

COMPARISONS = (
    st.fixed_dictionaries({"type": st.sampled_from(["eq", "ne"]), "key": KEYS, "value": VALUES})
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["gt", "gte", "lt", "lte"]), "key": KEYS, "value": NUMBERS}
    )
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(["in", "nin"]),
            "key": KEYS,
            "value": st.lists(VALUES, min_size=1, max_size=3),
        }
    )
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.fixed_dictionaries(
        {
            "type": st.sampled_from(["and", "or"]),
            "filters": st.lists(inner, min_size=1, max_size=3),
        }
    ),
    max_leaves=6,
).filter(lambda value: depth(value) <= 8)


def depth(value):
    return 1 + max(map(depth, value.get("filters", [])), default=0)


def holds(value, attributes):
    """What OpenAI's words say, without any of our code."""
    kind = value["type"]
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(holds(v, attributes) for v in value["filters"])
    stored = attributes.get(value["key"])
    if kind in ("ne", "nin"):
        return not holds({**value, "type": {"ne": "eq", "nin": "in"}[kind]}, attributes)
    if stored is None:
        return False
    if kind in ("eq", "in"):
        wanted = [value["value"]] if kind == "eq" else value["value"]
        same = {bool: bool, int: float, float: float, str: str}
        return any(same[type(stored)] is same[type(v)] and stored == v for v in wanted)
    if isinstance(stored, str | bool):
        return False
    operators = {"gt": "__gt__", "gte": "__ge__", "lt": "__lt__", "lte": "__le__"}
    return getattr(float(stored), operators[kind])(float(value["value"]))


@given(FILTERS, st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_filter_on_points_is_the_filter_on_files(value, attributes):
    """Whatever the keys are, and however conditions nest."""
    assert matches(read_filters(value), to_point(attributes)) == holds(value, attributes)


def nest(levels):
    value = {"type": "eq", "key": "a", "value": 1}
    for _ in range(levels):
        value = {"type": "and", "filters": [value]}
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "type is one of"),
        ({}, "type is one of"),
        ({"type": "like", "key": "a", "value": "b"}, "type is one of"),
        ({"type": ["eq"], "key": "a", "value": "b"}, "type is one of"),
        ({"type": "eq", "key": "a"}, "fields type, key, value"),
        ({"type": "eq", "key": "a", "value": 1, "more": 1}, "fields type, key, value"),
        ({"type": "eq", "key": 1, "value": 1}, "key must be"),
        ({"type": "eq", "key": "a" * 65, "value": 1}, "key must be"),
        ({"type": "eq", "key": "a", "value": None}, "string, a number or a boolean"),
        ({"type": "eq", "key": "a", "value": ["a"]}, "string, a number or a boolean"),
        ({"type": "eq", "key": "a", "value": "b" * 513}, "512 characters"),
        ({"type": "eq", "key": "a", "value": 2**70}, "64 bits"),
        ({"type": "gt", "key": "a", "value": "b"}, "needs a number"),
        ({"type": "gt", "key": "a", "value": True}, "needs a number"),
        ({"type": "gt", "key": "a", "value": float("nan")}, "finite"),
        ({"type": "in", "key": "a", "value": "b"}, "at least one value"),
        ({"type": "in", "key": "a", "value": []}, "at least one value"),
        ({"type": "in", "key": "a", "value": list(range(2000))}, "1024"),
        ({"type": "and", "filters": []}, "at least one filter"),
        ({"type": "or", "filters": {}}, "at least one filter"),
        ({"type": "or", "key": "a", "value": 1}, "fields type, filters"),
        (nest(8), "8 levels"),
        (nest(500), "8 levels"),
    ],
)
def test_a_malformed_filter_says_what_is_accepted(value, says):
    """One sentence, about the field `filters`."""
    with pytest.raises(InvalidRequest, match=says) as caught:
        read_filters(value)
    assert caught.value.param == "filters"


def test_keys_that_points_cannot_have_stay_apart():
    """Any key of OpenAI's can be filtered by, and none is taken for another."""
    keys = ["lang", "in stock", "größe", "x-" + "0" * 32, "", "a" * 65]
    names = [point_key(key) for key in keys]
    assert names[0] == "lang"
    assert len(set(names)) == len(keys)
    assert all(point_key(name) != name or name == "lang" for name in names)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "object of at most 16"),
        ({f"k{i}": 1 for i in range(17)}, "at most 16"),
        ({"": 1}, "keys of 1 to 64"),
        ({"k" * 65: 1}, "keys of 1 to 64"),
        ({"k": "v" * 513}, "512 characters"),
        ({"k": None}, "strings of up to 512"),
        ({"k": [1]}, "strings of up to 512"),
        ({"k": float("inf")}, "finite"),
        ({"k": 2**64}, "64 bits"),
        ({"k": "\0"}, "null characters"),
        ({"\ud800": 1}, "Unicode"),
    ],
)
def test_attributes_out_of_bounds_are_refused(value, says):
    """16 pairs, keys of 64 and strings of 512 characters, numbers and booleans."""
    with pytest.raises(InvalidRequest, match=says):
        read_attributes(value)
