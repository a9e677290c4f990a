"""A picture of a calibration: recall with its bounds against time and memory, the choice marked."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from services.router.recall.calibration import Calibration, Objective, PlanRow
from services.router.sizes import label

_INCHES = (11.0, 4.6)
_DPI = 130
_COLOURS = ("#2a6f97", "#e07a1f", "#588157", "#8d5a97", "#b5483a", "#52796f")


def plot(calibration: Calibration, name: str) -> bytes:
    """Return a PNG; `name` is the collection's."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, calibration, "latency")
    _draw(right, calibration, "memory")
    left.set_xlabel("time in the engine, median [ms]")
    left.set_ylabel(f"recall@{calibration.limit} that is lost")
    right.set_xlabel("bytes in memory per point")
    for axes in (left, right):
        axes.legend(loc="lower left", fontsize=8, frameon=False)
    asked = {
        "given": "queries given",
        "recent": "recent searches",
        "documents": "documents in place of queries",
    }[calibration.source]
    figure.suptitle(
        f"{name}: {calibration.num_points:,} points, {calibration.num_queries:,} {asked}; "
        f"bars: lower bounds at {calibration.confidence:.0%}",
        fontsize=10,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _draw(axes: Axes, calibration: Calibration, objective: Objective) -> None:
    floor = 1 / (4 * max(1, calibration.num_queries))
    exact, *others = calibration.plans
    rows = [row for row in others if objective in row.recalls[""].promised]
    # The same colours on both sides.
    kinds = sorted({_kind(row) for row in others}, key=lambda kind: (len(kind), kind))
    for number, kind in enumerate(kinds):
        mine = [row for row in rows if _kind(row) == kind]
        if not mine:
            continue
        lost = [max(floor, 1 - row.recalls[""].mean) for row in mine]
        sure = [max(floor, 1 - row.recalls[""].bound) for row in mine]
        axes.errorbar(
            [_cost(row, objective) for row in mine], lost,
            yerr=([0.0] * len(mine), [max(0.0, b - a) for a, b in zip(lost, sure, strict=True)]),
            fmt="o", markersize=4, elinewidth=1, label=kind, color=_COLOURS[number % len(_COLOURS)],
        )  # fmt: skip
    axes.axvline(_cost(exact, objective), color="grey", linestyle=":", label="exact search")
    axes.axhline(1 - calibration.target, color="black", linewidth=0.8, linestyle="--")
    choice = calibration.choose(calibration.target, objective=objective)
    if choice.row is not exact:
        lost_by_choice = max(floor, 1 - choice.row.recalls[""].mean)
        cost = _cost(choice.row, objective)
        axes.plot(cost, lost_by_choice, "o", markersize=13, fillstyle="none", color="black")
        axes.annotate(
            f"for {calibration.target:g}", (cost, lost_by_choice), (9, 7),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, pattern in ((axes.xaxis, "{x:g}"), (axes.yaxis, "{x:.1%}")):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter(pattern))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="both", alpha=0.2)


def _cost(row: PlanRow, objective: Objective) -> float:
    return row.seconds_p50 * 1000 if objective == "latency" else float(row.memory_bytes)


def _kind(row: PlanRow) -> str:
    return " > ".join(label((stage.dim, stage.is_nested)) for stage in row.stages)
