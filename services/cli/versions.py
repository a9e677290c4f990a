"""What the commands on versions do: one call of the trainer each, and what is said of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.peer import connect, metadata
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc

_MOST = 100


@dataclass(frozen=True, slots=True)
class Trainer:
    """Where the trainer is."""

    address: str
    """host:port of its gRPC."""
    api_key: str | None

    def ask(self, method: str, request: object) -> Any:  # noqa: ANN401 (one of several responses)
        """Make one call; grpc.aio.AioRpcError: it was refused, or there is no trainer."""
        return asyncio.run(self._ask(method, request))

    async def _ask(self, method: str, request: object) -> Any:  # noqa: ANN401
        async with connect(self.address) as channel:
            call: Callable[..., Awaitable[Any]]
            call = getattr(pb_grpc.TrainerServiceStub(channel), method)
            return await call(request, metadata=metadata(self.api_key))


def list_versions(trainer: Trainer, name: str) -> None:
    """Show versions in a table: nDCG@10 before and after at each size."""
    request = pb.ListVersionsRequest(name=name, limit=_MOST)
    answer: pb.ListVersionsResponse = trainer.ask("ListVersions", request)
    console = Console()
    if not answer.versions:
        console.print("no job has made a model yet: docs/fine-tuning.md shows how", markup=False)
        return
    table = Table()
    table.add_column("version", no_wrap=True)
    table.add_column("names", overflow="fold")
    table.add_column("method")
    table.add_column("nDCG@10 at each size, before and after", overflow="fold")
    for version in answer.versions:
        method = pb.Method.Name(version.hyperparameters.method).removeprefix("METHOD_").lower()
        quality = "  ".join(
            f"{row.dim}: {row.before.ndcg10:.3f}→{row.after.ndcg10:.3f}" for row in version.quality
        )
        table.add_row(escape(version.id), escape(", ".join(version.aliases)), method, quality)
    console.print(table)
    if answer.has_more:
        console.print(f"and more than {_MOST}; give a name")


def compare(trainer: Trainer, before: str, after: str) -> None:
    """Show what each slice's queries score with two versions."""
    request = pb.CompareVersionsRequest(before=before, after=after)
    answer: pb.CompareVersionsResponse = trainer.ask("CompareVersions", request)
    Console().print(comparison(answer.slices, f"{before} → {after}"))


def alias(trainer: Trainer, name: str, version: str) -> None:
    """Point a name at a version, or remove it."""
    trainer.ask("SetVersionAlias", pb.SetVersionAliasRequest(alias=name, id=version))
    print(f"{name} points at {version}" if version else f"{name} is removed")


def delete(trainer: Trainer, version: str) -> None:
    """Remove a version."""
    trainer.ask("DeleteVersion", pb.DeleteVersionRequest(id=version))
    print(f"{version} is deleted")


def comparison(slices: Sequence[pb.SliceComparison], title: str) -> Table:
    """Return a table of nDCG@10 and its change at each size, one row a slice."""
    table = Table(title=escape(title))
    table.add_column("slice", overflow="fold")
    table.add_column("queries", justify="right")
    for row in slices[0].dims:
        table.add_column(str(row.dim), justify="right")
    for one in slices:
        cells = [_change(row) for row in one.dims]
        table.add_row(escape(one.slice) or "(all)", f"{one.num_queries:,}", *cells)
    return table


def _change(row: pb.DimComparison) -> str:
    """Write a change; beyond chance, in color."""
    color = "red" if row.high < 0 else "green" if row.low > 0 else ""
    text = f"{row.after.ndcg10:.3f} ({row.change:+.3f})"
    return f"[{color}]{text}[/{color}]" if color else text
