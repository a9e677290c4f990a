"""Plans worth measuring: each can be run, and nothing that the field sets by hand is left out."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.plan import exact_plan, resolve_plan
from services.router.recall.candidates import candidate_plans
from services.router.recall.ranks import Neighbours
from services.router.sizes import BITS, SizeRequest, resolve_sizes

FULL = 64


def neighbours_at(sizes, ranks) -> Neighbours:
    """Queries with one true neighbour each, at the same ranks in every size."""
    num = len(ranks)
    at_each = {size.key: [[rank] for rank in ranks] for size in sizes[:-1]}
    return Neighbours([["key"]] * num, [[1.0]] * num, {**at_each, (FULL, False): [[1]] * num})


def describe(plans):
    return {tuple(stage.dim for stage in plan.stages) for plan in plans}


_request = st.builds(
    SizeRequest,
    dim=st.sampled_from([4, 8, 16, 32, 48, FULL]),
    quantization=st.sampled_from(sorted(BITS)),
    hnsw_m=st.sampled_from([None, 0, 8]),
    is_nested=st.booleans(),
).filter(lambda request: not request.is_nested or (request.dim % 8 == 0 and request.dim < FULL))


@settings(max_examples=150, database=None, derandomize=True, deadline=None)
@given(
    requests=st.lists(
        _request, min_size=1, max_size=4, unique_by=lambda request: (request.dim, request.is_nested)
    ),
    ranks=st.lists(st.integers(0, 400), max_size=40),
    limit=st.integers(1, 60),
    more_points=st.sampled_from([1, 20, 500, 2_000_000]),
    max_candidates=st.sampled_from([10, 50, 400, 5000]),
)
def test_every_plan_can_be_run_as_it_is(requests, ranks, limit, more_points, max_candidates):
    """For any sizes and ranks each plan is a user's valid plan, resolved, and there once."""
    sizes = resolve_sizes(requests, FULL, nesting="rotation")
    num_points = limit + more_points
    plans = candidate_plans(
        sizes, neighbours_at(sizes, ranks), num_points, limit, max_candidates
    )  # fmt: skip
    for plan in plans:
        assert resolve_plan(plan, sizes, limit, max_candidates) == plan
        assert plan.limit == limit
        assert plan.stages[-1].dim == FULL
        assert all(stage.candidates <= num_points for stage in plan.stages)
    assert len(set(plans)) == len(plans)
    assert exact_plan(sizes, limit) not in plans, "it is measured anyway"


SIZES = resolve_sizes([SizeRequest(8, "turbo2"), SizeRequest(16), SizeRequest(32)], FULL)
# Most neighbours are near the top, some far down, as in life.
RANKS = [*range(1, 81), 100, 120, 150, 200, 300, 400, 600, 800]


def test_all_that_can_be_set_is_tried():
    """Each size, many lengths, wide walks and narrow, scans, codes rescored or not."""
    plans = candidate_plans(SIZES, neighbours_at(SIZES, RANKS), 10_000, 10, 5000)
    assert describe(plans) == {(8, FULL), (16, FULL), (32, FULL)}
    two_stages = [plan for plan in plans if len(plan.stages) == 2]
    for dim in (8, 16, 32):
        firsts = [plan.stages[0] for plan in two_stages if plan.stages[0].dim == dim]
        lengths = {first.candidates for first in firsts}
        assert len(lengths) > 10
        assert {first.ef > 3 * first.candidates for first in firsts if first.ef} == {True, False}
        assert any(first.exact for first in firsts)
    coded = {plan.stages[0].oversampling for plan in plans if plan.stages[0].dim == 8}
    assert {0.0, 1.0} <= coded


def test_a_short_list_is_tried_with_wide_walks_too():
    """A size near the full one is limited by its graph: lists of 10 get walks up to 256."""
    plans = candidate_plans(SIZES, neighbours_at(SIZES, [1, 5, 10] * 9), 10_000, 10, 5000)
    firsts = [plan.stages[0] for plan in plans if len(plan.stages) == 2]
    walks = {f.ef for f in firsts if f.dim == 32 and f.candidates == 10 and f.ef}
    assert {16, 96, 128, 256} <= walks
    assert max(walks) == 256


def test_shortlists_end_where_they_keep_nearly_all():
    """Of codes, which blur ranks, they go further, but never beyond what may be handed on."""

    def lengths(dim, most=5000):
        plans = candidate_plans(SIZES, neighbours_at(SIZES, RANKS), 10_000, 10, most)
        firsts = [plan.stages[0] for plan in plans if len(plan.stages) == 2]
        return {first.candidates for first in firsts if first.dim == dim}

    assert (min(lengths(16)), max(lengths(16))) == (75, 800)
    assert (min(lengths(8)), max(lengths(8))) == (75, 2400)
    assert max(lengths(8, most=300)) == 300


def test_a_neighbour_beyond_the_ranks_kept_counts_as_the_last():
    """Rank 0 asks for the longest shortlist, not for the shortest."""
    ranks = [1] * 50 + [0] * 50
    plans = candidate_plans(SIZES, neighbours_at(SIZES, ranks), 10_000, 10, 500)
    assert {p.stages[0].candidates for p in plans if len(p.stages) == 2} == {500}


def test_a_funnel_narrows():
    """A middle size, if it ranks better, lets fewer points through to the full one."""
    steps = {8: RANKS, 16: [min(rank, 40) for rank in RANKS], 32: RANKS}
    neighbours = neighbours_at(SIZES, RANKS)
    for dim, ranks in steps.items():
        neighbours.ranks[dim, False] = [[rank] for rank in ranks]
    plans = candidate_plans(SIZES, neighbours, 10_000, 10, 5000)
    assert (8, 16, FULL) in describe(plans)
    assert (8, 32, FULL) not in describe(plans), "32 ranks no better than 8 here"


def test_a_scan_of_too_many_numbers_is_not_tried():
    """It takes longer than any plan that is worth it."""
    few, many = (
        candidate_plans(SIZES, neighbours_at(SIZES, RANKS), num_points, 10, 5000)
        for num_points in (10_000, 10_000_000)
    )
    assert any(plan.stages[0].exact for plan in few)
    assert not any(plan.stages[0].exact for plan in many)
    assert any(plan.stages[0].ef for plan in many)


def test_a_collection_of_one_size_has_plans_if_it_has_a_graph_or_codes():
    """Walks of several widths; codes, rescored more and less; or nothing but exact search."""

    def plans(*request):
        sizes = resolve_sizes([SizeRequest(FULL, *request)], FULL)
        return candidate_plans(sizes, neighbours_at(sizes, []), 10_000, 20, 5000)

    walks = [plan.stages[0].ef for plan in plans("none", 16)]
    assert walks == sorted(set(walks))
    assert (min(walks), max(walks)) == (24, 1024)
    assert {plan.stages[0].oversampling for plan in plans("turbo1", 0)} == {
        0,
        1,
        1.5,
        2,
        3,
        4,
        6,
        10,
    }
    assert plans("none", 0) == []
