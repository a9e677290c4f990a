"""Duplicates, contradictions and leakage: left out, counted, and told where."""

from array import array

from services.trainer.data.checks import check, text_key
from services.trainer.data.dataset import Dataset, Places
from services.trainer.data.examples import Labelled, Scored
from services.trainer.data.pairs import Pair


def data(name, *examples, kind="pairs"):
    lines = array("q", range(1, len(examples) + 1))
    return Dataset(kind, list(examples), Places([name], [0], lines))


def test_a_pair_that_comes_twice_is_kept_once():
    """With the negatives of both; capitals, spaces and ways to write a letter do not count."""
    checked = check(
        data(
            "a",
            Pair("Caf\u00e9", "b", ("x",)),
            Pair(" cafe\u0301 ", "B", ("y", "X")),
            Pair("café", "c"),
        ),
        None,
    )
    assert checked.training == (Pair("Caf\u00e9", "b", ("x", "y")), Pair("café", "c"))
    assert checked.report.duplicates == 1
    assert (checked.report.rows, checked.report.kept) == (3, 2)


def test_a_negative_that_is_an_answer_is_no_negative():
    """Of the same anchor, in whichever row; nor is the anchor itself."""
    checked = check(
        data("a", Pair("q", "p1", ("P2", "q ", "n")), Pair("q", "p2", ("p1",)), Pair("r", "p1")),
        None,
    )
    assert checked.training == (Pair("q", "p1", ("n",)), Pair("q", "p2"), Pair("r", "p1"))
    assert checked.report.false_negatives == 3


def test_contradictions_are_left_out_whole():
    """Nobody knows which of two scores, or two labels, is right."""
    scored = check(
        data("a", Scored("a", "b", 1), Scored("B", "A", 0), Scored("a", "c", 1), kind="scored"),
        None,
    )
    assert scored.training == (Scored("a", "c", 1),)
    assert scored.report.conflicts == 2
    labelled = check(
        data(
            "a", Labelled("a", "1"), Labelled("a", "2"), Labelled("b", "1"), Labelled("b ", "1"),
            kind="labelled",
        ),
        None,
    )  # fmt: skip
    assert labelled.training == (Labelled("b", "1"),)
    assert (labelled.report.conflicts, labelled.report.duplicates) == (2, 1)


def test_what_leaks_is_not_trained_on():
    """An anchor of the validation data, as anchor or as positive; documents may be shared."""
    checked = check(
        data("t", Pair("q1", "p"), Pair("Q2", "x"), Pair("y", "q2"), Pair("z", "doc")),
        data("v", Pair("q2", "w"), Pair("q3", "doc"), Pair("q3", "doc")),
    )
    assert checked.training == (Pair("q1", "p"), Pair("z", "doc"))
    assert checked.validation == (Pair("q2", "w"), Pair("q3", "doc"))
    report = checked.report
    assert (report.leaks, report.shared_documents, report.duplicates) == (2, 1, 1)
    assert report.leak_places == ("t:2 is in v:1", "t:3 is in v:1")
    assert report.describe() == (
        "data: 2 of 4 examples kept; 1 duplicates left out; 2 examples left out that leak into the "
        "validation data; 1 documents shared with the validation data"
    )


def test_of_scored_and_labelled_the_same_texts_leak():
    """A text alone says nothing of a score."""
    scored = check(
        data("t", Scored("a", "b", 1), Scored("a", "c", 1), kind="scored"),
        data("v", Scored("b", "a", 0), kind="scored"),
    )
    assert scored.training == (Scored("a", "c", 1),)
    labelled = check(
        data("t", Labelled("a", "1"), Labelled("b", "1"), kind="labelled"),
        data("v", Labelled("A", "2"), kind="labelled"),
    )
    assert labelled.training == (Labelled("b", "1"),)


def test_only_the_first_leaks_are_told():
    """All are counted."""
    checked = check(
        data("t", *(Pair(f"q{i}", "p") for i in range(30))),
        data("v", *(Pair(f"q{i}", "p") for i in range(30))),
    )
    assert checked.report.leaks == 30
    assert len(checked.report.leak_places) == 20


def test_keys_are_equal_for_equal_texts_only():
    """White space between words counts as one space."""
    assert text_key("A\n b") == text_key(" a b\u2003") != text_key("ab")
