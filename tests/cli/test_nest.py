"""`matryoshka nest`: a table of what it gained from a running router, or one clear sentence."""

import grpc
import numpy as np
import pytest

from services.cli.nest import read_sizes
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka
from tests.conftest import serve


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    started = serve(tmp_path_factory.mktemp("nest"), "up")
    with grpc.insecure_channel(started.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        made = router.CreateCollection(
            pb.CreateCollectionRequest(name="docs", model="default", sizes=[pb.Size(dim=64)])
        )
        rows = np.random.default_rng(0).standard_normal((1000, 384)) * np.geomspace(1, 0.05, 384)
        batch = pb.UpsertRequest(
            collection="docs",
            points=[pb.Point(id=str(number)) for number in range(1000)],
            vectors=rows[:, ::-1].astype("<f4").tobytes(),  # the first numbers say the least
            space_id=made.collection.space_id,
        )
        assert [answer.total_points for answer in router.Upsert(iter([batch]))] == [1000]
    yield started
    started.stop()


def test_it_shows_what_nesting_gained_and_undoes_it(process):
    """The table has a row for each size; afterwards none is nested any more."""
    ended = matryoshka("nest", "docs", "--router", process.grpc, "--sizes", "32,64:int8")
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("│")[1:-1] for line in ended.stdout.splitlines() if "│" in line]
    gained = {int(row[0]): (float(row[1]), float(row[3])) for row in rows}
    assert gained.keys() == {32, 64}
    assert all(nested > plain + 0.1 for plain, nested in gained.values())
    assert "`matryoshka nest docs --undo` takes them away" in ended.stdout
    ended = matryoshka("nest", "docs", "--router", process.grpc, "--undo")
    assert ended.returncode == 0, ended.stderr
    assert "docs has no nested sizes any more" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "no collection or alias 'nobody'"),
        (["docs", "--sizes", "wide"], "--sizes must be sizes such as 64,128:int8, got 'wide'"),
        (["docs", "--sizes", "60"], "a multiple of 8 below 384"),
        (["docs", "--sizes", "64", "--undo"], "give no --sizes with it"),
    ],
)
def test_what_cannot_be_is_one_sentence(process, arguments, says):
    """An exit code that is not 0, and no traceback."""
    ended = matryoshka("nest", *arguments, "--router", process.grpc)
    assert ended.returncode in (1, 2)
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sizes_are_read_with_their_codes():
    """Four bits where none are named; anything else is refused."""
    read = [(size.dim, size.quantization, size.nested) for size in read_sizes("64,96:int8,8:none")]
    assert read == [
        (64, pb.QUANTIZATION_TURBO4, True),
        (96, pb.QUANTIZATION_INT8, True),
        (8, pb.QUANTIZATION_UNSPECIFIED, True),
    ]
    assert read_sizes("") == []
    for wrong in ("64:int7", "-8", "64 96"):
        with pytest.raises(InvalidRequest, match="got"):
            read_sizes(wrong)
