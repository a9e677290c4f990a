"""`matryoshka calibrate`: a table and a picture from a running router, or one clear sentence."""

import grpc
import numpy as np
import pytest

from services.cli.calibrate import read_queries
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka
from tests.conftest import serve

QUESTIONS = [f"what is {a} and {b}" for a in "abcdefghijklmno" for b in range(10)]


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    started = serve(tmp_path_factory.mktemp("calibrate"), "up")
    with grpc.insecure_channel(started.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        made = router.CreateCollection(
            pb.CreateCollectionRequest(name="docs", model="default", sizes=[pb.Size(dim=64)])
        )
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((600, 384)) * np.geomspace(1, 0.05, 384)
        batch = pb.UpsertRequest(
            collection="docs",
            points=[pb.Point(id=str(number)) for number in range(600)],
            vectors=rows.astype("<f4").tobytes(),
            space_id=made.collection.space_id,
        )
        assert [answer.total_points for answer in router.Upsert(iter([batch]))] == [600]
    yield started
    started.stop()


def test_it_shows_the_plans_and_draws_them(process, tmp_path):
    """Questions from a file; the plan for the target is named; the picture is a picture."""
    queries, picture = tmp_path / "queries.txt", tmp_path / "plans.png"
    queries.write_text("\n".join(QUESTIONS))
    ended = matryoshka(
        "calibrate", "docs", "--router", process.grpc, "--target", "0.9",
        "--queries", str(queries), "--plot", str(picture),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "exact search at 384" in ended.stdout
    assert "bounds from 75 of the given queries, others chose the plans" in ended.stdout
    assert "for a recall of 0.9:" in ended.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "no collection or alias 'nobody'"),
        (["docs", "--target", "1.5"], "target must be above 0 and below 1"),
        (["docs", "--limit", "100000"], "limit must be between 1 and 1000"),
        (["docs", "--queries", "no-such-file"], "No such file"),
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
