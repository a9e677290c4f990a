"""Whose queries got worse, and whether a model may go live."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.jobs.events import Event
from services.trainer.results.gate import Rule, judge
from services.trainer.results.slices import compare_slices
from services.trainer.results.summary import find_losers, read_curve

DIMS = (8, 16, 32)
SLICES = ("de",) * 40 + ("en",) * 60


def scores(values_QK):
    """Scores whose three metrics are equal."""
    return np.repeat(np.asarray(values_QK, dtype=float)[:, :, None], 3, axis=2)


def level(value):
    return np.full((100, 3), value)


def test_nobody_loses_nothing_is_refused():
    """Equal scores pass with no allowance at all."""
    same = scores(level(0.5))
    verdict = judge(same, same, SLICES, DIMS, Rule(max_drop=0.0, slices=("de", "en")))
    assert verdict.passes
    assert [one.name for one in verdict.judged] == ["", "de", "en"]


def test_a_named_slice_that_loses_is_refused_though_all_together_gain():
    """The reason names slice, size, fall and what was allowed."""
    after = level(0.6)
    after[:40, 1] = 0.4  # German queries at 16
    rule = Rule(max_drop=0.05, slices=("de",))
    verdict = judge(scores(level(0.5)), scores(after), SLICES, DIMS, rule)
    assert len(verdict.reasons) == 1
    assert re.match(
        r"slice 'de': nDCG@10 at 16 falls by 0\.100, from 0\.500 to 0\.400 \(40 queries, 95% "
        r"between -0\.100 and -0\.100\); at most 0\.05 was allowed",
        verdict.reasons[0],
    )
    assert judge(scores(level(0.5)), scores(after), SLICES, DIMS, Rule(max_drop=0.05)).passes


def test_only_served_sizes_count():
    """A size that nobody asks for may fall."""
    after = level(0.5)
    after[:, 0] = 0.1
    before, now = scores(level(0.5)), scores(after)
    assert not judge(before, now, SLICES, DIMS, Rule()).passes
    assert judge(before, now, SLICES, DIMS, Rule(dims=(16, 32))).passes


def test_what_cannot_be_judged_is_refused():
    """An unknown size, an unknown slice, one with too few queries."""
    same = scores(level(0.5))
    rule = Rule(dims=(8, 64), slices=("fr", "de"), min_queries=41)
    reasons = judge(same, same, SLICES, DIMS, rule).reasons
    assert [reason.split(":")[0] for reason in reasons] == [
        "size 64 was not measured; measured were 8, 16, 32",
        "slice 'fr'",
        "slice 'de'",
    ]
    assert "0 held-out queries are too few" in reasons[1]
    assert "40 held-out queries are too few" in reasons[2]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from("abc")), min_size=1, max_size=40
    ),
    st.floats(0, 0.5),
)
def test_the_gate_holds_for_what_it_lets_pass(rows, max_drop):
    """If it passes, no slice's mean falls by more; and if it does not, one does."""
    before = np.array([[row[0]] * 3 for row in rows])
    after = np.array([[row[1]] * 3 for row in rows])
    slices = [row[2] for row in rows]
    rule = Rule(max_drop=max_drop, slices=tuple(dict.fromkeys(slices)), min_queries=1)
    verdict = judge(scores(before), scores(after), slices, DIMS, rule)
    groups = [np.ones(len(rows), dtype=bool)]
    groups += [np.array(slices) == name for name in rule.slices]
    falls = [float((before[group] - after[group]).mean()) for group in groups]
    if verdict.passes:
        assert max(falls) <= max_drop + 1e-9
    else:
        assert max(falls) >= max_drop - 1e-9


def test_slices_that_lost_most_come_first_and_intervals_hold_the_mean():
    """Queries without a relevant document count nowhere."""
    rng = np.random.default_rng(0)
    before, after = rng.random((100, 3)), rng.random((100, 3))
    after[:40] *= 0.5
    before[99] = np.nan
    after[99] = np.nan
    found = compare_slices(scores(before), scores(after), SLICES, DIMS)
    assert [one.name for one in found] == ["de", "en"]
    assert [one.num_queries for one in found] == [40, 59]
    for one in found:
        for change, old, new in zip(one.changes, one.before, one.after, strict=True):
            assert change.low < change.mean < change.high
            assert change.mean == pytest.approx(new.ndcg10 - old.ndcg10)
    assert found[0].worst.mean == min(change.mean for change in found[0].changes)


def test_slices_of_few_queries_come_last():
    """One query that lost everything says less than forty that lost half."""
    before, after = level(1.0), level(1.0)
    after[:40], after[99] = 0.5, 0.0
    slices = ["de"] * 40 + ["en"] * 59 + ["one"]
    found = compare_slices(scores(before), scores(after), slices, DIMS)
    assert [(one.name, one.worst.mean) for one in found] == [("de", -0.5), ("en", 0.0), ("one", -1)]


def test_losers_are_the_queries_that_fell_most():
    """Worst first, each at its worst size; who did not fall is none."""
    before, after = level(0.5), level(0.5)
    after[3, 2], after[7, 0], after[8, 1] = 0.1, 0.4, 0.9
    queries = [f"q{row}" for row in range(100)]
    found = find_losers(scores(before), scores(after), queries, SLICES, DIMS)
    assert [(one.query, one.dim, one.after) for one in found] == [("q3", 32, 0.1), ("q7", 8, 0.4)]


def test_the_curve_keeps_the_last_run_of_a_step():
    """A step that a killed process did again counts once."""
    events = [
        Event(step=1, loss={8: 3.0, 16: 2.0}),
        Event(step=2, loss={8: 9.0, 16: 9.0}),
        Event(step=2, loss={8: 2.0, 16: 1.0}),
        Event(step=3, message="no loss"),
    ]
    curve = read_curve(events)
    assert curve.steps == (1, 2)
    assert curve.loss == {8: (3.0, 2.0), 16: (2.0, 1.0)}
