"""What a calibration promises for a target, chosen from plans whose costs and bounds are known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.plan import Plan, Stage
from services.router.recall.bounds import lower_bound
from services.router.recall.calibration import Calibration, PlanRow, Recall, StageRow, promises

EXACT = Recall(mean=1.0, bound=1.0, promised={"latency": 1.0, "memory": 1.0})


def make_row(milliseconds, num_bytes, latency=None, memory=None, candidates=100, **slices):
    """A plan with a shortlist of its own length; `latency` and `memory` are what it promises."""
    promised = {"latency": latency, "memory": memory}
    promised = {name: promise for name, promise in promised.items() if promise is not None}
    recalls = {"": Recall(mean=0.99, bound=0.98, promised=promised)}
    for name, promise in slices.items():
        recalls[name] = Recall(mean=0.9, bound=promise, promised=dict.fromkeys(promised, promise))
    stages = (StageRow(dim=8, candidates=candidates, ef=64), StageRow(dim=32, candidates=10))
    return PlanRow(
        stages=stages,
        seconds_p50=milliseconds / 1000,
        seconds_p99=milliseconds / 500,
        memory_bytes=num_bytes,
        recalls=recalls,
    )


def make_calibration(*rows, slice_queries=(), target=0.95, objective="latency"):
    slice_queries = dict(slice_queries)
    exact = PlanRow(
        stages=(StageRow(dim=32, candidates=10, exact=True),),
        seconds_p50=0.010,
        seconds_p99=0.011,
        memory_bytes=128,
        recalls=dict.fromkeys(["", *slice_queries], EXACT),
    )
    return Calibration(
        created_at=1_800_000_000,
        space_id="space-1",
        num_points=5000,
        limit=10,
        confidence=0.95,
        source="given",
        num_queries=2000,
        slice_queries=slice_queries,
        target=target,
        objective=objective,
        plans=(exact, *rows),
        curves={"8": ((10, 0.5), (100, 0.9))},
    )


SAFE = make_row(4, 60, 0.99, 0.985)
QUICK = make_row(2, 80, 0.96)
SMALL = make_row(6, 20, None, 0.955)
BOLD = make_row(1, 40, 0.91, 0.92)
MEASURED = make_calibration(SAFE, QUICK, SMALL, BOLD)


@pytest.mark.parametrize(
    ("target", "objective", "chosen"),
    [
        (0.90, "latency", BOLD),
        (0.95, "latency", QUICK),
        (0.97, "latency", SAFE),
        (0.90, "memory", SMALL),
        (0.96, "memory", SAFE),
    ],
)
def test_the_cheapest_plan_that_holds_is_chosen(target, objective, chosen):
    """By time or by memory, of those that promise the target in that order of plans."""
    choice = MEASURED.choose(target, objective=objective)
    assert choice.row == chosen
    assert choice.promised == chosen.recalls[""].promised[objective] >= target
    assert (choice.is_met, choice.slice) == (True, "")


@pytest.mark.parametrize("target", [0.991, 0.9999, 1.0])
def test_a_target_that_no_shortlist_holds_gets_exact_search(target):
    """Exact search keeps everything, so every target can be met."""
    choice = MEASURED.choose(target)
    assert choice.row.stages[0].exact
    assert (choice.promised, choice.is_met) == (1.0, True)


def test_a_measured_mean_above_the_target_promises_nothing():
    """All means here are 0.99; only the bounds of a sequence of plans are promised."""
    assert all(row.recalls[""].mean == 0.99 for row in MEASURED.plans[1:])
    assert MEASURED.choose(0.985).row == SAFE


@pytest.mark.parametrize(
    ("budgets", "target", "chosen", "is_met"),
    [
        ({"max_seconds": 0.003}, 0.95, QUICK, True),
        ({"max_seconds": 0.003}, 0.98, QUICK, False),
        ({"max_bytes": 70}, 0.95, SAFE, True),
        ({"max_bytes": 50}, 0.95, SMALL, True),  # only in the other sequence, and still good
        ({"max_bytes": 50}, 0.96, SMALL, False),
        ({"max_seconds": 0.0015, "max_bytes": 50}, 0.90, BOLD, True),
        ({"max_seconds": 0.0015, "max_bytes": 50}, 0.93, BOLD, False),
        ({"max_seconds": 0.004}, 0.98, SAFE, True),  # a budget is kept by what costs just as much
    ],
)
def test_budgets_are_kept_before_the_target(budgets, target, chosen, is_met):
    """If no plan within them holds the target, the one that promises most, and that it is not."""
    choice = MEASURED.choose(target, **budgets)
    assert choice.row == chosen
    assert choice.is_met is is_met
    assert (choice.promised >= target) is is_met


@pytest.mark.parametrize(
    ("budgets", "cheapest"), [({"max_seconds": 0.0005}, BOLD), ({"max_bytes": 19}, SMALL)]
)
def test_budgets_below_every_plan_are_said_to_be_broken(budgets, cheapest):
    """The cheapest answers, as something must, and is not passed off as what was asked for."""
    choice = MEASURED.choose(0.5, **budgets)
    assert choice.row == cheapest
    assert not choice.is_met
    assert not choice.is_affordable


SLICED = make_calibration(
    make_row(4, 60, 0.99, 0.99, hard=0.96, rare=0.5, easy=0.995),
    make_row(2, 60, 0.96, 0.96, hard=0.80, rare=0.4, easy=0.99),
    make_row(1, 60, 0.90, 0.90, hard=0.60, rare=0.3, easy=0.98),
    slice_queries={"hard": 500, "easy": 500, "rare": 40},
)


@pytest.mark.parametrize(
    ("slice_", "milliseconds", "basis"),
    [("", 2, ""), ("hard", 4, "hard"), ("easy", 1, "easy"), ("rare", 2, ""), ("unknown", 2, "")],
)
def test_a_slice_has_its_own_plan_if_it_had_queries_enough(slice_, milliseconds, basis):
    """A hard one gets a safer plan, an easy one a quicker; one with too few takes that of all."""
    choice = SLICED.choose(0.95, slice_)
    assert choice.row.seconds_p50 == milliseconds / 1000
    assert (choice.slice, choice.is_met) == (basis, True)


def test_how_many_queries_are_enough_depends_on_the_target():
    """Forty perfect queries would certify 0.92, but not 0.95."""
    assert SLICED.choose(0.90, "rare").slice == "rare"
    assert SLICED.choose(0.95, "rare").slice == ""
    assert SLICED.choose(0.90, "rare").row == SLICED.plans[0]


@pytest.mark.parametrize("count", [20, 58, 59, 200])
def test_enough_is_what_perfect_recalls_would_certify(count):
    """The closed form that searches use agrees with the bound that plans are measured by."""
    some = make_calibration(make_row(1, 1, 0.5, 0.5, x=0.5), slice_queries={"x": count})
    bound = lower_bound([1.0] * count, some.confidence)
    assert some.choose(bound - 0.01, "x").slice == "x"
    assert some.choose(bound + 0.01, "x").slice == ""


def test_a_promise_is_the_least_of_all_safer_ones():
    """A plan that happened to do well does not promise more than those before it."""
    assert list(promises([0.99, 0.97, 0.98, 0.9, 0.95])) == [0.99, 0.97, 0.97, 0.9, 0.9]
    assert list(promises([])) == []


def test_a_plan_takes_the_limit_of_the_search():
    """Stages come back as they were measured, the last with as many hits as are wanted."""
    row = make_row(1, 1, 0.9)
    assert row.plan(3) == Plan((Stage(8, 100, ef=64), Stage(32, 3)))
    coded = row.model_copy(update={"stages": (StageRow(dim=32, candidates=10, oversampling=0.0),)})
    assert coded.plan(10) == Plan((Stage(32, 10, oversampling=0.0),))


_share = st.floats(0, 1)
_row = st.builds(make_row, st.floats(0.01, 50), st.integers(1, 10_000), _share, _share, hard=_share)


@settings(max_examples=100, database=None, derandomize=True, deadline=None)
@given(
    rows=st.lists(_row, max_size=6),
    target=st.floats(0.01, 1),
    slice_=st.sampled_from(["", "hard", "unknown"]),
    max_seconds=st.none() | st.floats(0.0001, 0.1),
    max_bytes=st.none() | st.integers(1, 10_000),
    objective=st.sampled_from(["latency", "memory", None]),
)
def test_what_is_met_is_met(rows, target, slice_, max_seconds, max_bytes, objective):
    """Of any plans: a met promise is at least the target, within the budgets, and none is cheaper;
    through JSON and back nothing changes.
    """
    calibration = make_calibration(*rows, slice_queries={"hard": 700})
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
    assert Calibration.model_validate(calibration.model_dump(mode="json")) == calibration
    choice = calibration.choose(target, slice_, max_seconds, max_bytes, objective)
    assert choice.row in calibration.plans
    if not choice.is_met:
        return
    assert choice.promised >= target
    assert choice.row.seconds_p50 <= (max_seconds or math.inf)
    assert choice.row.memory_bytes <= (max_bytes or math.inf)
    order = objective or "latency"
    for row in calibration.plans:
        is_cheaper = row.seconds_p50 < choice.row.seconds_p50
        if order == "memory":
            is_cheaper = row.memory_bytes < choice.row.memory_bytes
        if is_cheaper and row.recalls[choice.slice].promised[order] >= target:
            assert row.seconds_p50 > (max_seconds or math.inf) or (
                row.memory_bytes > (max_bytes or math.inf)
            )
