"""What `matryoshka plan-capacity` prints: tables, and what they rest on."""

import json
from dataclasses import asdict
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from services.cli.capacity import figures
from services.cli.capacity.estimate import READ_MS, Estimate, Nodes, estimate
from services.cli.capacity.layouts import growth
from services.cli.capacity.need import Need
from services.cli.capacity.simulation import NOTICED_S, Phase, Simulation, simulate

_GIB, _TIB = 2**30, 2**40


class Assumption(NamedTuple):
    """One thing that the figures rest on."""

    kind: Literal["measured", "yours", "assumed"]
    text: str
    source: str = ""


def plan_capacity(need: Need, seed: int, is_json: bool) -> None:
    """Plan, simulate the user's own plan or the cheapest, and print both.

    Raises:
        InvalidRequest: a number is out of bounds.
    """
    found = estimate(need)
    seen = simulate(found.shown, need, seed)
    if is_json:
        print(json.dumps(describe(found, seen)))
        return
    _show_layouts(found)
    _show_others(found)
    _show_simulation(found.shown, seen)
    for kind, text, source in assumptions(need):
        _say(f"  {kind + ':':9} {text}" + (f" ({source})" if source else ""))


def describe(found: Estimate, seen: Simulation | None) -> dict[str, object]:
    """Return all figures for machines; busy of a shard without a replica left is null."""
    rows = [
        {
            "layout": row.layout.name, "source": row.layout.source, "machine": row.machine.name,
            "memory_bytes_per_vector": row.bytes_per_point,
            "memory_bytes": row.memory_bytes * row.replicas,
            "disk_bytes_per_vector": row.disk_bytes_per_point,
            "disk_bytes": row.disk_bytes_per_point * found.need.vectors * row.replicas,
            "shards": row.shards, "replicas": row.replicas, "nodes": row.nodes,
            "search_p50_ms": row.search_p50_ms, "search_p99_ms": row.search_p99_ms,
            "scored": row.scored, "disk_reads_per_s_per_node": row.disk_reads_per_s,
            "busy": row.busy,
            "busy_after_loss": row.busy_after_loss if row.replicas > 1 else None,
            "price": row.price, "relative_cost": found.cost(row),
            "warnings": row.warnings(),
        }
        for row in found.rows
    ]  # fmt: skip
    return {
        "layouts": rows,
        "cheapest": found.cheapest.layout.name if found.cheapest else None,
        "simulated": found.shown.layout.name,
        "others": asdict(found.others),
        "simulation": asdict(seen) if seen else None,
        "assumptions": [one._asdict() for one in assumptions(found.need)],
    }


def assumptions(need: Need) -> list[Assumption]:
    """Return what the figures rest on: measured, the user's to give, or assumed."""
    results, target = "bench/results", need.measured_target
    return [
        Assumption(
            "measured", "memory: the router's own cost model; "
            f"{figures.BESIDE_BYTES} bytes a vector beside it, at most, for ids and the like",
            f"{results}/million.txt",
        ),
        Assumption(
            "measured", f"times of full-width plans, {figures.POINTS_SINGLE:,} points of "
            f"{figures.DIM} numbers, recall {target:g}; the fastest codes' for float32 and int8",
            f"{results}/router.txt",
        ),
        Assumption(
            "measured", f"times of nested plans, {figures.POINTS_NESTED:,} points made of real "
            "ones", f"{results}/million.txt",
        ),
        Assumption(
            "measured", f"encoding: {figures.QUERIES_PER_S:g} queries or "
            f"{figures.DOCUMENTS_PER_S:g} documents a second on {figures.ENCODER_CORES} cores, "
            "all-MiniLM-L6-v2", f"{results}/encoder-cpu.txt",
        ),
        Assumption(
            "measured", f"the router's own time: {figures.ROUTER_MS:g} ms a search",
            f"{results}/router.txt",
        ),
        Assumption(
            "measured", "training: steps a second of all weights, and the adaptor's time, on "
            f"{figures.TRAINER_CORES} cores", f"{results}/trainer.txt",
        ),
        Assumption("measured", "nesting: of 100,000 vectors", f"{results}/nest.txt"),
        Assumption("yours", "vectors, dims, searches, texts, pairs, recall, replicas"),
        Assumption(
            "yours", "machines and their relative prices: "
            + "; ".join(f"{one.name} at {one.price:g}" for one in need.machines),
        ),
        Assumption(
            "yours", f"a GPU: {need.gpu.tokens_per_s:,.0f} tokens/s at {need.gpu.price:g}"
            if need.gpu else "a GPU's tokens/s and price, with --gpu; none is taken for granted",
        ),
        Assumption("yours", "a plan of your own, with --plan and --measured"),
        Assumption(
            "assumed", "a search of a graph takes as the logarithm of the points and as its width, "
            "on one core. Full-width plans were timed on few points, so their times for many are "
            "the least sure figures here: calibrate a collection of your size, and give --measured",
        ),
        Assumption(
            "assumed", "full-width plans keep their `ef` and oversampling from "
            f"{figures.POINTS_SINGLE:,} points on. At a billion their recall would fall with them, "
            "so their cost is a lower bound; the shortlist of nested plans grows with the points, "
            "so the two are not alike",
        ),
        Assumption(
            "assumed", f"a nested shortlist grows as points^{growth(target):.2f}, from "
            f"{figures.POINTS_SHORTLISTS:,} to {figures.POINTS_NESTED:,} points "
            "and on; the longer one was of codes, so it is rather less",
            f"{results}/escalation.txt, {results}/million.txt",
        ),
        Assumption(
            "assumed", f"cores are at most {need.busy:.0%} busy, with one replica of a shard lost "
            f"too; {need.memory_share:.0%} of memory and half of a disk are used",
        ),
        Assumption(
            "assumed", f"{READ_MS:g} ms to read a full vector from the disk, one after another; "
            f"{NOTICED_S:g} s until a lost machine is noticed",
        ),
        Assumption("assumed", "encoding and training grow with cores"),
    ]  # fmt: skip


def _show_layouts(found: Estimate) -> None:
    need = found.need
    table = Table(
        title=f"{need.vectors:,} vectors of {need.dims} numbers, {need.searches_per_s:,g} "
        f"searches/s, recall {need.recall_target:g}"
    )
    table.add_column("plan")
    for column in ("bytes", "memory", "shards", "replicas", "nodes", "busy", "cost"):
        table.add_column(column, justify="right")
    for row in found.rows:
        table.add_row(
            row.layout.name, f"{row.bytes_per_point:,}", _bytes(row.memory_bytes * row.replicas),
            f"{row.shards:,}", f"{row.replicas:,}", f"{row.nodes:,}", f"{row.busy:.0%}",
            f"{found.cost(row):.2f}",
            style="bold green" if row is found.cheapest else None,
        )  # fmt: skip
    Console().print(table)
    for row in found.rows:
        for text in row.warnings():
            _say(f"{row.layout.name}: {text}")
    _say(
        "bytes of a vector in memory, and memory of all replicas; cost: nodes' prices relative to "
        "the first plan's"
    )
    if not (cheapest := found.cheapest):
        _say("the cheapest: none, a router refuses each as its settings are")
        return
    _say(
        f"the cheapest: {cheapest.layout.name}, nodes of {cheapest.machine.name}, "
        f"{_bytes(cheapest.disk_bytes_per_point * need.vectors // cheapest.shards)} and "
        f"{cheapest.disk_reads_per_s:,.0f} reads/s of the disk each"
    )


def _show_others(found: Estimate) -> None:
    others, need = found.others, found.need
    gpus = f"{others.encoder_gpus} GPUs instead" if need.gpu else "GPUs instead: see --gpu"
    _say(
        f"router: {others.router_processes} processes, a core each, one spare\n"
        f"encoder: {others.encoder_nodes} nodes for {others.encoder_cores:,.0f} cores, one spare; "
        f"{gpus}\n"
        f"training: {others.training_nodes} of them for all weights in {need.train_hours:g} h, or "
        f"one for an adaptor in {others.adaptor_s / 3600:.1f} h; nesting takes "
        f"{others.nest_s:.0f} s"
    )


def _show_simulation(row: Nodes, seen: Simulation | None) -> None:
    if seen is None:
        _say("simulation: too many calls to follow; give fewer --searches-per-s")
        return
    table = Table(title=f"{row.layout.name}: {seen.seconds:.1f} s simulated")
    table.add_column("one machine lost")
    for column in ("searches", "failed", "p50 ms", "p99 ms", "with encoding", "p99 ms"):
        table.add_column(column, justify="right")
    phases: list[tuple[str, Phase]] = [
        ("before", seen.before),
        ("not yet noticed", seen.unnoticed),
        ("after", seen.after),
    ]
    for name, phase in phases:
        table.add_row(
            name, f"{phase.searches:,}", f"{phase.failed:,}", f"{phase.p50_ms:.1f}",
            f"{phase.p99_ms:.1f}", f"{phase.whole_p50_ms:.1f}", f"{phase.whole_p99_ms:.1f}",
        )  # fmt: skip
    Console().print(table)
    _say(
        f"nodes {seen.busy:.0%} busy; the other replicas of the lost one's shard "
        f"{seen.busy_after_loss:.0%}; {seen.asked_again:,} calls made again"
    )


def _bytes(number: int) -> str:
    return f"{number / _TIB:.1f} TiB" if number >= _TIB else f"{number / _GIB:.1f} GiB"


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True, markup=False)
