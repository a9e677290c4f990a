"""Reading, cutting, batching and the progress file: any bytes, any place to stop."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.bulk.batches import Advance, Batches
from services.cli.bulk.documents import Attribute, BadRow, Fields, parse_attribute, to_document
from services.cli.bulk.journal import Journal
from services.cli.bulk.readers import SUFFIXES, Mark, read_rows
from services.cli.bulk.sources import (
    Part,
    Problem,
    Source,
    count_lines,
    cut_points,
    find_sources,
    fingerprint,
    read_part,
)
from services.shared.errors import InvalidRequest

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
FORMATS = [suffix for suffix in SUFFIXES if suffix != ".parquet"]


def write(folder, name, data):
    path = Path(folder) / name
    path.write_bytes(data)
    return Source(name, path)


def whole(source):
    return Part(source, 0, Mark(), cut_points(source, 0)[-1])


@given(st.sampled_from(FORMATS), st.binary())
def test_any_bytes_are_read_to_the_end_or_told(suffix, data):
    """No reader fails, stands still or goes back, whatever the file holds."""
    with tempfile.TemporaryDirectory() as folder:
        source = write(folder, f"a{suffix}", data)
        reads = list(read_part(whole(source), Fields()))
        places = [read.after.rows for read in reads]
        assert places == sorted(set(places))
        for read in reads:
            if isinstance(read, Problem):
                assert read.where.startswith(f"a{suffix}:")
                assert read.reason
            else:
                read.document.text.encode()


@given(st.lists(st.tuples(TEXTS, st.integers(0, 3))), st.integers(1, 200), st.sampled_from("\n\r"))
def test_json_lines_are_the_same_whole_and_in_parts(rows, part_bytes, end):
    """Parts begin at lines, know their numbers, and give each document the same id and place."""
    lines = [json.dumps({"text": text}) + "\r\n"[end == "\n" :] + "\n" * b for text, b in rows]
    with tempfile.TemporaryDirectory() as folder:
        source = write(folder, "a.jsonl", "".join(lines).encode())
        expected = list(read_part(whole(source), Fields()))
        assert [read.document.text for read in expected] == [text for text, _ in rows]
        begin, found = Mark(), []
        for number, stop in enumerate(cut_points(source, part_bytes)):
            part = Part(source, number, begin, stop)
            found += read_part(part, Fields())
            begin = Mark(begin.rows + count_lines(source, begin.offset, stop), stop)
        assert found == expected


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1), st.sampled_from(FORMATS), st.data())
def test_reading_goes_on_from_any_mark(rows, suffix, data):
    """What is read behind a mark is what was read behind it the first time."""
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("id", "text"), *rows])
    content = {
        ".csv": table.getvalue(),
        ".jsonl": "".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in rows),
    }
    content[".ndjson"] = content[".jsonl"]
    plain = "\n\n".join(text for _, text in rows)
    with tempfile.TemporaryDirectory() as folder:
        source = write(folder, f"a{suffix}", content.get(suffix, plain).encode())
        everything = list(read_rows(source.path, Mark(), cut_points(source, 0)[-1]))
        if suffix in content:
            assert len(everything) == len(rows)
        if not everything:
            return
        at = data.draw(st.integers(0, len(everything) - 1))
        part = Part(source, 0, everything[at].after, cut_points(source, 0)[-1])
        assert list(read_part(part, Fields())) == list(read_part(whole(source), Fields()))[at + 1 :]


@given(
    st.lists(st.lists(st.one_of(TEXTS, st.none()), max_size=8), max_size=6),
    st.integers(1, 5),
    st.integers(1, 300),
)
def test_batches_hold_every_document_once_and_say_how_far_they_are(files, max_documents, max_bytes):
    """Across files, with bad rows anywhere; bounds are kept; at the end every part is done."""
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            whole(
                write(
                    folder, f"{n}.jsonl",
                    "".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),
                )
            )
            for n, texts in enumerate(files)
        ]  # fmt: skip
        batches = Batches("c", parts, Fields(), max_documents, max_bytes, problems.append)
        made = list(batches)
    texts = [text for file in files for text in file]
    good = [text for text in texts if text is not None]
    assert [point.text for batch in made for point in batch.request.points] == good
    assert len(problems) == len(texts) - len(good)
    assert [batch.is_last for batch in made] == [False] * (len(made) - 1) + [True] * bool(made)
    done = []
    for batch in made:
        points = batch.request.points
        assert 1 <= len(points) <= max_documents
        assert len(points) == 1 or sum(point.ByteSize() for point in points) <= max_bytes
        assert sum(advance.documents for advance in batch.advances) == len(points)
    for advance in [a for batch in made for a in batch.advances] + list(batches.rest):
        if advance.is_done:
            done.append(advance.part)
    assert done == parts
    assert sum(a.skipped for b in made for a in b.advances) + sum(
        a.skipped for a in batches.rest
    ) == len(problems)


def journal_of(path, steps):
    """A progress file, and what it must say after each of its lines."""
    journal = Journal.open(path, "docs")
    said = [(path.read_bytes(), 0)]
    source = Source("a.jsonl", Path("a.jsonl"))
    journal.begin("a.jsonl", "print", [Mark(), Mark(5, 50)], 100)
    said.append((path.read_bytes(), 0))
    for step in steps:
        rows = journal.parts("a.jsonl", "print")[step % 2].mark.rows + step
        part = Part(source, step % 2, Mark(), 100)
        journal.advance([Advance(part, Mark(rows, 10 * rows), step, is_done=step == 9)])
        said.append((path.read_bytes(), journal.num_documents))
    return said


STEPS = st.lists(st.integers(0, 9), max_size=6)


@given(STEPS, st.data())
def test_any_prefix_of_a_progress_file_is_what_it_said_at_some_time(steps, data):
    """A tear loses the last entry at most, and the file can be written on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        said = journal_of(path, steps)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        torn = Journal.open(path, "docs")
        whole_lines = [number for before, number in said if len(before) <= cut]
        assert torn.num_documents == (whole_lines[-1] if whole_lines else 0)
        torn.note_checked("digest", 3)
        again = Journal.open(path, "docs")
        assert again.num_documents == torn.num_documents
        assert again.parts("a.jsonl", "print") == torn.parts("a.jsonl", "print")
        assert again.checked("digest") == 3


@given(STEPS, st.data())
def test_a_damaged_progress_file_is_refused_or_its_last_entry_left_out(steps, data):
    """No changed byte is ever read as progress."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        said = {number for _, number in journal_of(path, steps)}
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans(), label="a digit, which leaves it well-formed"):
            digits = [place for place, byte in enumerate(content) if chr(byte) in "123456789"]
            place = data.draw(st.sampled_from(digits))
            content[place] = ord("1") + (content[place] - ord("1") + 1) % 9
        else:
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            assert Journal.open(path, "docs").num_documents in said
        except InvalidRequest:
            assert path.read_bytes() == content


def test_a_progress_file_of_something_else_is_refused(tmp_path):
    """Of another collection, or no progress file at all: neither is written over."""
    path = tmp_path / "state"
    Journal.open(path, "docs")
    with pytest.raises(InvalidRequest, match="is the progress of collection 'docs'"):
        Journal.open(path, "other")
    with pytest.raises(InvalidRequest, match="is the progress of another key"):
        Journal.open(path, "docs", "0123456789ab")
    path.write_text("my notes\n")
    with pytest.raises(InvalidRequest, match="is not a progress file"):
        Journal.open(path, "docs")
    path.write_text("my notes")
    with pytest.raises(InvalidRequest, match="is not a progress file"):
        Journal.open(path, "docs")
    assert path.read_text() == "my notes"


def test_a_long_progress_file_is_written_anew(tmp_path, monkeypatch):
    """It does not grow with the number of batches, and says the same."""
    monkeypatch.setattr("services.cli.bulk.journal._SPARE_ENTRIES", 10)
    path = tmp_path / "state"
    said = journal_of(path, [1] * 100)
    assert said[-1][1] == 100
    assert len(path.read_bytes().splitlines()) < 30
    assert Journal.open(path, "docs").num_documents == 100


def test_a_changed_file_is_noticed(tmp_path):
    """Its bytes, its time, and what is taken from it."""
    source = write(tmp_path, "a.jsonl", b"{}\n")
    first = fingerprint(source, Fields())
    assert fingerprint(source, Fields()) == first
    assert fingerprint(source, Fields(texts=("body",))) != first
    write(tmp_path, "a.jsonl", b"[]\n")
    assert fingerprint(source, Fields()) != first


def test_fields_are_taken_as_the_user_says():
    """Ids, texts that are joined, attributes of a kind; empty cells are left out."""
    fields = Fields("key", ("title", "body"), (Attribute("year", "int"), Attribute("lang")))
    row = {"key": 7, "title": "T", "body": "B", "year": "1999", "lang": "", "attributes": {"a": 1}}
    document = to_document(row, fields, "derived")
    assert (document.id, document.text, document.attributes) == (
        "7",
        "T\nB",
        {"a": 1, "year": 1999},
    )
    assert parse_attribute("a:b:float") == Attribute("a:b", "float")
    assert parse_attribute("a") == Attribute("a")
    for wrong in ("a:b", "year:date", ":int", ""):
        with pytest.raises(InvalidRequest, match="--attribute must be FIELD or FIELD:string"):
            parse_attribute(wrong)
    for wrong, reason in [
        (row | {"year": "x"}, "'year' must be of the kind int"),
        (row | {"key": None}, "has no field 'key' for the id"),
        (row | {"attributes": {"a": [1]}}, "'a' must be a string, a number"),
        (row | {"attributes": {"a b": 1}}, "key must be 1 to 64 letters"),
        (row | {"title": 3}, "'title' must be a string, is a number"),
        (row | {"key": "x" * 513}, "must have 1 to 512 characters"),
        (row | {"body": "x" * 1_000_001}, "at most 1,000,000 may be"),
    ]:
        with pytest.raises(BadRow, match=reason):
            to_document(wrong, fields, "derived")


def test_text_files_are_paragraphs_with_ids_of_their_places(tmp_path):
    """The ids are the same wherever the folder lies, and differ between files."""
    for name in ("one", "two"):
        folder = tmp_path / name / "notes"
        folder.mkdir(parents=True)
        (folder / "a.md").write_text("# Title\nwords\n\n\n \nsecond\n")
        (folder / "b.txt").write_text("other")
        (folder / ".hidden.txt").write_text("not read")
    reads = [
        [read for source in find_sources([tmp_path / name / "notes"])[0] for read in
         read_part(whole(source), Fields())]
        for name in ("one", "two")
    ]  # fmt: skip
    assert reads[0] == reads[1]
    assert [read.document.text for read in reads[0]] == ["# Title\nwords", "second", "other"]
    assert [read.where for read in reads[0]] == ["notes/a.md:1", "notes/a.md:6", "notes/b.txt:1"]
    assert len({read.document.id for read in reads[0]}) == 3


def test_a_line_too_long_is_told_and_the_next_is_read(tmp_path, monkeypatch):
    """Memory is bounded by the longest line that is taken, not by the file's."""
    monkeypatch.setattr("services.cli.bulk.readers.MAX_LINE_BYTES", 20)
    source = write(tmp_path, "a.jsonl", b'{"text": "' + b"x" * 100 + b'"}\n{"text": "y"}\n')
    first, second = read_part(whole(source), Fields())
    assert "over 20 bytes" in first.reason
    assert second.document.text == "y"
    assert second.after == Mark(2, source.path.stat().st_size)
    text = write(tmp_path, "a.txt", b"x" * 15 + b"\n" + b"y" * 15 + b"\n\nshort\n")
    first, second = read_part(whole(text), Fields())
    assert "over 20 bytes" in first.reason
    assert second.document.text == "short"


def test_parquet_is_read_where_pyarrow_is(tmp_path):
    """From any row on; attributes may be a struct."""
    pytest.importorskip("pyarrow", reason="pyarrow comes with the extra `ray`; not installed here")
    import pyarrow
    from pyarrow import parquet

    rows = [{"id": i, "text": f"t{i}", "attributes": {"n": i}} for i in range(1000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = Source("a.parquet", tmp_path / "a.parquet")
    reads = list(read_part(whole(source), Fields()))
    assert [read.document.id for read in reads] == [str(i) for i in range(1000)]
    assert reads[700].document.attributes == {"n": 700}
    later = Part(source, 0, reads[699].after, 1)
    assert list(read_part(later, Fields())) == reads[700:]
    (tmp_path / "a.parquet").write_bytes(b"not that")
    [problem] = read_part(whole(source), Fields())
    assert "must be Parquet" in problem.reason
