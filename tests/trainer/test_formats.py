"""Formats and kinds: what each tool writes is read, and what is wrong is told with its line."""

import csv
import json
import math
from contextlib import suppress

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from services.shared.errors import InvalidRequest
from services.trainer.data.columns import check_columns
from services.trainer.data.dataset import SourceFile, read_dataset
from services.trainer.data.examples import Labelled, Scored, read_examples, write_examples
from services.trainer.data.pairs import Pair

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
NOTHING_KEPT = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
}


def read(path, name=None, columns=None):
    files = [SourceFile(path, name or path.name)]
    return read_dataset(files, columns or {}, "training_file")


@pytest.mark.parametrize("name", WRITERS)
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=4, max_size=6))
@NOTHING_KEPT
def test_what_a_tool_writes_is_read(tmp_path, name, rows):
    """Any texts, in every format, with the line or row of each."""
    values = [{"query": a, "pos": b, "neg": c, "id": "7"} for a, b, c in rows]
    WRITERS[name](tmp_path / name, values)
    data = read(tmp_path / name)
    assert data.examples == [Pair(a, b, (c,)) for a, b, c in rows]
    if name != "a.csv":  # whose texts may have lines of their own
        first = 1 + (name == "a.csv")
        assert [data.places.name(i) for i in range(len(rows))] == [
            f"{name}:{first + i}" for i in range(len(rows))
        ]


@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("name", WRITERS)
@NOTHING_KEPT
def test_any_bytes_are_read_or_refused(tmp_path, name, data):
    """Nothing but a refusal with the file's name comes of a damaged file."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=name):
        read(path)


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@NOTHING_KEPT
def test_a_damaged_table_is_read_or_refused(tmp_path, name, where, bit):
    """One bit of a good file changed: rows, or a refusal; the process lives on."""
    path = tmp_path / name
    WRITERS[name](path, [{"anchor": f"a{i}", "positive": f"p{i}", "neg": ["n"]} for i in range(20)])
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with suppress(InvalidRequest):
        assert read(path).kind == "pairs"


@pytest.mark.parametrize(
    ("row", "examples"),
    [
        ({"anchor": "a", "positive": "b"}, [Pair("a", "b")]),
        ({"query": "a", "answer": "b", "negative": "c"}, [Pair("a", "b", ("c",))]),
        ({"question": "a", "pos_doc": "b", "neg_doc": ["c", "d"]}, [Pair("a", "b", ("c", "d"))]),
        ({"query": "a", "pos": ["b", "c"], "neg": ["d"]}, [Pair("a", p, ("d",)) for p in "bc"]),
        (
            {"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d"},
            [Pair("a", "b", ("c", "d"))],
        ),
        ({"Anchor": "a", "Positive": "b", "slice": "de"}, [Pair("a", "b", (), "de")]),
        ({"anchor": "a", "positive": "b", "negatives": None}, [Pair("a", "b")]),
        ({"anchor": "a", "query": "x", "positive": "b"}, [Pair("a", "b")]),
        ({"sentence1": "a", "sentence2": "b", "score": 4.5}, [Scored("a", "b", 4.5)]),
        ({"anchor": "a", "positive": "b", "label": 0}, [Scored("a", "b", 0.0)]),
        ({"text": "a", "label": 3}, [Labelled("a", "3")]),
        ({"text": "a", "label": "spam"}, [Labelled("a", "spam")]),
    ],
)
def test_fields_are_told_by_the_names_that_are_usual(tmp_path, row, examples):
    """Of Sentence Transformers, FlagEmbedding and others; what is written is what a job keeps."""
    write_jsonl(tmp_path / "a.jsonl", [row] * 4)
    data = read(tmp_path / "a.jsonl")
    assert data.examples == examples * 4
    write_examples(tmp_path / "kept", data.examples)
    assert read_examples(tmp_path / "kept", data.kind) == tuple(examples * 4)


@pytest.mark.parametrize(
    ("columns", "row", "example"),
    [
        (
            {"frage": "anchor", "antwort": "positive", "f1": "negatives", "f2": "negatives"},
            {"frage": "a", "antwort": "b", "f1": "c", "f2": "d", "anchor": "x"},
            Pair("a", "b", ("c", "d")),
        ),
        ({"a": "anchor", "b": "positive", "s": "score"}, {"a": "x", "b": "y", "s": 1}, None),
        ({"q": "text", "k": "label"}, {"q": "x", "k": 1}, Labelled("x", "1")),
    ],
)
def test_fields_are_told_by_a_mapping(tmp_path, columns, row, example):
    """With it, names mean nothing."""
    write_jsonl(tmp_path / "a.jsonl", [row] * 4)
    data = read(tmp_path / "a.jsonl", columns=columns)
    assert data.examples[0] == (example or Scored("x", "y", 1.0))
    write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b"}] * 4)
    with pytest.raises(InvalidRequest, match='a.jsonl:1: "\\w+" is missing'):
        read(tmp_path / "a.jsonl", columns=columns)


@pytest.mark.parametrize(
    "columns",
    [
        {"a": "anker"},
        {"a": "anchor"},
        {"a": "anchor", "b": "anchor", "c": "positive"},
        {"a": "text", "b": "label", "c": "negatives"},
        {"": "text", "b": "label"},
        {f"n{i}": "negatives" for i in range(201)},
    ],
)
def test_a_mapping_that_fits_no_kind_is_refused(columns):
    """Before any file is read."""
    with pytest.raises(InvalidRequest, match="columns must map") as caught:
        check_columns(columns)
    assert caught.value.param == "columns"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("count", [3, 30])
def test_rows_that_all_lack_a_field_are_told_of_once(tmp_path, suffix, count):
    """With the fields that are there instead, but nothing that looks like a text."""
    path = tmp_path / f"a.{suffix}"
    rows = [{"frage": "a", "antwort": "b", "a text as a header": "c"}] * count
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "csv":
        lines = ["frage,antwort,a text as a header", *["a,b,c"] * count]
        path.write_text("\n".join(lines))
    else:
        write_jsonl(path, rows)
    first = 2 if suffix == "csv" else 1
    with pytest.raises(InvalidRequest) as caught:
        read(path)
    told, accepted = caught.value.message.splitlines()
    rows = "the 2 rows after" if count == 3 else "all 20 rows so far"
    assert told == (
        f'a.{suffix}:{first}: "anchor" is missing, and in {rows}; their fields: frage, antwort'
    )
    assert "given in columns" in accepted


def test_some_rows_that_lack_a_field_are_told_of_together(tmp_path):
    """Once for each set of fields, with the rows; what else is wrong has a line of its own."""
    good, short, other = {"query": "a", "pos": "b"}, {"query": "a", "answers": "b"}, {"pos": "b"}
    rows = [good, short, good, short, other, {"query": "", "pos": "b"}, short]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path / "a.jsonl")
    assert caught.value.message.splitlines()[:-1] == [
        'a.jsonl:2: "positive" is missing, and in rows 4, 7; their fields: query, answers',
        'a.jsonl:5: "anchor" is missing',
        'a.jsonl:6: "query" is empty',
    ]


def test_with_columns_only_what_they_ask_for_is_told(tmp_path):
    """Who maps fields need not hear of the names that would else be known."""
    write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "b": "y"}] * 30)
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path / "a.jsonl", columns={"q": "anchor", "a": "positive"})
    assert caught.value.message.splitlines() == [
        'a.jsonl:1: "a" is missing, and in all 20 rows so far; their fields: q, b',
        'each row must have "q" (anchor) and "a" (positive), as columns say',
    ]
    write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": "y"}] * 2)
    with pytest.raises(InvalidRequest, match="as columns say") as caught:
        read(tmp_path / "a.jsonl", columns={"q": "anchor", "a": "positive"})
    assert 'anchor": "..."' not in caught.value.message


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "a", "pos": []}, '"pos" is empty'),
        ({"query": "a", "pos": ["b", ""]}, '"pos" holds an empty string'),
        ({"query": "a", "pos": "b", "neg": ["c", 3]}, '"neg" holds something that is not a string'),
        ({"query": "a", "pos": "b", "neg": ["c"] * 101}, "has 101 negatives, more than 100"),
        ({"query": "a", "pos": "b", "neg": ["c"], "score": 1}, "both negatives and a score"),
        ({"text": "a"}, '"label" is missing'),
        ({"text": "a", "label": 1.5}, '"label" is not a string or a whole number'),
        ({"sentence1": "a", "sentence2": "b"}, '"score" is missing'),
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, '"score" is not a number'),
        ({"sentence1": "a", "sentence2": "b", "score": True}, '"score" is not a number'),
        ({"sentence1": "a", "sentence2": "b", "score": math.inf}, "not a finite number"),
        ({"anchor": "x" * 1_000_001, "positive": "b"}, "longer than 1,000,000 characters"),
        ({"anchor": "a", "positive": "b", "slice": ["de"]}, '"slice" is not a string'),
    ],
)
def test_a_wrong_value_is_told_with_its_field(tmp_path, row, problem):
    """With file and line."""
    write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path / "a.jsonl")
    assert caught.value.message.startswith("a.jsonl:1: ")
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"query,answer\na\n", "a.csv:2: has 1 fields, and the header 2"),
        (b'query,answer\na,b\n"x,y\n', "a.csv:3: not CSV"),
        (b"query,query\na,b\n", "a.csv:1: two columns of the header have the same name"),
        (b"query,answer\n\n\na,\n", 'a.csv:4: "answer" is empty'),
        (b"query,answer\na,\xff\n", 'a.csv:2: "answer" is not UTF-8'),
    ],
)
def test_a_wrong_table_is_told_with_its_line(tmp_path, data, problem):
    """Of CSV."""
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path / "a.csv")
    assert problem in caught.value.message


@pytest.mark.parametrize(
    "line", [b"1" * 5000, b'{"anchor": ' + b"9" * 5000 + b"}", b"x" * (16 * 2**20 + 5)]
)
def test_a_line_that_json_cannot_bear_is_told(tmp_path, line):
    """Numbers and lines without end; the line after is read."""
    (tmp_path / "a.jsonl").write_bytes(line + b"\n{}\n")
    with pytest.raises(InvalidRequest, match="a.jsonl:1: .*\na.jsonl:2: "):
        read(tmp_path / "a.jsonl")


def test_kinds_are_not_mixed(tmp_path):
    """The first row settles it."""
    rows = [{"anchor": "a", "positive": "b"}, {"text": "a", "label": 1}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(InvalidRequest, match="a.jsonl:2: is of another kind"):
        read(tmp_path / "a.jsonl")


@given(secret=st.text("abcxyz", min_size=12, max_size=20))
@NOTHING_KEPT
def test_no_error_quotes_a_text(tmp_path, secret):
    """Whatever is wrong with the rows that hold it."""
    rows = [
        {"anchor": secret}, {"anchor": [secret], "positive": secret}, {secret: 1},
        {"text": secret, "label": [secret]}, [secret],
        {"sentence1": secret, "sentence2": "b", "score": secret},
        {"anchor": secret, "positive": "\ud800" + secret},
    ]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(f'{{"anchor": {secret}\n"{secret}')
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path / "a.jsonl")
    assert secret not in caught.value.message
    assert caught.value.message.count("a.jsonl:") == 9
