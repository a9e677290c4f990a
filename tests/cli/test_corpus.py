"""The demo's corpus is real text, the same each time, and says what is wrong with a user's."""

import json

import pytest

from services.cli.corpus import CorpusError, read_corpus


def test_docstrings_are_plenty_and_the_same_each_time():
    """The standard library alone gives many documents, ids and bodies all different."""
    documents = read_corpus(None, 1500)
    assert len(documents) == 1500
    assert len({d.id for d in documents}) == len({d.body for d in documents}) == 1500
    assert documents == read_corpus(None, 1500)
    assert all(len(d.title.split()) >= 3 and len(d.body) <= 204 for d in documents)


def test_text_and_json_lines_are_read(tmp_path):
    """A folder of files becomes documents, each with where it is from."""
    (tmp_path / "a.md").write_text(
        "The first sentence asks. The rest of the paragraph answers at some length.\n\n"
        "Too short.\n\nAnother sentence that asks. And another answer that is long enough here."
    )
    row = {
        "anchor": "what is a matryoshka doll",
        "positive": "A wooden doll with smaller dolls inside of it.",
    }
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    documents = read_corpus(tmp_path, 100)
    assert [d.id for d in documents] == ["a.md:0", "a.md:2", "b.jsonl:1"]
    assert documents[2].title == row["anchor"]


@pytest.mark.parametrize("line", ["{", "[]", '{"title": "x"}'])
def test_a_wrong_line_is_named(tmp_path, line):
    """File and line, and what it must be."""
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(CorpusError, match=r"x\.jsonl, line 1: must be"):
        read_corpus(tmp_path, 10)


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    """The error names what would be accepted."""
    with pytest.raises(CorpusError, match=r"no documents; accepted are \.txt"):
        read_corpus(tmp_path, 10)
