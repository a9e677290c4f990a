"""`matryoshka calibrate`: a table and a picture from a running router, or one clear sentence."""

import json

import pytest

from services.cli.calibrate import read_queries
from services.shared.errors import InvalidRequest
from tests.cli.test_commands import matryoshka

QUESTIONS = [f"what is {a} and {b}" for a in "abcdefghijklmno" for b in range(10)]


def test_it_shows_the_plans_and_draws_them(process, tmp_path):
    """Questions from a file; the plan for the target is named, of each slice too; and again."""
    queries, picture = tmp_path / "queries.jsonl", tmp_path / "plans.png"
    rows = [{"text": text, "slice": f"[{text[-1] > '4':d}]"} for text in QUESTIONS]
    queries.write_text("\n".join(map(json.dumps, rows)))
    ended = matryoshka(
        "calibrate", "docs", "--router", process.grpc, "--target", "0.9",
        "--queries", str(queries), "--plot", str(picture),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "exact search at 384" in ended.stdout
    assert "Bounds are from 75 of the given queries; the others chose the plans." in ended.stdout
    assert "For a recall of 0.9: " in ended.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = ended.stdout.partition("slices, for a recall of 0.9")[2]
    assert "[0]" in table
    assert "[1]" in table

    picture.unlink()
    shown = matryoshka(
        "calibrate", "docs", "--show", "--router", process.grpc, "--plot", str(picture)
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == ended.stdout.strip()
    assert "with 600 points" in shown.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "no collection or alias 'nobody'"),
        (["docs", "--target", "1.5"], "target must be above 0 and below 1"),
        (["docs", "--limit", "100000"], "limit must be between 1 and 1000"),
        (["docs", "--queries", "no-such-file"], "there is no file no-such-file"),
        (["docs", "--show", "--target", "0.9"], "--show measures nothing"),
        (["docs", "--plot", "no-such-folder/x.png"], "is not a folder"),
    ],
)
def test_a_mistake_is_one_sentence(process, arguments, says):
    """Not a traceback."""
    ended = matryoshka("calibrate", *arguments, "--router", process.grpc)
    assert ended.returncode != 0
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_queries_are_read_with_their_slices(tmp_path):
    """JSON lines with or without a slice; a bad line is named."""
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "a", "slice": "s"}\n\n{"text": "b"}\n')
    assert read_queries(path) == (["a", "b"], ["s", ""])
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_queries(path)
    path.write_text("\n")
    with pytest.raises(InvalidRequest, match="holds no queries"):
        read_queries(path)
    path.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(InvalidRequest, match=r"queries.jsonl:2: each line must be"):
        read_queries(path)
