"""Filters: what they mean, and which are refused. The engines are held to this in the contract."""

import pytest

from services.router import filters
from services.router.attributes import check_attributes, from_stored, to_stored
from services.router.filters import All, Any, AnyOf, Equals, Negated, Range, check_filter, matches
from services.shared.errors import InvalidRequest

POINT = {"s": "1", "i": 1, "f": 0.5, "t": True}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Equals("s", "1"), True),
        (Equals("s", 1), False),
        (Equals("i", 1.0), True),
        (Equals("i", True), False),
        (Equals("t", 1), False),
        (Equals("t", True), True),
        (Equals("missing", "1"), False),
        (Negated(Equals("missing", "1")), True),
        (Range("i", gte=1, lte=1), True),
        (Range("i", gt=1), False),
        (Range("f", lt=0.5), False),
        (Range("t", gte=0), False),
        (Range("s", gte=0), False),
        (AnyOf("i", ("1", 2, 1)), True),
        (AnyOf("i", ("1", True)), False),
        (All((Equals("s", "1"), Equals("i", 2))), False),
        (Any((Equals("s", "1"), Equals("i", 2))), True),
    ],
)
def test_a_condition_holds_by_type_and_value(condition, holds):
    """Types never mix, but 1 equals 1.0; a missing attribute fulfils nothing."""
    assert matches(condition, POINT) is holds


def nest(depth):
    condition = Equals("a", 1)
    for _ in range(depth):
        condition = Negated(condition)
    return condition


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        (All(()), "at least one filter"),
        (Negated(Any(())), "at least one filter"),
        (AnyOf("a", ()), "at least one value"),
        (Range("a"), "at least one of gt, gte, lt and lte"),
        (Range("a", gt=float("nan")), "each a finite number"),
        (Equals("", 1), "1 to 64 letters"),
        (Equals("a.b", 1), "1 to 64 letters"),
        (Equals("a" * 65, 1), "1 to 64 letters"),
        (Equals("a\n", 1), "1 to 64 letters"),
        (Equals("a", float("inf")), "finite"),
        (Equals("a", "x" * 8193), "at most 8192"),
        (AnyOf("a", tuple(range(1025))), "at most 1024 conditions and values"),
        (nest(filters.MAX_DEPTH), "at most 8 levels"),
    ],
)
def test_a_bad_filter_is_refused_with_what_would_be_accepted(condition, says):
    """Each mistake has its sentence."""
    with pytest.raises(InvalidRequest, match=says):
        check_filter(condition)


def test_a_filter_at_its_bounds_is_accepted():
    """The bounds themselves are allowed."""
    check_filter(nest(filters.MAX_DEPTH - 1))
    check_filter(AnyOf("a" * 64, tuple(range(1024))))


def test_attributes_survive_their_stored_form():
    """Sorting by type loses neither values nor types."""
    stored = to_stored(POINT)
    assert stored == {"string": {"s": "1"}, "number": {"i": 1, "f": 0.5}, "bool": {"t": 1}}
    back = from_stored(stored)
    assert back == POINT
    assert {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in POINT.items()}


@pytest.mark.parametrize(
    "attributes",
    [{"a b": 1}, {"a": float("nan")}, {"a": 2**63}, {f"k{i}": i for i in range(65)}],
)
def test_attributes_that_could_not_be_stored_are_refused(attributes):
    """Keys, numbers and counts out of bounds do not reach the engine."""
    with pytest.raises(InvalidRequest):
        check_attributes(attributes)
