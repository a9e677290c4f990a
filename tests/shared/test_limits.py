"""How often a key may be used, on a clock that the test turns."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.limits import Allowance, Limits, OverLimit


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def call(allowance):
    """Make one call; return None, or for how long to wait."""
    try:
        with allowance.use():
            return None
    except OverLimit as error:
        return error.retry_after_s


def test_without_limits_nothing_is_refused(clock):
    """As many calls as one likes, at once."""
    allowance = Allowance(now=clock)
    with ExitStack() as going_on:
        for _ in range(1000):
            going_on.enter_context(allowance.use())


def test_a_minutes_calls_may_come_together_and_come_back_evenly(clock):
    """Six a minute: six at once, then one every ten seconds, and never more than six saved up."""
    allowance = Allowance(Limits(requests_per_minute=6), clock)
    assert [call(allowance) for _ in range(8)] == [None] * 6 + [10, 10]
    clock.now_s += 9.5
    assert call(allowance) == 1
    clock.now_s += 0.5
    assert [call(allowance) for _ in range(2)] == [None, 10]
    clock.now_s += 3600
    assert [call(allowance) for _ in range(7)] == [None] * 6 + [10]


@given(
    st.integers(1, 10_000),
    st.lists(st.floats(0, 100), min_size=1, max_size=20),
    st.floats(0, 1e7),
)
def test_who_waits_as_long_as_told_is_served_and_nobody_gets_more(rate, pauses_s, start_s):
    """Whatever the rate, the clock and the pauses between."""
    clock = Clock()
    clock.now_s = start_s
    allowance = Allowance(Limits(requests_per_minute=rate), clock)
    served = 0
    for pause_s in pauses_s:
        while served < 3 * rate and (wait_s := call(allowance)) is None:
            served += 1
        if served == 3 * rate:
            return
        assert 1 <= wait_s <= 60
        assert served <= rate + (clock.now_s - start_s) * rate / 60 + 1e-6
        clock.now_s += wait_s + pause_s
        assert call(allowance) is None
        served += 1


def test_calls_at_once_are_counted_until_they_end(clock):
    """However they end; a call that is refused for it uses up no request."""
    allowance = Allowance(Limits(requests_per_minute=4, concurrent_calls=2), clock)
    with allowance.use():
        with allowance.use():
            with pytest.raises(OverLimit, match="at most 2 calls at once") as caught:
                allowance.use().__enter__()
            assert caught.value.limit == "calls"
        with pytest.raises(ZeroDivisionError), allowance.use():
            raise ZeroDivisionError
    assert call(allowance) is None
    with pytest.raises(OverLimit, match="at most 4 requests a minute") as caught:
        allowance.use().__enter__()
    assert caught.value.limit == "requests"


def test_other_limits_forget_nothing(clock):
    """What was used up stays so, and a call that goes on is counted by limits that come later."""
    allowance = Allowance(Limits(requests_per_minute=60), clock)
    for _ in range(60):
        assert call(allowance) is None
    allowance.change(Limits(requests_per_minute=6))
    assert call(allowance) == 10
    clock.now_s += 10
    with allowance.use():
        allowance.change(Limits(concurrent_calls=1))
        assert call(allowance) == 1
    assert call(allowance) is None
