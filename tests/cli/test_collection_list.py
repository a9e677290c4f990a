"""`matryoshka collections`: every collection with what was measured of it."""

import asyncio
import hashlib
import json

import grpc
import pytest
from typer.testing import CliRunner

from services.cli.collection_list import Row, look_up, show_rows
from services.cli.main import app
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka
from tests.conftest import serve

OPERATOR, TENANT, ONE = "sk-planted-operator", "sk-planted-tenant", "sk-planted-one-at-once"


def authorization(key):
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture(scope="module")
def router(process, tmp_path_factory):
    """A router of its own with keys, over the encoder of `process`: nobody else's collections."""
    folder = tmp_path_factory.mktemp("collections")
    keys = folder / "keys"
    entries = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} | more
        for name, key, more in (
            ("us", OPERATOR, {}),
            ("acme", TENANT, {"tenant": "acme"}),
            ("slow", ONE, {"concurrent_calls": 1}),
        )
    ]
    keys.write_text("\n".join(map(json.dumps, entries)))
    started = serve(
        folder, "serve", "router",
        MATRYOSHKA_ROUTER_KEYS_FILE=str(keys),
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=process.grpc,
    )  # fmt: skip
    yield started
    started.stop()


def listed(router, *arguments, key=OPERATOR):
    command = ["collections", "--router", router.grpc, "--api-key", key, *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def test_it_lists_what_there_is(router):
    """Nothing at first; then points, sizes, codes, and the recall that is promised to operators."""
    ended = listed(router)
    assert ended.exit_code == 0, ended.stderr
    assert "`matryoshka index NAME FILES --create` makes one" in ended.stdout
    assert json.loads(listed(router, "--json").stdout) == {"collections": []}

    operator = authorization(OPERATOR)
    with grpc.insecure_channel(router.grpc) as channel:
        stub = pb_grpc.RouterServiceStub(channel)
        sizes = [pb.Size(dim=64, quantization=pb.QUANTIZATION_INT8)]
        for name in ("letters", "bare"):
            stub.CreateCollection(
                pb.CreateCollectionRequest(name=name, model="default", sizes=sizes),
                metadata=operator,
            )
        stub.SetCollectionAlias(
            pb.SetCollectionAliasRequest(alias="post", collection="letters"), metadata=operator
        )
        points = [pb.Point(id=str(number), text=f"letter number {number}") for number in range(300)]
        batch = pb.UpsertRequest(collection="letters", points=points)
        list(stub.Upsert(iter([batch]), metadata=operator))
        request = pb.CalibrateRequest(
            collection="letters", recall_target=0.9, objective=pb.OBJECTIVE_MEMORY
        )
        list(stub.Calibrate(request, metadata=operator))
        measured = stub.GetCalibration(
            pb.GetCalibrationRequest(collection="letters"), metadata=operator
        ).calibration
    promised = measured.plans[measured.chosen].recalls[""].promised_by_memory
    assert promised >= 0.9

    where = {"MATRYOSHKA_CLI_ADDRESS": router.grpc, "MATRYOSHKA_CLI_API_KEY": OPERATOR}
    ended = matryoshka("collections", **where)
    assert ended.returncode == 0, ended.stderr
    wide = listed(router).stdout
    bare, letters = sorted(line for line in wide.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in letters.split("│")[1:-1]] == [
        "letters", "post", "300", "matryoshka-MiniLM-L6-v2", "64:int8, 384",
        f"{promised:.3f} (target 0.9)",
    ]  # fmt: skip
    assert "not calibrated" in bare

    rows = {row["name"]: row for row in json.loads(listed(router, "--json").stdout)["collections"]}
    assert rows["letters"]["aliases"] == ["post"]
    assert rows["letters"]["num_points"] == 300
    assert rows["letters"]["sizes"] == ["64:int8", "384"]
    assert rows["letters"]["is_calibrated"] is True
    assert rows["letters"]["calibration"]["recall"] == promised
    assert rows["letters"]["calibration"]["recall_target"] == 0.9
    assert (rows["bare"]["is_calibrated"], rows["bare"]["calibration"]) == (False, None)

    # A key for one call at a time sees the same.
    assert listed(router, key=ONE).stdout == wide

    tenants = listed(router, key=TENANT)
    assert tenants.exit_code == 0, tenants.stderr
    assert tenants.stdout.count("not shown to this key") == 2
    assert "0.9" not in tenants.stdout
    rows = json.loads(listed(router, "--json", key=TENANT).stdout)["collections"]
    assert [row["is_calibrated"] for row in rows] == [None, None]


async def test_calibrations_are_asked_for_at_once_and_bounded():
    """Eight at a time; those that the key was refused once more, alone, and all in their order."""
    running = most = calls = 0

    class Router:
        async def GetCalibration(self, request, metadata):
            nonlocal running, most, calls
            calls += 1
            is_over = calls <= 5
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            nothing = grpc.aio.Metadata()
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if is_over else grpc.StatusCode.NOT_FOUND
            raise grpc.aio.AioRpcError(code, nothing, nothing)

    collections = [pb.Collection(name=str(number)) for number in range(20)]
    rows = await look_up(Router(), collections, ())
    assert [row.collection for row in rows] == collections
    assert (most, calls) == (8, 25)


def test_a_key_that_is_none_is_told_what_to_do(router):
    """A sentence and an exit code, no traceback."""
    ended = listed(router, key="sk-planted-nobody")
    assert ended.exit_code == 1
    assert "--api-key" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_change_is_told_below_the_table(capsys):
    """How far it is, or why it ended."""
    going = pb.Change(kind="migrate", step="copy", done=1000, total=4000)
    ended = pb.Change(kind="resize", error="the disk is full")
    nested = pb.Size(dim=64, nested=True, quantization=pb.QUANTIZATION_TURBO4)
    show_rows(
        [
            Row(pb.Collection(name="a", sizes=[nested], change=going), None),
            Row(pb.Collection(name="b", change=ended), None),
        ]
    )
    shown = capsys.readouterr().out
    assert "a: migrate is under way: copy 1,000 of 4,000\n" in shown
    assert "b: resize ended: the disk is full\n" in shown
    assert "64 nested:turbo4" in shown


def test_what_is_promised_goes_by_what_the_plan_was_chosen_for():
    """Of the plan that the collection's own target gets, not of the safest."""
    bold = pb.MeasuredRecall(mean=0.99, promised_by_latency=0.95, promised_by_memory=0.96)
    plans = [pb.MeasuredPlan(), pb.MeasuredPlan(recalls={"": bold})]
    for objective, promised in ((pb.OBJECTIVE_LATENCY, 0.95), (pb.OBJECTIVE_MEMORY, 0.96)):
        calibration = pb.Calibration(plans=plans, chosen=1, objective=objective)
        assert Row(pb.Collection(), calibration).promised == promised
