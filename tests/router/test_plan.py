"""Plans: what is accepted, what the defaults are, and what recall means."""

import pytest

from services.router.plan import (
    Plan,
    Stage,
    default_plan,
    exact_plan,
    for_fewer_hits,
    oversampling,
    recall,
    resolve_plan,
    scores_are_cosines,
)
from services.router.sizes import Size, SizeRequest, resolve_sizes
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


CODED = resolve_sizes([SizeRequest(64, "turbo1"), SizeRequest(128)], 384)


@pytest.mark.parametrize("times", [None, 0.0, 1.0, 2.5, 100.0])
def test_oversampling_is_accepted_where_codes_are_read(times):
    """None and 0 leave it to the codes; from 1 on candidates are scored anew."""
    plan = Plan(
        (Stage(64, 100, oversampling=times), Stage(128, 20, oversampling=0.0), Stage(384, 10))
    )
    assert resolve_plan(plan, CODED, 10, 1000) == plan


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((Stage(64, 100, oversampling=0.5), Stage(384)), "0, or 1 to 100, got 0.5"),
        ((Stage(64, 100, oversampling=-1.0), Stage(384)), "0, or 1 to 100, got -1"),
        ((Stage(64, 100, oversampling=100.5), Stage(384)), "0, or 1 to 100, got 100.5"),
        ((Stage(64, 100, oversampling=float("nan")), Stage(384)), "0, or 1 to 100, got nan"),
        ((Stage(128, 100, oversampling=2.0), Stage(384)), "reads codes; leave it unset at 128"),
        (
            (Stage(64, 100, ignore_quantization=True, oversampling=2.0), Stage(384)),
            "reads codes; leave it unset at 64",
        ),
        ((Stage(64, 100, exact=True, oversampling=2.0), Stage(384)), "unset at 64"),
        ((Stage(64, 100), Stage(384, oversampling=1.0)), "unset at 384"),
    ],
)  # fmt: skip
def test_oversampling_elsewhere_is_refused(stages, says):
    """It means nothing where no codes are read, and takes no number that it cannot keep."""
    with pytest.raises(InvalidRequest, match=says) as caught:
        resolve_plan(Plan(stages), CODED, 10, 1000)
    assert caught.value.param == "plan"


@pytest.mark.parametrize(
    ("quantization", "stage", "times"),
    [
        ("turbo1", Stage(64), 1.0),
        ("turbo2", Stage(64), 1.0),
        ("binary", Stage(64), 1.0),
        ("int8", Stage(64), 0.0),
        ("turbo4", Stage(64), 0.0),
        ("turbo1", Stage(64, oversampling=0.0), 0.0),
        ("turbo4", Stage(64, oversampling=3.0), 3.0),
        ("turbo1", Stage(64, ignore_quantization=True), 0.0),
        ("turbo1", Stage(64, exact=True), 0.0),
        ("none", Stage(64), 0.0),
    ],
)
def test_coarse_codes_are_rescored_unless_a_plan_says_otherwise(quantization, stage, times):
    """Codes of one or two bits hand their candidates to the originals once by default."""
    assert oversampling(stage, Size(64, quantization, 16)) == times


@pytest.mark.parametrize(
    ("quantization", "last", "is_cosine"),
    [
        ("none", Stage(384, 10), True),
        ("none", Stage(384, 10, exact=True), True),
        ("none", Stage(128, 10), False),
        ("int8", Stage(384, 10), False),
        ("int8", Stage(384, 10, oversampling=1.0), True),
        ("int8", Stage(384, 10, ignore_quantization=True), True),
        ("int8", Stage(384, 10, exact=True), True),
        ("turbo1", Stage(384, 10), True),
        ("turbo1", Stage(384, 10, oversampling=0.0), False),
        ("turbo1", Stage(128, 10, oversampling=1.0), False),
    ],
)
def test_what_codes_make_of_a_score_is_no_cosine(quantization, last, is_cosine):
    """Only the originals at full size give scores that may be compared with the exact ones."""
    assert scores_are_cosines(Plan((last,)), Size(384, quantization, 16)) is is_cosine


@pytest.mark.parametrize(
    ("quantization", "last", "fewer"),
    [
        ("turbo2", Stage(384, 10, oversampling=4.0), Stage(384, 2, oversampling=20.0)),
        ("turbo2", Stage(384, 10), Stage(384, 2, oversampling=5.0)),
        ("turbo4", Stage(384, 10, ef=32, oversampling=0.0), Stage(384, 2, ef=32, oversampling=5.0)),
        ("int8", Stage(384, 10), Stage(384, 2, oversampling=5.0)),
        ("int8", Stage(384, 10, ignore_quantization=True),
         Stage(384, 2, ignore_quantization=True)),
        ("int8", Stage(384, 10, exact=True), Stage(384, 2, exact=True)),
        ("none", Stage(384, 10, ef=32), Stage(384, 2, ef=32)),
    ],
)  # fmt: skip
def test_a_plan_for_fewer_hits_scores_as_many_points_anew(quantization, last, fewer):
    """Only what codes would lose is made up for; the same limit changes nothing."""
    full = Size(384, quantization, 16)
    first = Stage(64, 100)
    assert for_fewer_hits(Plan((first, last)), full, 2) == Plan((first, fewer))
    assert for_fewer_hits(Plan((first, last)), full, 10) == Plan((first, last))


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
    assert recall([("a", 0.99), ("x", 0.95)], exact, is_cosine=False) == 0.5
