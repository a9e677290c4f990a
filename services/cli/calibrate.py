"""The command that calibrates a collection: queries in, a table and a picture of its plans out.

Or, without measuring, the same of what was measured last.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from services.cli.peer import connect, metadata
from services.cli.plan import describe
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.server import channel_options

_MAX_MESSAGE_BYTES = 64 * 2**20
# How many queries bounded recall, whose they were, and who chose the plans.
_SOURCES = {
    pb.QUERY_SOURCE_GIVEN: "Bounds are from {} of the given queries; the others chose the plans.",
    pb.QUERY_SOURCE_RECENT: "Bounds are from {} recent searches; others chose the plans.",
    pb.QUERY_SOURCE_DOCUMENTS: (
        "Bounds are from {} documents that stood in for queries; others chose the plans. With "
        "--queries a calibration promises what real queries keep."
    ),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    address: str
    """host:port of the router's gRPC."""
    api_key: str | None
    collection: str
    target: float | None
    limit: int | None
    for_memory: bool
    queries: Path | None
    plot: Path | None
    is_show: bool = False
    """Measure nothing."""


def calibrate(options: Options) -> None:
    """Calibrate, with a progress bar, and show the result; or only show it.

    Raises:
        InvalidRequest: the queries' file is not what it should be, or options do not fit together.
        grpc.aio.AioRpcError: the router refused, or cannot be reached.
    """
    measuring = (options.target, options.limit, options.for_memory, options.queries)
    if options.is_show and any(measuring):
        raise InvalidRequest("--show measures nothing: of the other options it takes --plot only")
    if options.plot and not options.plot.parent.is_dir():
        raise InvalidRequest(f"{options.plot.parent} is not a folder that a picture can be put in")
    texts, slices = read_queries(options.queries) if options.queries else ([], [])
    calibration = asyncio.run(_run(options, texts, slices))
    show(calibration, options.collection)
    if options.plot:
        options.plot.write_bytes(calibration.plot_png)
        _say(f"picture: {options.plot}")


def read_queries(path: Path) -> tuple[list[str], list[str]]:
    """Read queries and their slices: one a line, or, if the first begins with "{", JSON lines.

    Raises:
        InvalidRequest: names the file and the line.
    """
    if not path.is_file():
        raise InvalidRequest(f"there is no file {path}; --queries takes one query a line")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} must be text in UTF-8, and is not") from error
    if not lines:
        raise InvalidRequest(f"{path} holds no queries; it must have one on each line")
    if not lines[0].lstrip().startswith("{"):
        return lines, []
    texts: list[str] = []
    slices: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            query = json.loads(line)
            texts.append(str(query["text"]))
            slices.append(str(query.get("slice", "")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(
                f'{path}:{number}: each line must be {{"text": "...", "slice": "..."}}; the slice '
                "may be left out"
            ) from error
    return texts, slices


async def _run(options: Options, texts: list[str], slices: list[str]) -> pb.Calibration:
    limits = channel_options(_MAX_MESSAGE_BYTES)
    async with connect(options.address, options=limits) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        if not options.is_show:
            await _measure(router, options, texts, slices)
        request = pb.GetCalibrationRequest(
            collection=options.collection, with_plot=options.plot is not None
        )
        answer = await router.GetCalibration(request, metadata=metadata(options.api_key))
    return answer.calibration


async def _measure(
    router: Any,  # noqa: ANN401 (the stubs describe synchronous callers)
    options: Options,
    texts: list[str],
    slices: list[str],
) -> None:
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    request = pb.CalibrateRequest(
        collection=options.collection,
        limit=options.limit or 0,
        recall_target=options.target or 0.0,
        objective=pb.OBJECTIVE_MEMORY if options.for_memory else pb.OBJECTIVE_LATENCY,
        texts=texts,
        slices=slices,
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None)
        async for step in router.Calibrate(request, metadata=metadata(options.api_key)):
            progress.update(
                task, description=step.step, completed=step.done, total=step.total or None
            )


def show(calibration: pb.Calibration, name: str) -> None:
    """Print the plans that are the cheapest of their recall, the chosen one marked; and slices."""
    _show_plans(calibration, name)
    measured_at = datetime.fromtimestamp(calibration.created_at, UTC)
    _say(
        f"Measured on {measured_at:%Y-%m-%d at %H:%M} UTC with {calibration.num_points:,} points; "
        f"bounds hold with a confidence of {calibration.confidence:g}."
    )
    _say(_SOURCES[calibration.source].format(f"{calibration.num_queries:,}"))
    chosen = describe(calibration.plans[calibration.chosen].plan.stages)
    _say(f"For a recall of {calibration.recall_target:g}: {chosen}")
    if calibration.chosen == 0:
        _say(
            "No other plan is sure of it: more queries bound recall closer, longer short sizes "
            "keep more of it, and in a small collection nothing is faster."
        )
    if calibration.slice_queries:
        _show_slices(calibration, name)


def _show_plans(calibration: pb.Calibration, name: str) -> None:
    is_memory = calibration.objective == pb.OBJECTIVE_MEMORY
    what = "memory" if is_memory else "latency"
    table = Table(title=f"{name}: plans for {calibration.limit} hits, by {what}")
    table.add_column("plan")
    for column in ("recall", "sure of", "p50 ms", "p99 ms", "bytes per point"):
        table.add_column(column, justify="right")
    exact = calibration.plans[0]
    for number, row in enumerate(calibration.plans):
        recall = row.recalls[""]
        promised = recall.promised_by_memory if is_memory else recall.promised_by_latency
        is_beaten = not is_memory and number > 0 and row.p50_ms >= exact.p50_ms
        if promised and not is_beaten:
            table.add_row(
                describe(row.plan.stages), f"{recall.mean:.4f}", f"{promised:.4f}",
                f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.memory_bytes}",
                style="bold green" if number == calibration.chosen else None,
            )  # fmt: skip
    Console().print(table)


def _show_slices(calibration: pb.Calibration, name: str) -> None:
    """Print what each slice gets, and keeps with it; the least sure first."""
    table = Table(title=f"{name}: slices, for a recall of {calibration.recall_target:g}")
    table.add_column("slice", overflow="fold")
    for column in ("queries", "recall", "bound"):
        table.add_column(column, justify="right")
    table.add_column("plan")
    rows = []
    for slice_, count in calibration.slice_queries.items():
        own = calibration.slice_chosen.get(slice_)
        plan = calibration.plans[calibration.chosen if own is None else own]
        recall = plan.recalls[slice_]
        of_all = " (of all queries: too few of its own)" if own is None else ""
        text = describe(plan.plan.stages) + of_all
        rows.append((recall.bound, escape(slice_), f"{count:,}", f"{recall.mean:.4f}", text))
    for bound, slice_, queries, mean, text in sorted(rows):
        table.add_row(slice_, queries, mean, f"{bound:.4f}", text)
    Console().print(table)


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True, markup=False)
