"""`matryoshka recall`: what a router has seen of its live searches, the worst first."""

import json
import time

import grpc
import pytest

from services.cli.recall import next_step, worst_first
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka

NUM_SEARCHES = 12


@pytest.fixture
def watched(process):
    """Searches of two slices, one with a plan that loses most of what there is."""
    bold = pb.Plan(stages=[pb.Stage(dim=64, candidates=10), pb.Stage(dim=384)])
    with grpc.insecure_channel(process.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        for number in range(NUM_SEARCHES):
            for slice_, target in (("exact", 0.9), ("bold", None)):
                search = pb.SearchRequest(
                    collection="docs", text=f"question {number}", slice=slice_, limit=10,
                    recall_target=target, plan=None if target else bold,
                )  # fmt: skip
                router.Search(search)
        deadline = time.monotonic() + 30
        while True:
            seen = router.GetRecall(pb.GetRecallRequest(collection="docs")).slices
            measured = {row.slice: row.num_measured for row in seen}
            if measured.get("bold", 0) + measured.get("exact", 0) >= 2 * NUM_SEARCHES:
                return process
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_it_shows_what_is_lost_the_worst_first(watched):
    """As a table for people and as one JSON object for machines."""
    ended = matryoshka("recall", "docs", "--json", "--router", watched.grpc)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    rows = {row["slice"]: row for row in answer["slices"]}
    assert answer["collection"] == "docs"
    names = [row["slice"] for row in answer["slices"]]
    assert names.index("bold") < names.index("exact")
    assert rows["bold"]["mean"] < 1.0 == rows["exact"]["mean"]
    assert rows["bold"]["recall_target"] is None
    assert rows["exact"]["recall_target"] == 0.9
    assert rows["bold"]["lost_to"]["prefix"] > 0
    assert rows["bold"]["alarm"] is False

    ended = matryoshka("recall", "docs", "--router", watched.grpc, COLUMNS="200")
    assert ended.returncode == 0, ended.stderr
    bold, exact = (
        next(line for line in ended.stdout.splitlines() if name in line)
        for name in ("bold", "exact")
    )
    assert "the cut (" in bold
    assert "the cut" not in exact
    assert "no slice is below its target" in ended.stdout


def test_a_collection_that_is_not_there_is_one_sentence(process):
    ended = matryoshka("recall", "nobody", "--router", process.grpc)
    assert ended.returncode == 1
    assert "no collection or alias 'nobody'" in ended.stderr
    assert "Traceback" not in ended.stderr


def row(name, **more):
    return pb.SliceRecall(slice=name, num_searches=9, num_measured=9, **more)


def test_alarms_come_first_and_say_what_to_do():
    """Then by how far a slice is below its target; one that nobody measured comes last."""
    rows = [
        pb.SliceRecall(slice="unmeasured", num_searches=3),
        row("good", mean=0.97, recall_target=0.95),
        row("filtered", mean=0.9, recall_target=0.95, alarm=True, lost_to_filter=0.1),
        row("low", mean=0.7, recall_target=0.95),
        row("cut", mean=0.8, recall_target=0.95, alarm=True, lost_to_prefix=0.2),
    ]
    ordered = worst_first(rows)
    assert [one.slice for one in ordered] == ["cut", "filtered", "low", "good", "unmeasured"]
    steps = [next_step(one, "docs") for one in ordered]
    assert "`matryoshka calibrate docs`; if it stays below, nest" in steps[0]
    assert "whose first stage is exact" in steps[1]
    assert steps[2:] == ["", "", ""]
