"""Bodies are bounded together, and what was held is given back."""

import pytest

from services.shared.bodies import Bodies
from services.shared.errors import Overloaded


def test_bodies_are_bounded_together():
    """The piece that would pass the bound is refused; what was refused is not held."""
    bodies = Bodies(max_bytes=100, max_s=1)
    with bodies.hold() as first:
        first.grow(60)
        with bodies.hold() as second:
            second.grow(40)
            with pytest.raises(Overloaded, match="at most 100"):
                second.grow(1)
        with bodies.hold() as third:
            third.grow(40)


def test_what_a_request_held_is_given_back_however_it_ends():
    """An error in the middle of a request leaves no bytes behind."""
    bodies = Bodies(max_bytes=100, max_s=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="oops"):
            fail_while_holding(bodies)


def fail_while_holding(bodies):
    with bodies.hold() as body:
        body.grow(100)
        raise ValueError("oops")


def test_a_body_that_is_alone_has_room():
    """Its own bound is that of a single body, elsewhere."""
    with Bodies(max_bytes=100, max_s=1).hold() as body:
        body.grow(1000)
