"""The command that measures a card, as a user types it, and the files that it reads."""

import pytest

from services.cli.card import read_sample
from services.shared.errors import InvalidRequest
from tests.cli.test_commands import matryoshka


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{nothing}", "{nothing}", "--dims", "8,many"], "--dims must be sizes"),
        (["{nothing}", "{nothing}"], "no model folder at"),
        (["{empty}", "{nothing}", "--output", "{empty}"], "is not a Sentence Transformers folder"),
        (["all-MiniLM-L6-v2", "{nothing}"], "no file at"),
        (["all-MiniLM-L6-v2", "{few}"], "is not a folder of yours to write to"),
        (["all-MiniLM-L6-v2", "{few}", "--output", "{empty}"], "is there already"),
        (["all-MiniLM-L6-v2", "{few}", "--output", "{nothing}"], "at least 100 are needed"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, arguments, message):
    """The most basic of several mistakes; exit code 2, no traceback, nothing written."""
    empty, few = tmp_path / "empty", tmp_path / "few.txt"
    empty.mkdir()
    few.write_text("one text")
    places = {"nothing": tmp_path / "nothing", "empty": empty, "few": few}
    ended = matryoshka("card", *(argument.format(**places) for argument in arguments))
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path.name for path in tmp_path.rglob("*")} == {"empty", "few.txt"}


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"text": 3}', '{"text": " "}', "[" * 99_999])
def test_a_line_that_holds_no_text_is_named(tmp_path, line):
    """File and line, and what would be taken."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n' + line)
    with pytest.raises(InvalidRequest, match=r"t\.jsonl:2: each line must be"):
        read_sample(path)


def test_texts_come_as_lines_or_json_lines(tmp_path):
    """Blank lines are nothing; half a surrogate pair is replaced, as no tokenizer takes it."""
    (tmp_path / "t.txt").write_text(" a \n\nb\n")
    assert list(read_sample(tmp_path / "t.txt").texts) == ["a", "b"]
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "b\\ud800"}\n')
    assert list(read_sample(tmp_path / "t.jsonl").texts) == ["a", "b?"]
