"""`matryoshka doctor`: look, judge, say it line by line."""

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version

from rich.console import Console

from services.cli.doctor.checks import Finding, findings
from services.cli.doctor.probe import look_at
from services.cli.doctor.targets import Target
from services.shared.errors import InvalidRequest

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(targets: list[Target], timeout_s: float, is_json: bool) -> bool:
    """Look at a deployment and print what was found.

    Returns:
        Whether there is no problem; warnings are none.

    Raises:
        InvalidRequest: there is no service to look at.
    """
    if not targets:
        raise InvalidRequest("every service is none: give at least one")
    facts = asyncio.run(look_at(targets, timeout_s))
    found = findings(facts, version("matryoshka-suite"))
    counts = Counter(one.status for one in found)
    if is_json:
        print(json.dumps({"findings": [asdict(one) for one in found], "counts": counts}))
    else:
        for one in found:
            _show(one)
        print(f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok")
    return not counts["problem"]


def _show(one: Finding) -> None:
    console = Console()
    console.print(f"{one.status:8}", style=_COLOURS[one.status], end="", highlight=False)
    text = f"{one.about:8} {one.check:9} {one.text}" + (f"; {one.todo}" if one.todo else "")
    console.print(text, highlight=False, soft_wrap=True, markup=False)
