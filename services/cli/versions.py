"""What the commands on versions do: one call of the trainer each, and what is said of it."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.peer import RunningService
from services.cli.table import show
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc

_MOST = 100


class Trainer(RunningService):
    """Where the trainer is."""

    stub = pb_grpc.TrainerServiceStub


def list_versions(trainer: Trainer, name: str) -> None:
    """Show versions in a table: nDCG@10 or Spearman before and after at each size."""
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
    table.add_column("quality at each size, before and after", overflow="fold")
    for version in answer.versions:
        method = pb.Method.Name(version.hyperparameters.method).removeprefix("METHOD_").lower()
        quality = "  ".join(
            f"{row.dim}: {_score(row.before):.3f}→{_score(row.after):.3f}"
            for row in version.quality
        )
        table.add_row(
            escape(version.id),
            escape(", ".join(version.aliases)),
            method,
            f"{_metric(version.quality)}  {quality}",
        )
    show(table, console)
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
    answer: pb.DeleteVersionResponse = trainer.ask(
        "DeleteVersion", pb.DeleteVersionRequest(id=version)
    )
    print(f"{version} is deleted: {answer.freed_bytes / 1e6:.1f} MB are free")
    print(f"its job's settings, events and report stay in {answer.job_dir} until you remove that")


def comparison(slices: Sequence[pb.SliceComparison], title: str) -> Table:
    """Return a table of the score that decides and its change at each size, one row a slice."""
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
    text = f"{_score(row.after):.3f} ({row.change:+.3f})"
    return f"[{color}]{text}[/{color}]" if color else text


def _score(scores: pb.Scores) -> float:
    """Return the score that decides."""
    return scores.spearman if scores.HasField("spearman") else scores.ndcg10


def _metric(quality: Sequence[pb.DimQuality]) -> str:
    """Name the score that decides."""
    is_similarity = any(row.after.HasField("spearman") for row in quality)
    return "Spearman" if is_similarity else "nDCG@10"
