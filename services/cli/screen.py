"""What the demo shows to people: headings, progress bars and tables."""

import statistics
from collections.abc import Iterable
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.shared.pb import router_pb2 as rt
from services.shared.pb import trainer_pb2 as tr


class Bar:
    """A progress bar that is told how far the work is."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int | None = None, what: str | None = None) -> None:
        """Show that `done` of `total` are done; what is not given stays as it was."""
        self._progress.update(self._task, completed=done, total=total, description=what)


class Screen:
    """A terminal."""

    def __init__(self) -> None:
        self._console = Console()

    def title(self, text: str) -> None:
        self._console.rule(f"[bold]{text}", align="left")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def waiting(self, text: str) -> AbstractContextManager[object]:
        return self._console.status(text)

    def progress(self, what: str, total: int) -> Bar:
        return Bar(self._console, what, total)

    def memory(self, sizes: Iterable[rt.SizeMemory]) -> None:
        """Show what a vector of each size takes."""
        sizes = list(sizes)
        full = sizes[-1].vector_bytes + sizes[-1].graph_bytes
        rows = []
        for size in sizes:
            total = size.vector_bytes + size.graph_bytes
            parts = (size.dim, size.vector_bytes, size.graph_bytes, total)
            rows.append([*map(str, parts), f"{total / full:.0%}"])
        columns = ("dimensions", "vector", "graph links", "sum", "of full")
        self._table("bytes per vector in memory", columns, rows)

    def answer(self, question: str, answer: rt.SearchResponse) -> None:
        """Show the first hits of one search, and how they were found."""
        self.say(f"[bold]{question}[/bold]  [dim]({answer.collection})[/dim]")
        for hit in answer.hits[:3]:
            name, title = hit.id, hit.text.partition("\n")[0]
            line = f"  {hit.score:.3f}  {name}  {title}"
            self._console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
        stages = ", ".join(
            f"{stage.dim} dims gave {stage.candidates} in {1e3 * stage.seconds:.2f} ms"
            for stage in answer.stages
        )
        self.say(
            f"  [dim]plan: {stages}; exact search took {1e3 * answer.exact_seconds:.2f} ms; "
            f"recall@10 against it {answer.recall:.2f}[/dim]"
        )

    def plans(self, answers: dict[str, list[rt.SearchResponse]]) -> None:
        """Show recall and time of each plan over the same queries."""
        rows = [
            [
                name,
                f"{statistics.mean(a.recall for a in found):.3f}",
                f"{min(a.recall for a in found):.1f}",
                f"{1e3 * statistics.median(a.search_seconds for a in found):.2f}",
            ]
            for name, found in answers.items()
        ]
        num_queries = len(next(iter(answers.values())))
        columns = ("plan", "recall@10", "worst query", "median ms")
        self._table(
            f"recall@10 against exact search at full size, {num_queries} queries", columns, rows
        )

    def quality(self, quality: Iterable[tr.DimQuality]) -> None:
        """Show what each size keeps, before and after training."""
        rows = [
            [
                str(row.dim),
                f"{row.before.ndcg10:.3f}",
                f"[bold]{row.after.ndcg10:.3f}[/bold]",
                f"{row.before.recall10:.3f}",
                f"{row.after.recall10:.3f}",
            ]
            for row in quality
        ]
        columns = ("dimensions", "nDCG@10 before", "after", "recall@10 before", "after")
        self._table("quality on held-out titles", columns, rows)

    def how_to_call(self, http: str, router_grpc: str) -> None:
        """Show commands that work while the services run."""
        body = '{"model": "default", "input": "nested dolls", "dimensions": 64}'
        code = (
            f"import openai; c = openai.OpenAI(base_url='{http}/v1', api_key='none'); "
            "print(c.embeddings.create(model='default', input='nested dolls', dimensions=64))"
        )
        lines = [
            "",
            "Call it yourself while it runs:",
            f"  curl {http}/v1/embeddings -H 'content-type: application/json' -d '{body}'",
            f'  .venv/bin/python -c "{code}"',
            f"  search over gRPC: {router_grpc}, matryoshka.v1.RouterService/Search",
            "",
        ]
        for line in lines:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _table(self, title: str, columns: Iterable[str], rows: Iterable[list[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
