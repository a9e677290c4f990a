"""Which plan a search runs: its own, the one that keeps its target, or exact search."""

import pytest

from services.router.plan import Plan, Stage, default_plan, exact_plan
from services.router.recall.calibration import StageRow
from services.router.recall.promise import Promises, Wish
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.spread import Spread
from services.router.storage.store import Collection
from services.shared.errors import InvalidRequest, WrongState
from tests.router.test_calibration import (
    BOLD,
    MEASURED,
    QUICK,
    SAFE,
    SMALL,
    make_calibration,
    make_row,
)

SIZES = resolve_sizes([SizeRequest(8)], 32)


def make_collection(calibration=None, space_id="space-1", shards=1):
    stored = calibration and calibration.model_dump(mode="json")
    return Collection("docs", "model-1", space_id, SIZES, stored, spread=Spread(shards, 1))


PLAIN, CALIBRATED = make_collection(), make_collection(MEASURED)


def plan_of(collection=CALIBRATED, limit=10, **wish):
    return Promises(max_candidates=500).plan(Wish(limit, **wish), collection)


def test_a_target_gets_its_plan_and_is_promised():
    """The plan that is sure of it, and how sure, by measurement."""
    plan, promise = plan_of(recall_target=0.97)
    assert plan == SAFE.plan(10)
    assert (promise.target, promise.recall, promise.is_met) == (0.97, 0.99, True)
    assert (promise.basis, promise.slice, promise.note) == ("measured", "", "")


def test_a_search_that_says_nothing_gets_the_collection_s_target():
    """As it was given to the calibration; a smaller limit holds too."""
    for limit in (1, 10):
        plan, promise = plan_of(limit=limit)
        assert plan == QUICK.plan(limit)
        assert (promise.target, promise.is_met) == (0.95, True)


def test_fewer_hits_do_not_mean_fewer_points_scored_anew():
    """What holds for ten hits holds for one only if codes get as many chances to find it."""
    sizes = resolve_sizes([SizeRequest(8), SizeRequest(32, "turbo2")], 32)
    row = make_row(2, 20, 0.96, 0.96)
    row = row.model_copy(update={"stages": (StageRow(dim=32, candidates=10, oversampling=3.0),)})
    stored = make_calibration(row).model_dump(mode="json")
    coded = Collection("docs", "model-1", "space-1", sizes, stored)
    assert plan_of(coded)[0] == Plan((Stage(32, 10, oversampling=3.0),))
    assert plan_of(coded, limit=1)[0] == Plan((Stage(32, 1, oversampling=30.0),))


@pytest.mark.parametrize("collection", [PLAIN, CALIBRATED])
def test_a_plan_of_one_s_own_is_run_without_a_promise(collection):
    """Whoever names a plan knows what it keeps."""
    plan = Plan((Stage(8, 50), Stage(32)))
    assert plan_of(collection, plan=plan) == (Plan((Stage(8, 50), Stage(32, 10))), None)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"plan": Plan((Stage(32),)), "recall_target": 0.9}, "plan, or a recall_target"),
        ({"plan": Plan((Stage(32),)), "max_seconds": 0.1}, "not both"),
        ({"plan": Plan((Stage(32),)), "max_bytes": 10}, "not both"),
        ({"plan": Plan((Stage(8, 501), Stage(32)))}, "and 500, got 501"),
        ({"recall_target": 0.0}, "above 0 and at most 1, got 0"),
        ({"recall_target": 1.01}, "above 0 and at most 1, got 1.01"),
        ({"recall_target": -0.5}, "got -0.5"),
        ({"recall_target": float("nan")}, "got nan"),
        ({"max_seconds": 0.0}, "must be above 0"),
        ({"max_seconds": -1.0}, "must be above 0"),
        ({"max_seconds": float("nan")}, "must be above 0"),
        ({"max_bytes": 0}, "must be above 0"),
        ({"slice": "x" * 65}, "at most 64 characters"),
    ],
)
@pytest.mark.parametrize("collection", [PLAIN, CALIBRATED])
def test_a_wish_out_of_bounds_is_refused(collection, wish, says):
    """With what would be accepted, whether anything was measured or not."""
    with pytest.raises(InvalidRequest, match=says):
        plan_of(collection, **wish)


def test_without_a_calibration_a_target_is_kept_by_exact_search():
    """It is met, and the note says how to have it cheaper."""
    plan, promise = plan_of(PLAIN, recall_target=0.9)
    assert plan == exact_plan(SIZES, 10)
    assert (promise.recall, promise.is_met, promise.basis) == (1.0, True, "exact")
    assert "run Calibrate" in promise.note


def test_without_a_calibration_and_a_target_nothing_is_promised():
    """The default plan answers."""
    assert plan_of(PLAIN) == (default_plan(SIZES, 10, 500), None)


def test_more_hits_than_were_measured_are_found_exactly():
    """A promise holds up to a limit; above it the note says which limit to calibrate for."""
    plan, promise = plan_of(limit=11, recall_target=0.95)
    assert plan == exact_plan(SIZES, 11)
    assert (promise.is_met, promise.basis) == (True, "exact")
    assert "for up to 10 hits; run Calibrate with limit 11" in promise.note


def test_what_was_measured_in_another_space_is_ignored():
    """Vectors of another model have other neighbours."""
    other = make_collection(MEASURED, space_id="space-2")
    plan, promise = plan_of(other, recall_target=0.9)
    assert plan == exact_plan(SIZES, 10)
    assert "not calibrated" in promise.note
    assert Promises(500).calibration(other) is None


@pytest.mark.parametrize("budget", [{"max_seconds": 1.0}, {"max_bytes": 1000}])
@pytest.mark.parametrize("target", [None, 0.9])
@pytest.mark.parametrize(("collection", "limit"), [(PLAIN, 10), (CALIBRATED, 11)])
def test_budgets_need_a_calibration(collection, limit, target, budget):
    """Where costs are not known, a budget is refused, never guessed at."""
    with pytest.raises(WrongState, match="not known: .* run Calibrate"):
        plan_of(collection, limit, recall_target=target, **budget)


def test_a_filter_is_said_not_to_have_been_measured():
    """A plan that was measured without one says so; exact search loses nothing with one."""
    _, promise = plan_of(recall_target=0.9, is_filtered=True)
    assert "without a filter" in promise.note
    _, promise = plan_of(recall_target=1.0, is_filtered=True)
    assert not promise.note


def test_a_target_beyond_the_budgets_is_said_to_be_missed():
    """The best plan within them answers, and the note says what it is sure of."""
    plan, promise = plan_of(recall_target=0.97, max_seconds=0.0015)
    assert plan == BOLD.plan(10)
    assert (promise.is_met, promise.recall, promise.basis) == (False, 0.92, "measured")
    assert "no plan within the budgets is sure of 0.97" in promise.note
    assert "0.920" in promise.note


def test_budgets_that_every_plan_breaks_are_said_to_be_broken():
    """The cheapest answers, with the promise not met, and the note says what it takes."""
    plan, promise = plan_of(recall_target=0.9, max_bytes=1)
    assert plan == SMALL.plan(10)
    assert (promise.is_met, promise.basis) == (False, "measured")
    assert "no plan is within the budgets" in promise.note
    assert "20 bytes" in promise.note


def test_documents_in_place_of_queries_are_said_to_have_been():
    """Real queries may be harder, and the caller should know."""
    by_documents = make_collection(MEASURED.model_copy(update={"source": "documents"}))
    _, promise = plan_of(by_documents, recall_target=0.9)
    assert "documents in place of queries" in promise.note


def test_fewer_shards_than_were_measured_in_are_said_to_be():
    """Their graphs are larger, so the same walk may find less; in more of them it does not."""
    measured = MEASURED.model_copy(update={"shards": 3})
    for shards in (1, 2, 3, 6):
        plan, promise = plan_of(make_collection(measured, shards=shards), recall_target=0.97)
        assert plan == SAFE.plan(10)
        says = f"measured in 3 shards, and there are {shards}, whose"
        assert (says in promise.note) == (shards < 3)
        exact, promise = plan_of(make_collection(measured, shards=shards), recall_target=1.0)
        assert (exact, promise.note) == (exact_plan(SIZES, 10), "")


def test_a_slice_is_promised_what_its_own_queries_showed():
    """And the promise says whose queries these were."""
    rows = [make_row(4, 60, 0.99, 0.99, hard=0.96), make_row(2, 60, 0.96, 0.96, hard=0.8)]
    sliced = make_collection(make_calibration(*rows, slice_queries={"hard": 500}))
    plan, promise = plan_of(sliced, slice="hard")
    assert plan == rows[0].plan(10)
    assert (promise.slice, promise.recall) == ("hard", 0.96)
    assert plan_of(sliced, slice="other")[1].slice == ""


def test_a_new_calibration_counts_at_once():
    """Even one of the same second as the one before."""
    promises = Promises(500)
    bolder = MEASURED.model_copy(update={"plans": MEASURED.plans[:2], "target": 0.9})
    for calibration in (MEASURED, bolder, MEASURED):
        assert promises.calibration(make_collection(calibration)) == calibration
    later = MEASURED.model_copy(update={"created_at": MEASURED.created_at + 1, "limit": 5})
    assert promises.calibration(make_collection(later)) == later
