"""Who may wait, decided at the door: by seconds, by tokens, by deadline."""

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from services.encoder.admission import Admission, estimate_tokens
from services.encoder.metrics import EncoderMetrics
from services.encoder.pace import Pace
from services.shared.errors import Overloaded

PER_S = 100  # tokens


@pytest.fixture
def batcher():
    return new_batcher(PER_S)


def new_batcher(per_s):
    """Only its pace matters here, and that it can stand in a table."""

    class Named(SimpleNamespace):
        __hash__ = object.__hash__

    pace = Pace(max_pass_s=1, max_batch_tokens=10_000)
    pace.observe(per_s * 10, 10.0)
    return Named(pace=pace)


@pytest.fixture
def metrics():
    return EncoderMetrics(CollectorRegistry())


@pytest.fixture
def admission(metrics):
    return Admission(max_queue_s=5, max_bulk_queue_s=50, max_queued_tokens=4000, metrics=metrics)


def test_a_wait_over_the_bound_is_refused_with_its_length(admission, batcher):
    """The refusal says how long the queue is, and to come back when it is done."""
    with admission.enter(batcher, "interactive", 3 * PER_S):
        with pytest.raises(Overloaded, match="about 3.0 s.*at most 5 s.*again in 3 s") as caught:
            admission.enter(batcher, "interactive", 3 * PER_S).__enter__()
        assert caught.value.retry_after_s == 3
        with admission.enter(batcher, "interactive", PER_S):
            pass


def test_what_finds_nothing_ahead_is_let_in(admission, batcher):
    """A large request is never refused by an idle encoder, whatever the bounds."""
    with admission.enter(batcher, "interactive", 10_000):
        pass


def test_large_requests_are_bulk_work(admission, batcher):
    """Who alone takes longer than any query may wait does not stand in the queries' way."""
    with admission.enter(batcher, "interactive", 6 * PER_S) as place:
        assert place.lane == "bulk"
        with admission.enter(batcher, "interactive", PER_S) as query:
            assert query.lane == "interactive"


def test_bulk_work_may_wait_longer_and_counts_what_goes_before(admission, batcher):
    """Bulk has its own bound, and interactive work is ahead of it."""
    with admission.enter(batcher, "bulk", 30 * PER_S):
        with pytest.raises(Overloaded, match="at most 50 s"):
            admission.enter(batcher, "bulk", 21 * PER_S).__enter__()
        with (
            admission.enter(batcher, "interactive", 4 * PER_S),
            pytest.raises(Overloaded, match=r"about 34.0 s"),
        ):
            admission.enter(batcher, "bulk", 17 * PER_S).__enter__()


def test_tokens_are_bounded_whatever_the_pace(metrics):
    """A fast model's queue is bounded too: tokens are memory."""
    fast = new_batcher(1_000_000)
    admission = Admission(5, 50, 4000, metrics)
    with (
        admission.enter(fast, "interactive", 3000),
        pytest.raises(Overloaded, match="at most 4000 tokens"),
    ):
        admission.enter(fast, "interactive", 1001).__enter__()


def test_a_deadline_that_cannot_be_met_is_refused_at_once(admission, batcher):
    """Work for a caller who will have left is not begun."""
    with admission.enter(batcher, "interactive", 3 * PER_S):
        with pytest.raises(Overloaded, match=r"your deadline is in 2.0 s"):
            admission.enter(batcher, "interactive", PER_S, remaining_s=2.0).__enter__()
        with admission.enter(batcher, "interactive", PER_S, remaining_s=4.5):
            pass


def test_models_share_one_queue_of_seconds(admission, batcher):
    """All models run on one thread, so what waits for a slow one delays the others."""
    slow = new_batcher(PER_S / 10)
    with (
        admission.enter(slow, "interactive", 4 * PER_S // 10),
        pytest.raises(Overloaded, match=r"about 4.0 s"),
    ):
        admission.enter(batcher, "interactive", 2 * PER_S).__enter__()


def test_the_estimate_is_settled_once_tokens_are_known(admission, batcher):
    """Texts with far more tokens than their length tells are refused after all."""
    with (
        admission.enter(batcher, "interactive", PER_S),
        admission.enter(batcher, "interactive", PER_S) as place,
        pytest.raises(Overloaded),
    ):
        place.settle(20 * PER_S)
    assert admission.tokens() == 0


def test_alone_it_may_be_more_than_estimated(admission, batcher):
    """A request's own estimate is not in its own way."""
    with admission.enter(batcher, "interactive", PER_S) as place:
        place.settle(100 * PER_S)
        assert admission.tokens() == 100 * PER_S


def test_room_is_given_back_as_work_is_done(admission, batcher):
    """Each pass makes room, and whoever leaves takes all of his with him."""
    with admission.enter(batcher, "bulk", 100) as place:
        place.settle(80)
        place.done(30)
        assert admission.tokens() == 50
    assert admission.tokens() == 0


def test_the_estimate_needs_no_tokenizer():
    """Long texts count as the longest that the model reads; token ids are counted."""
    assert estimate_tokens(["x" * 400, "y" * 100_000], [], 256) == 102 + 256
    assert estimate_tokens([[1, 2, 3]], [b"png"], 256) == 5 + 256


def test_the_pace_is_that_of_full_passes():
    """Many small passes, whose cost is fixed, do not make the machine look slow."""
    pace = Pace(max_pass_s=0.1, max_batch_tokens=100_000)
    for _ in range(20):
        pace.observe(pace.pass_tokens, pace.pass_tokens / 50_000)
    for _ in range(200):
        pace.observe(5, 0.005)
    assert 40_000 < pace.tokens_per_s < 60_000
    assert pace.pass_tokens == pytest.approx(5000, rel=0.2)


def test_the_pace_follows_the_machine():
    """A machine that slows down is believed after some passes, and so is one that recovers."""
    pace = Pace(max_pass_s=0.1, max_batch_tokens=100_000)
    for per_s in (10_000, 1000, 10_000):
        for _ in range(60):
            pace.observe(pace.pass_tokens, pace.pass_tokens / per_s)
        assert pace.tokens_per_s == pytest.approx(per_s, rel=0.3)
