"""Plans: what is accepted, what the defaults are, and what recall means."""

import pytest

from services.router.plan import (
    Plan,
    Stage,
    default_plan,
    exact_plan,
    recall,
    resolve_plan,
)
from services.router.sizes import SizeRequest, resolve_sizes
from services.shared.errors import InvalidRequest

SIZES = resolve_sizes([SizeRequest(64), SizeRequest(128)], 384)


def test_the_default_plan_shortlists_on_the_shortest_size_with_a_graph():
    """Ten times the hits, at least 100, at most what may be handed on; then the full size."""
    assert default_plan(SIZES, 10, 20_000).stages == (Stage(64, 100), Stage(384, 10))
    assert default_plan(SIZES, 50, 20_000).stages[0].candidates == 500
    assert default_plan(SIZES, 50, 200).stages[0].candidates == 200
    no_graph = resolve_sizes([SizeRequest(64, hnsw_m=0), SizeRequest(128)], 384)
    assert default_plan(no_graph, 10, 20_000).stages[0].dim == 128


@pytest.mark.parametrize(
    "requests",
    [
        [SizeRequest(384)],
        [SizeRequest(64, hnsw_m=0), SizeRequest(384, hnsw_m=0)],
        [SizeRequest(64, hnsw_m=0), SizeRequest(384, hnsw_m=8)],
    ],
)
def test_without_a_short_graph_the_default_plan_has_one_stage(requests):
    """One stage at full size: through its graph, or as a scan where there is none."""
    assert default_plan(resolve_sizes(requests, 384), 7, 100).stages == (Stage(384, 7),)


def test_a_good_plan_gets_its_limit():
    """The last stage hands on the limit; a plan may end at any size, and come back as it was."""
    plan = Plan((Stage(64, 200, ef=64), Stage(128)))
    resolved = resolve_plan(plan, SIZES, 10, 1000)
    assert resolved.stages == (Stage(64, 200, ef=64), Stage(128, 10))
    assert resolved.limit == 10
    assert resolve_plan(resolved, SIZES, 10, 1000) == resolved
    assert resolve_plan(exact_plan(SIZES, 10), SIZES, 10, 1000).stages[0].exact


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((), "1 to 3 stages"),
        ((Stage(64, 9),) * 4, "1 to 3 stages"),
        ((Stage(100),), r"a size of this collection \(64, 128, 384\), got 100"),
        ((Stage(128, 100), Stage(64)), "must ascend"),
        ((Stage(64, 100), Stage(64)), "must ascend"),
        ((Stage(64, 100), Stage(384, exact=True)), "belong to the first stage"),
        ((Stage(64, 100), Stage(384, ef=10)), "belong to the first stage"),
        ((Stage(64, exact=True, ef=10),), "ef must be 0"),
        ((Stage(64, ef=10_001),), "ef must be at most 10000"),
        ((Stage(64, 9), Stage(384)), r"at 64 must be between the limit \(10\) and 1000, got 9"),
        ((Stage(64), Stage(384)), "got 0"),
        ((Stage(64, 1001), Stage(384)), "and 1000, got 1001"),
        ((Stage(64, 50), Stage(128, 51), Stage(384)), "at 128 must be .* and 50, got 51"),
        ((Stage(64, 50), Stage(384, 11)), r"is the limit \(10\); leave it 0, got 11"),
    ],
)
def test_a_bad_plan_is_refused_with_what_would_be_accepted(stages, says):
    """Each mistake has its sentence."""
    with pytest.raises(InvalidRequest, match=says) as caught:
        resolve_plan(Plan(stages), SIZES, 10, 1000)
    assert caught.value.param == "plan"


def test_recall_is_the_share_of_exact_hits_found():
    """Order does not matter, extra hits do not help, nothing to find is found."""
    exact = [("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.6)]
    assert recall(list(reversed(exact)), exact) == 1.0
    assert recall([("a", 0.9), ("x", 0.5), ("y", 0.4)], exact) == 0.25
    assert recall([], exact) == 0.0
    assert recall([], []) == 1.0


def test_a_tie_with_the_last_exact_hit_counts_as_found():
    """Which of two equal documents comes first is chance; at another size scores say nothing."""
    exact = [("a", 0.9), ("b", 0.8)]
    assert recall([("a", 0.9), ("twin of b", 0.8)], exact) == 1.0
    assert recall([("a", 0.9), ("worse", 0.79)], exact) == 0.5
    assert recall([("a", 0.99), ("x", 0.95)], exact, is_same_size=False) == 0.5
