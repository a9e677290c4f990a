"""What is wrong with a source's rows, told so that it can be read: one line for what is the same.

In: rows with their reasons, as they are found. Out: lines with file and line, the fields that are
there where one is missing, and never a user's text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROBLEMS = 20  # enough to see a pattern, short enough to read
_MISSING = " is missing"
# A CSV file without a header has texts in its place.
_NAME = re.compile(r"[\w.-]{1,40}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be read."""

    file: str
    line: int
    reason: str
    fields: tuple[str, ...]
    """Those that the row has."""

    @property
    def kind(self) -> tuple[object, ...]:
        """What rows have in common that are told of together."""
        if self.reason.endswith(_MISSING):
            return self.reason, self.fields
        return self.file, self.line


def tell(problems: Sequence[Problem], is_every_row: bool) -> list[str]:
    """Write problems, those of one kind in one line.

    Args:
        problems: in their order, at least one; of `MAX_PROBLEMS` the rows behind are not known.
        is_every_row: no row was right.
    """
    kinds: dict[tuple[object, ...], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    is_cut = len(problems) >= MAX_PROBLEMS
    if len(kinds) == 1 and is_every_row and len(problems) > 1:
        number = len(problems)
        others = f"all {number} rows so far" if is_cut else f"the {number - 1} rows after"
        return [_line(problems[0], others)]
    lines = [_line(first, _others(first, more)) for first, *more in kinds.values()]
    return [*lines, "and perhaps more"] if is_cut else lines


def _line(first: Problem, others: str) -> str:
    line = f"{first.file}:{first.line}: {first.reason}"
    if not others:
        return line
    # What several rows are called by is a name; of one row alone it might be a text.
    names = [name for name in first.fields if _NAME.fullmatch(name)]
    return f"{line}, and in {others}; their fields: {', '.join(names) or 'none with a name'}"


def _others(first: Problem, more: Sequence[Problem]) -> str:
    """Name the rows after the first; those of its own file by their lines alone."""
    places = [str(one.line) if one.file == first.file else f"{one.file}:{one.line}" for one in more]
    if not places:
        return ""
    return f"{'rows' if len(places) > 1 else 'row'} {', '.join(places)}"
