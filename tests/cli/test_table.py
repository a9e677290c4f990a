"""Tables of the command line."""

import io

from rich.console import Console
from rich.table import Table

from services.cli.table import one_line, show

VERSION, PROMOTION = "ft:all-MiniLM-L6-v2:documents:9f2c1d3e", "promotion-" + "0" * 32


def printed(width: int) -> str:
    table = Table()
    for name in ("promotion", "version"):
        table.add_column(name, no_wrap=True)
    table.add_column("quality", overflow="fold")
    table.add_row(PROMOTION, VERSION, " ".join(f"{dim}: 0.100" for dim in range(16)))
    out = io.StringIO()
    show(table, Console(file=out, width=width))
    return out.getvalue()


def test_ids_stay_whole_on_narrow_terminals():
    """Each in one line, wherever it is to be copied from; other columns give way."""
    for width in (40, 80, 300):
        lines = printed(width).splitlines()
        assert any(PROMOTION in line and VERSION in line for line in lines)
    assert len(printed(300).splitlines()) < len(printed(80).splitlines())


def test_a_text_becomes_one_line():
    """Of what was written elsewhere: no line breaks, no orders to the terminal, not too long."""
    assert one_line("a\r\nb\t\x1b[31m c\u2028d\x00") == "a b [31m c d"
    assert one_line("four", 4) == "four"
    assert one_line("four five", 6) == "four…"
