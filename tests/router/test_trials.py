"""What plans that are measured need."""

import pytest

from services.router.plan import Plan, Stage
from services.router.recall.trials import CERTAIN, Margin, Trial, bytes_needed, front, screen
from services.router.sizes import SizeRequest, memory, resolve_sizes

FULL = 64
POINTS = 1000


@pytest.mark.parametrize(
    ("first", "last", "codes", "originals"),
    [
        (SizeRequest(16), SizeRequest(FULL), 0, 16),
        (SizeRequest(16), SizeRequest(FULL, placement="cached"), 0, 16 + FULL),
        (SizeRequest(16, placement="cold"), SizeRequest(FULL), 0, 16),
        (SizeRequest(16, "int8"), SizeRequest(FULL, "int8"), 2, 0),
        (SizeRequest(16, "int8"), SizeRequest(FULL, "int8", index_placement="cached"), 2, 0),
        (SizeRequest(16, "int8"), SizeRequest(FULL, "int8", index_placement="cold"), 1, 0),
        (SizeRequest(16, "int8", index_placement="cold"), SizeRequest(FULL), 1, 0),
    ],
)
def test_what_a_first_stage_reads_must_be_in_memory(first, last, codes, originals):
    """All of it, wherever it lies; of what later ones read, what was not left on the disk."""
    sizes = resolve_sizes([first, last], FULL)
    costs = memory(sizes, POINTS)
    of_codes = sum(cost.vector_bytes for cost in costs[:codes])
    plan = Plan((Stage(16, 50), Stage(FULL, 10)))
    assert bytes_needed(plan, sizes, POINTS) == costs[0].graph_bytes + of_codes + 4 * originals
    scan = Plan((Stage(16, 50, exact=True), Stage(FULL, 10)))
    assert bytes_needed(scan, sizes, POINTS) <= 4 * (16 + FULL), "without the graph"


def trial(recalls, ms, memory_bytes=100):
    return Trial(Plan((Stage(FULL, 10),)), memory_bytes, recalls, [ms / 1000])


MARGIN = Margin(ahead=0.8, tied=0.4)


def test_luck_of_a_bold_plan_leaves_the_careful_ones():
    """Equal recalls of few queries are no evidence: only what is much slower is dropped."""
    bold, careful, slow = trial([1.0] * 16, 0.2), trial([1.0] * 16, 0.4), trial([1.0] * 16, 0.6)
    exact = trial([1.0] * 16, 3.0)
    assert screen([bold, careful, slow], exact, MARGIN) == [bold, careful]
    assert front([bold, careful, slow], "latency", CERTAIN) == [bold]


def test_more_recall_in_less_time_beats():
    """By the margin; a mean of the same recalls in another order is the same."""
    good, near, worse = trial([1.0, 0.9], 0.2), trial([0.9, 0.9], 0.24), trial([0.9, 0.9], 0.26)
    assert front([worse, near, good], "latency", MARGIN) == [near, good]
    one, other = trial([0.1, 0.2, 0.3], 0.2), trial([0.3, 0.2, 0.1], 0.3)
    assert front([one, other], "latency", MARGIN) == [one, other]


def test_what_needs_less_memory_stays_however_slow():
    """Each objective has a front of its own; what is slower than exact search is on none."""
    fast, small = trial([0.9], 0.1, 200), trial([0.9], 0.9, 100)
    large, slow = trial([0.8], 0.2, 300), trial([1.0], 3.0, 50)
    exact = trial([1.0], 2.0, 400)
    assert screen([fast, small, large, slow], exact, MARGIN) == [fast, small]
    assert front([fast, small], "memory", MARGIN) == [fast, small], "a tie is no evidence here"
    assert front([fast, small], "memory", CERTAIN) == [small]
    assert front([trial([0.8], 0.1, 200), small], "memory", MARGIN) == [small]
