"""Pairs: what is refused, with file and line, and what is held out."""

import json
import random

import pytest

from services.shared.errors import InvalidRequest
from services.trainer.data.dataset import read_pairs
from services.trainer.data.pairs import Pair, Split, digest, questions, split

GOOD = b'{"anchor": "a", "positive": "b"}\n'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON at column"),
        (b"[1]", "a JSON list instead of an object"),
        (b'{"anchor": "a"}', '"positive" is missing'),
        (b'{"anchor": 1, "positive": "b"}', '"anchor" is not a string'),
        (b'{"anchor": "a", "positive": "  "}', '"positive" is empty'),
        (b'{"anchor": "\xff", "positive": "b"}', "not UTF-8 at byte 13"),
        (b'{"anchor": "\\ud800", "positive": "b"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, problem):
    """The message has file, line, what is wrong, and what is accepted."""
    path = tmp_path / "x"
    path.write_bytes(GOOD * 4 + b"\n" + line + b"\n")
    with pytest.raises(InvalidRequest) as caught:
        read_pairs(path, "my.jsonl")
    assert "my.jsonl:6: " in caught.value.message
    assert problem in caught.value.message
    assert '{"anchor": "...", "positive": "..."}' in caught.value.message
    assert caught.value.param == "training_file"


def test_many_problems_come_at_once(tmp_path):
    """Up to twenty lines are named in one answer."""
    path = tmp_path / "x"
    path.write_bytes(b"{\n" * 50)
    with pytest.raises(InvalidRequest) as caught:
        read_pairs(path, "x")
    assert sum(line.startswith("x:") for line in caught.value.message.splitlines()) == 20


def test_too_few_pairs_are_refused(tmp_path):
    """An empty file, or one of two lines, cannot train anything."""
    path = tmp_path / "x"
    for data in (b"", GOOD * 2):
        path.write_bytes(data)
        with pytest.raises(InvalidRequest, match="at least"):
            read_pairs(path, "x")


def test_a_byte_order_mark_and_other_keys_are_harmless(tmp_path):
    """Files from other tools are read as they are."""
    path = tmp_path / "x"
    line = json.dumps({"anchor": "ä", "positive": "ö", "id": 7}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + (line + "\r\n").encode() * 4)
    assert read_pairs(path, "x") == (Pair("ä", "ö"),) * 4


def texts(pairs):
    return {text for pair in pairs for text in (pair.anchor, pair.positive)}


def test_no_text_is_on_both_sides_of_a_split():
    """Held-out pairs share no anchor and no positive with training pairs, even through others."""
    rng = random.Random(0)
    pairs = [Pair(f"q{rng.randrange(400)}", f"p{rng.randrange(2000)}") for _ in range(600)]
    for seed in range(5):
        found = split(pairs, seed)
        assert not texts(found.training) & texts(found.held_out)
        assert 30 <= len(found.held_out) <= 60
        assert sorted(map(str, found.training + found.held_out)) == sorted(map(str, pairs))
        assert found == split(pairs, seed)
    assert split(pairs, 0) != split(pairs, 1)


def test_at_most_a_thousand_are_held_out():
    """More would cost time and tell little."""
    pairs = [Pair(f"q{i}", f"p{i}") for i in range(12_000)]
    assert len(split(pairs, 0).held_out) == 1000


def test_pairs_that_cannot_be_split_are_refused():
    """Everything shares one positive: whatever is held out would leak."""
    with pytest.raises(InvalidRequest, match="validation_file"):
        split([Pair(f"q{i}", "same") for i in range(20)], 0)


def test_questions_are_asked_against_every_positive():
    """A held-out anchor must find its positives among those of the training pairs too."""
    asked = questions(
        Split((Pair("a", "1"), Pair("b", "2"), Pair("c", "4")), (Pair("c", "3"), Pair("d", "2")))
    )
    assert asked.queries == ("c", "d")
    assert asked.documents == ("3", "2", "1", "4")
    assert asked.relevant == ({0: 1.0, 3: 1.0}, {1: 1.0})


def test_the_digest_tells_pairs_apart():
    """Moving a letter from one text to the next changes it."""
    assert digest([Pair("ab", "c")]) != digest([Pair("a", "bc")])
    assert digest([Pair("a", "b")]) == digest([Pair("a", "b")])
