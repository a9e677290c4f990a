"""A job's report as one HTML file: no script, nothing from elsewhere, pictures inside."""

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape

from services.trainer.data.dataset import NAMES
from services.trainer.results.report import moves, plot, plot_curve, plot_slices
from services.trainer.results.slices import TELLING, SliceQuality
from services.trainer.results.summary import Summary

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2733; --soft: #667080; --line: #e3e7ee;
  --worse: #b3261e; --better: #0b6bcb; --ground: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa4b2; --line: #333b47;
  --worse: #ff8a80; --better: #7cb8ff; --ground: #14181e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.soft { color: var(--soft); } .worse { color: var(--worse); } .better { color: var(--better); }
table { border-collapse: collapse; width: 100%; } .scroll { overflow-x: auto; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } td:first-child { white-space: normal; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
"""


def write_page(summary: Summary) -> str:
    """Return the page."""
    quality = summary.quality
    title = f"{escape(summary.model_id)}"
    about = (
        f"{escape(summary.base_model)}, method {summary.hyperparameters.method}, "
        f"{summary.num_pairs:,} {NAMES[summary.kind]} of {escape(summary.data)}, trained in "
        f"{summary.train_seconds:,.0f} s; {quality.counts}"
    )
    parts = [
        f"<h1>{title}</h1><p class='soft'>{about}</p>",
        f"<p class='worse'>{escape(summary.caution)}</p>" if summary.caution else "",
        _picture(
            plot(quality, summary.model_id), f"{quality.metric} at each size, before and after"
        ),
        "<h2>Each size</h2>",
        _sizes(summary),
    ]
    if len(summary.slices) > 1:
        parts += [
            "<h2>Whose queries got worse</h2>",
            _picture(plot_slices(summary.slices), f"Change of {quality.metric} by slice"),
            _slices(summary.slices),
        ]
    counted = quality.after[0].COUNTED
    parts += [f"<h2>The {counted} that lost most</h2>", _losers(summary, counted)]
    if summary.curve.steps:
        picture = plot_curve(summary.curve.steps, summary.curve.loss)
        parts += ["<h2>Training</h2>", _picture(picture, "Loss at each size by step")]
    hyper = summary.hyperparameters.model_dump(mode="json", exclude_none=True)
    settings = {name: value for name, value in hyper.items() if value not in ("", [])}
    rows = [[escape(name), escape(json.dumps(value))] for name, value in settings.items()]
    if summary.mining:
        rows.append(["mine_negatives", escape(summary.mining.model_dump_json())])
    rows.append(["data digest", f"<code>{escape(summary.data_digest)}</code>"])
    parts += ["<h2>Settings</h2>", _table(["setting", "value"], rows)]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}"
        "</body></html>\n"
    )


def _sizes(summary: Summary) -> str:
    quality = summary.quality
    full_before, full_after = quality.before[-1].score, quality.after[-1].score
    rows = []
    for before, after, size in zip(
        quality.before, quality.after, summary.bytes_per_vector, strict=True
    ):
        decides, *others = moves(before, after)
        rows.append(
            [
                str(after.dim), decides, _change(after.score - before.score), *others,
                _kept(before.score, full_before), _kept(after.score, full_after),
                f"{size.float32:,}", f"{size.int8:,}", f"{size.binary:,}",
            ]
        )  # fmt: skip
    name, *names = quality.after[0].NAMES.values()
    head = [
        "size", name, "change", *names, "kept before", "kept after",
        "bytes, float32", "int8", "binary",
    ]  # fmt: skip
    return _table(head, rows)


def _slices(slices: Sequence[SliceQuality]) -> str:
    rows = []
    for one in slices:
        worst = one.worst
        rows.append(
            [
                escape(one.name) or "<span class='soft'>none</span>", f"{one.num_queries:,}",
                str(worst.dim), _change(worst.mean), f"{worst.low:+.3f} to {worst.high:+.3f}",
                _change(one.changes[-1].mean),
            ]
        )  # fmt: skip
    head = ["slice", "queries", "worst at", f"change of {slices[0].metric}", "95%", "at full size"]
    note = f"Slices of fewer than {TELLING} queries come last: what they lose may be chance."
    few = any(one.num_queries < TELLING for one in slices)
    return _table(head, rows) + (f"<p class='soft'>{note}</p>" if few else "")


def _losers(summary: Summary, counted: str) -> str:
    if not summary.losers:
        return f"<p>None of the held-out {counted} is worse at any size.</p>"
    rows = [
        [escape(one.query), escape(one.slice), str(one.dim), f"{one.before:.3f} → {one.after:.3f}"]
        for one in summary.losers
    ]
    metric = summary.quality.metric
    table = _table([counted, "slice", "at size", metric], rows)
    if summary.kind == "scored":
        table += f"<p class='soft'>{metric} of a pair is its part in that of all: their mean.</p>"
    return table


def _kept(score: float, full: float) -> str:
    return f"{score / full:.1%}" if full > 0 else ""


def _change(value: float) -> str:
    name = "worse" if value < -0.0005 else "better" if value > 0.0005 else "soft"
    return f"<span class='{name}'>{value:+.3f}</span>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; cells are HTML already."""
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{heads}</tr>{body}</table></div>"


def _picture(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{escape(alt)}' src='data:image/png;base64,{data}'>"
