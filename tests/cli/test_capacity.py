"""`matryoshka plan-capacity`: figures from measurements, the router's cost model, a simulation."""

import dataclasses
import json
import re
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.capacity import figures, layouts
from services.cli.capacity.estimate import estimate
from services.cli.capacity.need import Machine, Need, parse_gpu, parse_own_plan
from services.cli.capacity.simulation import simulate
from services.cli.main import app
from services.router.sizes import BITS
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka

RESULTS = Path(__file__).parents[2] / "bench" / "results"
GIB = 2**30
NEED = Need(
    vectors=10**9, dims=384, searches_per_s=10_000, recall_target=0.95, replicas=2,
    texts_per_s=100, payload_bytes=1000, train_pairs=10**6, train_hours=24,
    machines=(Machine(16, 128 * GIB, 2000 * GIB, 1.0),), gpu=None, own_plan=None, busy=0.7,
    memory_share=0.7,
)  # fmt: skip


def with_(**changes):
    return dataclasses.replace(NEED, **changes)


def result(name):
    text = (RESULTS / f"{name}.txt").read_text()
    return text, json.loads(text.splitlines()[-1])


def row_of(text, target, what):
    """p50, p99 and bytes of a row of the router bench's first table."""
    current = ""
    for line in (line for line in text.splitlines() if line.startswith("| ")):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        current = cells[0] or current
        if current == f"{target:g}" and what in cells[1]:
            return float(cells[4]), float(cells[5]), int(cells[6])
    raise AssertionError((target, what))


@pytest.mark.parametrize("target", figures.TARGETS)
def test_figures_of_plans_are_the_committed_ones(target):
    """Times and shortlists stand in the outputs that they are said to be from."""
    text, numbers = result("router")
    best, ours = figures.FASTEST_SINGLE[target], figures.TURBO2_SINGLE[target]
    assert f"docstrings: {best.points:,} points, {figures.DIM} numbers" in text
    assert row_of(text, target, "best single stage")[:2] == (best.p50_ms, best.p99_ms)
    assert row_of(text, target, "ours")[:2] == (ours.p50_ms, ours.p99_ms)
    plan = numbers["docstrings"][f"{target:g}"]["plan"]
    assert plan.endswith(f"oversampling={ours.scored / 10:.1f}")
    text, numbers = result("million")
    nested = figures.NESTED[target]
    assert numbers["points"] == nested.points
    assert numbers[f"{target:g}"]["plan"].startswith(f"128 nested x {nested.scored} ")
    (row,) = re.findall(rf"^\| {target:g} \|.*$", text, re.MULTILINE)
    assert f"| {nested.p50_ms:.2f} | {nested.p99_ms:.2f} |" in row
    _, numbers = result("escalation")
    shortlist = numbers[f"docstrings/128/{target:g}"]["one"]
    assert shortlist == figures.NESTED_SHORTLISTS[target]


def test_other_figures_are_the_committed_ones():
    """Encoder, router, trainer, nesting and what the engine's process holds."""
    _, encoder = result("encoder-cpu")
    ours = encoder["texts_per_s"]["ours: gRPC 64 clients"]
    assert (ours["short"], ours["long"]) == (figures.QUERIES_PER_S, figures.DOCUMENTS_PER_S)
    for kind, tokens in (("short", figures.QUERY_TOKENS), ("long", figures.DOCUMENT_TOKENS)):
        texts, all_tokens = map(int, re.findall(r"\d+", encoder[kind])[:2])
        assert round(all_tokens / texts, 1) == tokens
    half = encoder["latency_at_half_load"]["ours: gRPC 64 clients"]["short"]
    assert (half["p50_ms"], half["p99_ms"]) == (figures.QUERY_P50_MS, figures.QUERY_P99_MS)
    assert encoder["cores"] == figures.ENCODER_CORES
    assert result("router")[1]["router_overhead_p50_ms"] == figures.ROUTER_MS
    text, trainer = result("trainer")
    assert re.search(rf"│ ours +│ +{figures.TRAINER_STEPS_PER_S} │", text)
    assert re.search(rf"^batch +{figures.TRAINER_BATCH}$", text, re.MULTILINE)
    assert trainer["adaptor_seconds_15k"] == figures.ADAPTOR_S
    (made,) = (r for r in result("nest")[1]["results"] if r.get("made") == 100_000)
    assert made["seconds"]["all_s"] == figures.NEST_S
    assert result("million")[1]["worker_own_gib"] == figures.WORKER_OWN_GIB


def test_no_gpu_is_assumed_where_none_was_measured():
    """As long as the encoder's figures of a GPU are missing, only the user's count."""
    assert estimate(NEED).others.encoder_gpus is None
    gpus = estimate(with_(gpu=parse_gpu("100000:3"))).others
    tokens = 10_000 * figures.QUERY_TOKENS + 100 * figures.DOCUMENT_TOKENS
    assert gpus.encoder_gpus == -(-tokens // 70_000) + 1
    assert gpus.gpu_price == 3 * gpus.encoder_gpus


def test_memory_is_what_the_benches_saw_of_the_routers_own():
    """Bytes per point of the calibrations' chosen plans, at their points and widths."""
    full, _, turbo2, nested = layouts.layouts(NEED)
    million = result("million")[1]
    assert nested.memory_bytes(10**6) == million["0.95"]["memory_bytes"]
    text, router = result("router")
    assert turbo2.memory_bytes(figures.POINTS_SINGLE) == row_of(text, 0.95, "ours")[2]
    ratio = full.memory_bytes(figures.POINTS_SINGLE) / turbo2.memory_bytes(figures.POINTS_SINGLE)
    assert round(ratio, 2) == router["docstrings"]["0.95"]["memory_ratio"]


def test_memory_is_what_a_running_router_says(process):
    """GetCollection's bytes of the size that a plan searches first."""
    with grpc.insecure_channel(process.grpc) as channel:
        found = pb_grpc.RouterServiceStub(channel).GetCollection(
            pb.GetCollectionRequest(name="docs")
        )
    said = found.collection.memory[0]
    assert said.dim == 64
    own = parse_own_plan("64:none", "1:2:600:100")
    *_, ours = layouts.layouts(with_(own_plan=own))
    assert ours.memory_bytes(found.collection.num_points) == said.vector_bytes + said.graph_bytes


NEEDS = st.builds(
    with_,
    vectors=st.integers(1, 10**11),
    dims=st.integers(32, 4096),
    searches_per_s=st.floats(0.1, 10**5),
    recall_target=st.floats(0.5, 0.99),
    replicas=st.integers(1, 4),
    texts_per_s=st.floats(0, 10**5),
)


def totals(need):
    found = estimate(need)
    return [
        (row.memory_bytes, row.disk_bytes_per_point * row.points, row.shards, row.nodes,
         row.price)
        for row in found.rows
    ] + [(found.others.encoder_cores, found.others.router_processes, 0, 0, 0)]  # fmt: skip


@settings(max_examples=60)
@given(NEEDS, st.sampled_from(["vectors", "searches_per_s", "texts_per_s", "replicas"]),
       st.floats(1, 100))  # fmt: skip
def test_more_never_needs_less(need, field, times):
    """More vectors, searches, texts or replicas: no less of anything, at any layout."""
    more = type(getattr(need, field))(getattr(need, field) * times)
    if field == "replicas":
        more = min(8, more)
    elif field == "vectors":
        more = min(10**12, more)
    bigger = dataclasses.replace(need, **{field: more})
    for less, greater in zip(totals(need), totals(bigger), strict=True):
        assert all(a <= b for a, b in zip(less, greater, strict=True))


@settings(max_examples=60)
@given(NEEDS)
def test_everything_fits_and_one_may_be_lost(need):
    """Each node holds its shard in memory and on disk, and carries what a lost one leaves."""
    (machine,) = need.machines
    for row in estimate(need).rows:
        assert row.memory_bytes / row.shards <= machine.memory_bytes * need.memory_share
        assert row.disk_bytes_per_point * row.points / row.shards <= machine.disk_bytes / 2
        assert row.replicas >= need.replicas
        worst = row.busy if need.replicas == 1 else row.busy_after_loss
        assert worst <= need.busy * 1.000001


def test_the_cheapest_machine_is_taken():
    """A machine that costs more for the same is not; one that holds more for its price is."""
    small, large = NEED.machines[0], Machine(32, 512 * GIB, 8000 * GIB, 3.0)
    rows = estimate(with_(machines=(small, large))).rows
    assert rows[0].machine == large  # memory decides at full width
    dear = dataclasses.replace(small, price=2.0)
    assert all(row.machine == small for row in estimate(with_(machines=(dear, small))).rows)


def test_of_plans_at_one_price_the_fastest_is_the_cheapest():
    """With what it reads from the disk: fewer bytes are worth nothing where all fit."""
    found = estimate(with_(vectors=100_000, searches_per_s=10))
    assert len({row.price for row in found.rows}) == 1
    fastest = min(found.rows, key=lambda row: row.search_p50_ms + row.read_ms)
    assert found.cheapest is not None
    assert found.cheapest.search_p50_ms + found.cheapest.read_ms == (
        fastest.search_p50_ms + fastest.read_ms
    )
    assert found.cheapest.scored == 0


def test_what_a_router_refuses_is_never_the_cheapest():
    """More shards or replicas than it allows, or too long a shortlist; nor is one of several."""
    found = estimate(with_(vectors=10**12))
    assert all(row.warnings() for row in found.rows)
    assert found.cheapest is None
    assert found.shown is found.rows[0]
    ended = CliRunner().invoke(app, ["plan-capacity", "--vectors", str(10**12)])
    assert ended.exit_code == 0
    assert "the cheapest: none" in ended.output
    found = estimate(NEED)
    assert found.cheapest is not None
    assert not found.cheapest.warnings()


def test_a_simulation_is_repeatable_and_agrees_with_the_arithmetic():
    """The same seed gives the same; another about the same; cores are as busy as planned."""
    row = estimate(NEED).cheapest
    small = with_(searches_per_s=500)
    row = dataclasses.replace(row, shards=3, replicas=2)
    work = 500 * row.layout.mean_ms(NEED) / 1000 / row.machine.cores
    first, again, other = (simulate(row, small, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.busy == pytest.approx(work / 2, rel=0.1)
    assert first.busy_after_loss == pytest.approx(work, rel=0.1)
    assert other.before.p50_ms == pytest.approx(first.before.p50_ms, rel=0.05)
    assert first.before.failed == first.unnoticed.failed == first.after.failed == 0
    assert first.asked_again > 0
    # Who asks a machine that is gone waits until that is noticed.
    assert first.unnoticed.p99_ms > 10 * first.before.p99_ms


def test_without_a_second_replica_a_loss_fails_searches():
    """All of them, as each needs every shard; before it none does."""
    need = with_(vectors=10**6, replicas=1, searches_per_s=200)
    seen = simulate(estimate(need).cheapest, need)
    assert seen.before.failed == 0
    assert seen.after.failed == seen.after.searches > 0


def test_a_queue_builds_where_cores_are_too_few():
    """Waiting times are simulated, not only the searches' own."""
    need = with_(vectors=10**6, searches_per_s=6000)
    row = dataclasses.replace(estimate(need).rows[0], shards=1, replicas=2)
    calm = simulate(row, need)
    full = simulate(dataclasses.replace(row, machine=Machine(1, GIB, GIB, 1.0)), need)
    assert full.before.p99_ms > 2 * calm.before.p99_ms


def test_what_would_take_too_long_is_not_simulated():
    need = with_(vectors=10**12, searches_per_s=10**6)
    assert simulate(estimate(need).rows[0], need) is None


def test_the_command_prints_a_table_and_what_it_rests_on():
    """A person sees plans, other machines, the simulation, and where each figure is from."""
    ended = matryoshka("plan-capacity", "--vectors", "1000000", "--searches-per-s", "50")
    assert ended.returncode == 0, ended.stderr
    for part in ("full float32", "full turbo2", "nested", "router: ", "encoder: ", "training: ",
                 "measured: ", "yours: ", "assumed: ", "bench/results/million.txt",
                 f"from {figures.POINTS_SINGLE:,} points on", "a lower bound"):  # fmt: skip
        assert part in ended.stdout


def test_the_command_speaks_json():
    """One object, with the user's own plan and machines in it."""
    ended = matryoshka(
        "plan-capacity", "--json", "--vectors", "1000000", "--searches-per-s", "50",
        "--plan", "128:turbo4", "--measured", "0.83:3.4:1000000:110",
        "--machine", "8:32:500:1", "--machine", "16:64:1000:1.5", "--gpu", "500000:4",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["layouts"][-1]["layout"] == "yours: 128 turbo4 > full"
    assert said["layouts"][-1]["memory_bytes_per_vector"] == 155
    assert said["layouts"][-1]["search_p50_ms"] == 0.83
    assert said["layouts"][0]["relative_cost"] == 1
    assert said["others"]["encoder_gpus"] == 2
    assert said["simulated"] == said["layouts"][-1]["layout"]
    assert said["simulation"]["before"]["searches"] > 0
    assert {one["kind"] for one in said["assumptions"]} == {"measured", "yours", "assumed"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--vectors", "0"], "--vectors must be between 1 and 1e+12, got 0"),
        (["--recall-target", "0.999"], "--recall-target must be between 0.5 and 0.99"),
        (["--replicas", "9"], "--replicas must be between 1 and 8"),
        (["--machine", "16:128"], "--machine must be 4 numbers above 0 such as 16:128:2000:1.0"),
        (["--machine", "1.5:1:1:1"], "cores must be a whole number"),
        (["--machine", "1:0.000001:1:1"], "holds not even one vector"),
        (["--gpu", "fast"], "--gpu must be 2 numbers"),
        (["--plan", "128:int3"], "--plan must be a size and its codes such as 128:turbo4"),
        (["--plan", "128:int8"], "--plan needs --measured"),
        (["--measured", "1:2:100:10"], "--measured needs --plan"),
        (["--plan", "512:int8", "--measured", "1:2:100:10"], "--plan must be at most 384"),
        (["--plan", "8:int8", "--measured", "2:1:100:10"], "P99_MS must be no less than P50_MS"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says):
    """Told before any work, with what is accepted."""
    ended = CliRunner().invoke(app, ["plan-capacity", *arguments])
    assert ended.exit_code == 2
    assert says in ended.stderr
    assert ended.stdout == ""


def test_every_kind_of_codes_can_be_planned_for():
    for codes in BITS:
        own = parse_own_plan(f"96:{codes}", "1:2:1000:100")
        assert estimate(with_(own_plan=own)).rows[-1].nodes > 0


def test_own_plans_are_checked_against_the_width():
    with pytest.raises(InvalidRequest, match="at most 384"):
        estimate(with_(own_plan=parse_own_plan("768:int8", "1:2:1000:100")))
