"""Tables on the terminal, in which ids stay whole: they are there to be copied."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 10_000


def show(table: Table, console: Console | None = None) -> None:
    """Print a table; where it is wider than the terminal, wider, before a column is cut.

    Columns of ids have `no_wrap`; others give way to them.
    """
    console = console or Console()
    options = console.options.update(width=_WIDEST)
    console.width = max(console.width, Measurement.get(console, options, table).minimum)
    console.print(table, crop=False)


def one_line(text: str, most: int | None = None) -> str:
    """Return the beginning of a text that somebody else wrote, fit to be shown in a table.

    Without line breaks and without what a terminal would obey.

    Args:
        text: of any kind.
        most: characters to keep; None: all.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if most is None or len(line) <= most else line[: most - 1].rstrip() + "…"
