"""The command that calibrates a collection: queries in, a table and a picture of its plans out."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.server import channel_options

_MAX_MESSAGE_BYTES = 64 * 2**20
_SOURCES = {
    pb.QUERY_SOURCE_GIVEN: "the given queries",
    pb.QUERY_SOURCE_RECENT: "recent searches",
    pb.QUERY_SOURCE_DOCUMENTS: "documents in place of queries; give --queries for a surer promise",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    address: str
    """host:port of the router's gRPC."""
    api_key: str | None
    collection: str
    target: float
    limit: int
    for_memory: bool
    queries: Path | None
    plot: Path | None


def calibrate(options: Options) -> None:
    """Calibrate, with a progress bar, and show the result.

    Raises:
        InvalidRequest: the queries' file is not what it should be.
        grpc.aio.AioRpcError: the router refused, or cannot be reached.
    """
    if options.plot and not options.plot.parent.is_dir():
        raise InvalidRequest(f"{options.plot.parent} is not a folder that a picture can be put in")
    texts, slices = read_queries(options.queries) if options.queries else ([], [])
    calibration = asyncio.run(_run(options, texts, slices))
    show(calibration, options.collection)
    if options.plot:
        options.plot.write_bytes(calibration.plot_png)
        Console().print(f"picture: {options.plot}", highlight=False, soft_wrap=True)


def read_queries(path: Path) -> tuple[list[str], list[str]]:
    """Read queries and their slices: one a line, or, if the first begins with "{", JSON lines.

    Raises:
        InvalidRequest: names the file and the line.
    """
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
    metadata = (("authorization", f"Bearer {options.api_key}"),) if options.api_key else ()
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    limits = channel_options(_MAX_MESSAGE_BYTES)
    async with grpc.aio.insecure_channel(options.address, options=limits) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        request = pb.CalibrateRequest(
            collection=options.collection,
            limit=options.limit,
            recall_target=options.target,
            objective=pb.OBJECTIVE_MEMORY if options.for_memory else pb.OBJECTIVE_LATENCY,
            texts=texts,
            slices=slices,
        )
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task("", total=None)
            async for step in router.Calibrate(request, metadata=metadata):
                progress.update(
                    task, description=step.step, completed=step.done, total=step.total or None
                )
        answer = await router.GetCalibration(
            pb.GetCalibrationRequest(
                collection=options.collection, with_plot=options.plot is not None
            ),
            metadata=metadata,
        )
    return answer.calibration


def show(calibration: pb.Calibration, name: str) -> None:
    """Print the plans that are the cheapest of their recall, the chosen one marked."""
    console = Console()
    is_memory = calibration.objective == pb.OBJECTIVE_MEMORY
    table = Table(title=f"{name}: plans for {calibration.limit} hits, by {_what(is_memory)}")
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
    console.print(table)
    chosen = describe(calibration.plans[calibration.chosen].plan.stages)
    console.print(
        f"bounds from {calibration.num_queries} of {_SOURCES[calibration.source]}, others chose "
        f"the plans; for a recall of {calibration.recall_target:g}: {chosen}",
        highlight=False,
        soft_wrap=True,
    )
    if calibration.chosen == 0:
        console.print(
            "no other plan is sure of it: more queries bound recall closer, longer short sizes "
            "keep more of it, and in a small collection nothing is faster",
            highlight=False,
            soft_wrap=True,
        )


def _what(is_memory: bool) -> str:
    return "memory" if is_memory else "latency"


def describe(stages: Iterable[pb.Stage]) -> str:
    """Return a plan in a few words."""
    *first, last = stages
    parts = [
        f"{stage.candidates} by {stage.dim}{' nested' if stage.nested else ''} "
        f"({'scan' if not stage.ef else f'ef {stage.ef}'})"
        for stage in first
    ]
    if not first:
        return f"exact search at {last.dim}" if last.exact else f"{last.dim}, ef {last.ef}"
    return ", ".join([*parts, f"rerank by {last.dim}"])
