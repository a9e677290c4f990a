"""What each kind of examples is measured on, and what is kept aside to see when to stop."""

import pytest

from services.shared.errors import InvalidRequest
from services.trainer.data.examples import Labelled, Scored, digest
from services.trainer.data.pairs import Pair, Split, digest_questions, split
from services.trainer.data.questions import ask, check_asked, check_learnable, keep_aside

SCORED = [Scored(f"a{row}", f"b{row % 40}", float(row % 5)) for row in range(80)]
LABELLED = [Labelled(f"t{row}", str(row // 40)) for row in range(80)]


def test_scored_pairs_are_compared_and_nothing_else_is():
    """A text once on each side, its scores by partner; training pairs have no part."""
    held_out = (Scored("a", "b", 1), Scored("a", "c", 3), Scored("b", "c", 2))
    asked = ask(Split((Scored("x", "y", 1),), held_out))
    assert (asked.queries, asked.documents) == (("a", "b"), ("b", "c"))
    assert asked.relevant == ({0: 1, 1: 3}, {1: 2})
    assert asked.names == ("a ↔ b", "a ↔ c", "b ↔ c")


def test_a_labelled_text_asks_for_the_training_texts_of_its_class():
    """Held-out texts are no answers; the class is the slice."""
    training = (Labelled("a", "1"), Labelled("b", "2"), Labelled("c", "1"))
    asked = ask(Split(training, (Labelled("d", "1"), Labelled("e", "3"), Labelled("f", "1"))))
    assert (asked.queries, asked.documents) == (("d", "e", "f"), ("a", "b", "c"))
    assert asked.relevant == ({0: 1.0, 2: 1.0}, {}, {0: 1.0, 2: 1.0})
    assert asked.names == asked.queries
    assert asked.slices == ("1", "3", "1")


def test_no_text_of_held_out_pairs_is_trained_on():
    """Scored pairs that share a text stay on one side."""
    data = split(SCORED, seed=3)
    sides = [
        {text for pair in side for text in pair.texts} for side in (data.training, data.held_out)
    ]
    assert len(data.held_out) == 8
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("examples", [SCORED, LABELLED], ids=["scored", "labelled"])
def test_what_is_kept_aside_is_not_learned_from(examples):
    """A tenth, and none of its texts is among those to learn from; the same each time."""
    rows, asked = keep_aside(examples, seed=1)
    learned = {text for row in rows for text in examples[row].texts}
    assert len(rows) == 72
    assert not learned & set(asked.queries)
    assert len(asked.names) == 8
    assert keep_aside(examples, seed=1) == (rows, asked)


def test_kinds_are_told_apart_by_their_digests():
    """Of data and of questions: other labels or scores are others."""
    data = (SCORED, [Scored(*pair.texts, pair.score + 1) for pair in SCORED], LABELLED)
    assert len({digest(examples) for examples in data}) == 3
    assert len({digest_questions(ask(split(examples, 0))) for examples in data}) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Split((), (Scored("a", "b", 1), Scored("c", "d", 1))), "two different scores"),
        (Split((Labelled("a", "1"),), (Labelled("b", "2"),)), "of a class that a training text"),
    ],
)
def test_what_tells_nothing_is_refused(data, message):
    """Equal scores have no order; a class that no training text has cannot be found."""
    with pytest.raises(InvalidRequest, match=message):
        check_asked(ask(data))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([Scored("a", "b", 1), Scored("c", "d", 1)], "pairs of at least two different scores"),
        ([Labelled("a", "1"), Labelled("b", "1")], "texts of at least two classes"),
    ],
)
def test_what_teaches_nothing_is_refused(examples, message):
    """One score, or one class."""
    with pytest.raises(InvalidRequest, match=message):
        check_learnable(examples)
    check_learnable([Pair("a", "b")])
