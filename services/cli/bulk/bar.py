"""What a run shows while it goes on, and what it counts.

The figures beside the bar are this run's; the bar itself counts what earlier runs did, too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from services.cli.bulk.batches import Advance
from services.cli.bulk.check import SHOWN
from services.cli.bulk.sources import Problem


@dataclass(slots=True)
class Totals:
    """What this run has done."""

    documents: int = 0
    truncated: int = 0
    skipped: int = 0
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0
    """Until the last acknowledgement."""
    settle_s: float = 0.0
    """Then, until the router had indexed what was written."""

    def note(self, advances: Sequence[Advance], truncated: int) -> None:
        """Count what was acknowledged."""
        self.documents += sum(advance.documents for advance in advances)
        self.skipped += sum(advance.skipped for advance in advances)
        self.truncated += truncated

    def keep(self, problem: Problem) -> None:
        """Keep a row that is skipped, to be shown, if it is one of the first."""
        if len(self.problems) < SHOWN:
            self.problems.append(problem)


def say(console: Console, text: str) -> None:
    """Print a sentence as it is."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class Bar:
    """A progress bar with what is worth knowing beside it."""

    def __init__(self, console: Console, what: str, total: int | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), console=console, transient=True,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task(what, total=total, note="")
        self._before = 0
        self._started_s = time.monotonic()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, documents: int) -> None:
        """Show what earlier runs have done."""
        self._before = documents
        self._progress.update(self._task, completed=documents)

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def update(self, totals: Totals) -> None:
        rate = totals.documents / max(time.monotonic() - self._started_s, 1e-9)
        note = f"{rate:,.0f}/s, {totals.truncated:,} truncated, {totals.skipped:,} skipped"
        self._progress.update(self._task, completed=self._before + totals.documents, note=note)

    def waiting(self, why: str, wait_s: float) -> None:
        """Show that nothing goes on, and why."""
        say(self._progress.console, f"trying again in {wait_s:.0f} s: {why}")
