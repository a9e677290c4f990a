"""What plans that are measured need."""

import pytest

from services.router.plan import Plan, Stage
from services.router.recall.trials import bytes_needed
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
