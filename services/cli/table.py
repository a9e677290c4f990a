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
