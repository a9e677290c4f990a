"""What a training changed, for people: the table of each size and its picture."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from services.shared.card import AnyScores, Quality
from services.trainer.jobs.spec import NestScores
from services.trainer.results.shortlist import SHORTLIST, TOP
from services.trainer.results.slices import SliceQuality

_BEFORE, _AFTER, _INK, _WORSE = "#8a93a3", "#0b6bcb", "#1f2733", "#b3261e"
_MOST_SLICES = 30


def markdown_table(quality: Quality) -> str:
    """Return one row a size: each score before and after."""
    names = quality.after[0].NAMES.values()
    lines = [f"| size | {' | '.join(names)} |", f"|---:|{'---|' * len(names)}"]
    for before, after in zip(quality.before, quality.after, strict=True):
        lines.append(f"| {before.dim} | {' | '.join(moves(before, after))} |")
    return "\n".join(lines) + "\n"


def moves(before: AnyScores, after: AnyScores) -> list[str]:
    """Return each score before and after, for people."""
    sides = zip(before.values.values(), after.values.values(), strict=True)
    return [f"{old:.3f} → {new:.3f}" for old, new in sides]


def plot(quality: Quality, model_id: str) -> bytes:
    """Draw the score that decides against the size, before and after; return a PNG."""
    dims = [scores.dim for scores in quality.after]
    before = [scores.score for scores in quality.before]
    after = [scores.score for scores in quality.after]
    about = f"{model_id}: {quality.counts}"
    figure, axes = _frame(dims, quality.metric, "What each size keeps", about)
    _draw_lines(axes, dims, (before, after), ("before", "after"))
    return _png(figure)


def plot_curve(steps: Sequence[int], loss: Mapping[int, Sequence[float]]) -> bytes:
    """Draw the loss at each size by step, short sizes light and long ones dark; return a PNG."""
    figure, axes = _plain_frame("step", "loss", "The loss at each size", "")
    for place, (dim, values) in enumerate(sorted(loss.items())):
        share = (place + 1) / len(loss)
        axes.plot(steps, values, color=_AFTER, alpha=0.25 + 0.75 * share, label=str(dim))
    axes.legend(frameon=False, title="numbers", loc="upper right")
    return _png(figure)


def plot_slices(slices: Sequence[SliceQuality]) -> bytes:
    """Draw each slice's worst change with its interval, in their order."""
    shown = slices[:_MOST_SLICES]
    left_out = len(slices) - len(shown)
    figure, axes = _plain_frame(
        f"change of {shown[0].metric} at the size that lost most, with 95% of it",
        "",
        "Whose queries got worse",
        f"and {left_out} more slices" if left_out else "",
        height=1.8 + 0.32 * len(shown),
    )
    for place, one in enumerate(shown):
        worst = one.worst
        color = _WORSE if worst.mean < 0 else _AFTER
        axes.plot([worst.low, worst.high], [place, place], color=color, alpha=0.4, linewidth=3)
        axes.plot([worst.mean], [place], "o", color=color, markersize=6)
    axes.set_yticks(
        range(len(shown)), [f"{one.name or '(none)'}, at {one.worst.dim}" for one in shown]
    )
    axes.invert_yaxis()
    axes.axvline(0, color=_INK, linewidth=0.8)
    return _png(figure)


def plot_nest(
    rows: Sequence[NestScores], nest_id: str, num_queries: int, num_documents: int
) -> bytes:
    """Draw what a shortlist keeps against the size, plain, on PCA's axes, nested; return a PNG."""
    dims = [row.dim for row in rows]
    plain, nested = [row.plain for row in rows], [row.nested for row in rows]
    figure, axes = _frame(
        dims,
        f"share of the exact top {TOP} in a shortlist of {SHORTLIST}",
        "What a shortlist at each size keeps",
        f"{nest_id}: {num_queries} held-out queries, {num_documents} documents",
    )
    axes.plot(dims, [row.pca for row in rows], ":", color=_BEFORE, label="PCA", linewidth=1.8)
    _draw_lines(axes, dims, (plain, nested), ("plain", "nested"))
    return _png(figure)


def _frame(dims: Sequence[int], what: str, title: str, subtitle: str) -> tuple[Figure, Axes]:
    """Return an empty picture whose x-axis has the sizes."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(dims))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(dim) for dim in dims])
    axes.set_xlabel("numbers kept of each vector", color=_INK)
    axes.set_ylabel(what, color=_INK)
    axes.margins(x=0.06, y=0.16)
    axes.grid(axis="y", color="#e3e7ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=22)
    axes.text(0, 1.025, subtitle, transform=axes.transAxes, fontsize=9, color=_BEFORE)
    return figure, axes


def _plain_frame(
    x: str, y: str, title: str, subtitle: str, height: float = 4.5
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(color="#e3e7ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=22)
    axes.text(0, 1.025, subtitle, transform=axes.transAxes, fontsize=9, color=_BEFORE)
    return figure, axes


def _draw_lines(
    axes: Axes,
    dims: Sequence[int],
    lines: tuple[Sequence[float], Sequence[float]],
    labels: tuple[str, str],
) -> None:
    """Draw what was and what is now, each value beside its point."""
    before, after = lines
    axes.plot(dims, before, "o--", color=_BEFORE, label=labels[0], linewidth=1.8, markersize=5)
    axes.plot(dims, after, "o-", color=_AFTER, label=labels[1], linewidth=2.4, markersize=6)
    axes.fill_between(dims, before, after, color=_AFTER, alpha=0.07, linewidth=0)
    for dim, low, high in zip(dims, before, after, strict=True):
        # Each label on the outer side of its line, so that the two never cross.
        above = 1 if high >= low else -1
        for value, side, color in ((high, above, _AFTER), (low, -above, _BEFORE)):
            axes.annotate(
                f"{value:.3f}".removeprefix("0"), (dim, value), (0, 9 * side),
                textcoords="offset points", ha="center", va="bottom" if side > 0 else "top",
                fontsize=9, color=color,
            )  # fmt: skip
    axes.legend(frameon=False, loc="lower right")


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
