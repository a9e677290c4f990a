"""The command that nests a collection: progress while it goes on, a table of what it gained."""

import asyncio
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from services.cli.bulk.collection import parse_sizes
from services.cli.peer import connect, metadata
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    address: str
    """host:port of the router's gRPC."""
    api_key: str | None
    collection: str
    sizes: str
    target: float | None
    undo: bool


def nest(options: Options) -> None:
    """Nest, or undo it, with a progress bar, and show the result.

    Raises:
        InvalidRequest: the sizes are not what they should be.
        grpc.aio.AioRpcError: the router refused, or cannot be reached.
    """
    sizes = read_sizes(options.sizes)
    if options.undo and sizes:
        raise InvalidRequest("--undo takes away all nested sizes; give no --sizes with it")
    asyncio.run(_undo(options) if options.undo else _nest(options, sizes))


def read_sizes(text: str) -> list[pb.Size]:
    """Read sizes such as "64,96:int8"; one without codes gets codes of four bits.

    Raises:
        InvalidRequest: says what would be accepted.
    """
    sizes = parse_sizes(text, "--sizes", default="turbo4")
    for size in sizes:
        size.nested = True
    return sizes


async def _nest(options: Options, sizes: list[pb.Size]) -> None:
    async with connect(options.address) as channel:
        request = pb.NestCollectionRequest(
            name=options.collection, sizes=sizes, recall_target=options.target or 0.0
        )
        router = pb_grpc.RouterServiceStub(channel)
        last = await _follow(router.NestCollection(request, metadata=metadata(options.api_key)))
    show(last)


async def _undo(options: Options) -> None:
    async with connect(options.address) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        found = await router.GetCollection(
            pb.GetCollectionRequest(name=options.collection), metadata=metadata(options.api_key)
        )
        plain = [size for size in found.collection.sizes if not size.nested]
        request = pb.ResizeCollectionRequest(name=options.collection, sizes=plain)
        last = await _follow(router.ResizeCollection(request, metadata=metadata(options.api_key)))
    _say(f"{last.collection.name} has no nested sizes any more")


async def _follow(answers: AsyncIterable[Any]) -> Any:  # noqa: ANN401 (one of two responses)
    """Show how far it is; return the last answer."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    answer: Any = None
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None)
        async for answer in answers:
            change = answer.change
            progress.update(
                task, description=change.step, completed=change.done, total=change.total or None
            )
    return answer


def show(last: pb.NestCollectionResponse) -> None:
    """Print what each size keeps, before and after, and what to do next."""
    name = last.collection.name
    table = Table(title=f"{name}: true ten of the full vectors among the best 50 of a size")
    for column in ("size", "cut as it is", "principal axes", "nested"):
        table.add_column(column, justify="right")
    for row in last.quality:
        table.add_row(str(row.dim), f"{row.plain:.3f}", f"{row.pca:.3f}", f"{row.nested:.3f}")
    Console().print(table)
    _say(
        "its plans stand beside the others in the calibration, which "
        f"`matryoshka calibrate {name} --show` shows; "
        f"`matryoshka nest {name} --undo` takes them away"
    )


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)
