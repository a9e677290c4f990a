"""The command that shows the recall of live searches: which fall short, why, and what to do."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.peer import connect, metadata
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc

_CAUSES = {
    "prefix": "the cut",
    "graph": "the graph",
    "quantization": "codes",
    "filter": "filters",
}
# What helps where calibrating again has not.
_REMEDIES = {
    "prefix": "if it stays below, nest the collection, or give it a longer short size",
    "graph": "if it stays below, give a size that has a graph more links (hnsw_m)",
    "quantization": "if it stays below, give the short size finer codes",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    address: str
    """host:port of the router's gRPC."""
    api_key: str | None
    collection: str
    is_json: bool


def recall(options: Options) -> None:
    """Show the recall of a collection's live searches, as a table or as JSON.

    Raises:
        grpc.aio.AioRpcError: the router refused, or cannot be reached.
    """
    slices = worst_first(asyncio.run(_ask(options)))
    if options.is_json:
        rows = [describe(row, options.collection) for row in slices]
        print(json.dumps({"collection": options.collection, "slices": rows}))
    else:
        show(slices, options.collection)


async def _ask(options: Options) -> Sequence[pb.SliceRecall]:
    async with connect(options.address) as channel:
        answer = await pb_grpc.RouterServiceStub(channel).GetRecall(
            pb.GetRecallRequest(collection=options.collection), metadata=metadata(options.api_key)
        )
    return answer.slices


def worst_first(slices: Sequence[pb.SliceRecall]) -> list[pb.SliceRecall]:
    """Sort slices: alarms, then by how far each is below its target; unmeasured ones last."""

    def place(row: pb.SliceRecall) -> tuple[bool, bool, float]:
        target = row.recall_target if row.HasField("recall_target") else 1.0
        return not row.alarm, not row.num_measured, row.mean - target

    return sorted(slices, key=place)


def describe(row: pb.SliceRecall, collection: str) -> dict[str, object]:
    """Return a slice's recall for machines; what was not measured is null."""
    is_measured = row.num_measured > 0
    return {
        "slice": row.slice,
        "num_searches": row.num_searches,
        "num_measured": row.num_measured,
        "mean": row.mean if is_measured else None,
        "lower": row.lower if is_measured else None,
        "upper": row.upper if is_measured else None,
        "recall_target": row.recall_target if row.HasField("recall_target") else None,
        "alarm": row.alarm,
        "lost_to": _losses(row),
        "next_step": next_step(row, collection),
    }


def next_step(row: pb.SliceRecall, collection: str) -> str:
    """Say what to do about a slice; "": nothing."""
    if not row.alarm:
        return ""
    cause = _main_cause(row)
    if cause == "filter":
        return (
            "ask for a higher recall_target in searches with a filter, or give them a plan whose "
            "first stage is exact: a calibration measures none"
        )
    remedy = _REMEDIES.get(cause)
    return f"run `matryoshka calibrate {collection}`" + (f"; {remedy}" if remedy else "")


def show(slices: Sequence[pb.SliceRecall], collection: str) -> None:
    """Print a table, and below it what to do."""
    table = Table(title=f"{collection}: recall of live searches")
    table.add_column("slice", overflow="fold")
    for column in ("searches", "measured", "recall", "at 95 %", "target", "alarm"):
        table.add_column(column, justify="right")
    table.add_column("lost mostly to")
    for row in slices:
        has_target, is_measured = row.HasField("recall_target"), row.num_measured > 0
        cause = _main_cause(row)
        table.add_row(
            escape(row.slice) or "(none)", f"{row.num_searches:,}", f"{row.num_measured:,}",
            f"{row.mean:.4f}" if is_measured else "",
            f"{row.lower:.3f} to {row.upper:.3f}" if is_measured else "",
            f"{row.recall_target:g}" if has_target else "",
            "ALARM" if row.alarm else "no" if has_target else "",
            f"{_CAUSES[cause]} ({_losses(row)[cause]:.4f})" if cause else "",
            style="bold red" if row.alarm else None,
        )  # fmt: skip
    Console().print(table)
    for line in _advice(slices, collection):
        Console().print(line, highlight=False, soft_wrap=True, markup=False)


def _advice(slices: Sequence[pb.SliceRecall], collection: str) -> list[str]:
    alarms = [row for row in slices if row.alarm]
    if alarms:
        return [
            f"{_named(row)} fell below {row.recall_target:g}: {next_step(row, collection)}"
            for row in alarms
        ]
    if not any(row.num_measured for row in slices):
        return [
            "no search has been measured since the last calibration: a share of live ones is "
            "repeated exactly, off their way (MATRYOSHKA_ROUTER_SHADOW_SHARE)"
        ]
    if not any(row.HasField("recall_target") for row in slices):
        return [
            "nothing was promised, so there is no alarm: `matryoshka calibrate "
            f"{collection}` lets searches state a target"
        ]
    return ["no slice is below its target beyond chance"]


def _named(row: pb.SliceRecall) -> str:
    return f"slice {row.slice!r}" if row.slice else "searches without a slice"


def _losses(row: pb.SliceRecall) -> dict[str, float]:
    """Return the mean share of exact hits that was lost to each cause."""
    return {cause: getattr(row, f"lost_to_{cause}") for cause in _CAUSES}


def _main_cause(row: pb.SliceRecall) -> str:
    """Return what most was lost to; "": nothing was."""
    losses = _losses(row)
    cause = max(losses, key=lambda one: losses[one])
    return cause if losses[cause] > 0 else ""
