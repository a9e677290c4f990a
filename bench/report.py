"""The encoder bench's table, its conditions and its one line of figures."""

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.static import DIM, TEXTS_PER_REQUEST, StaticResult
from bench.texts import TextSets
from bench.tokens import Counted

_KINDS = ("short", "long")


class Row(Protocol):
    """What is shown of one engine; `bench.encoder.Row` says what each part is."""

    name: str
    settings: str
    arithmetic: str
    versions: dict[str, str]
    peak_bytes: int
    failure: str
    latency: dict[str, dict[str, float]]
    cosines: np.ndarray | None

    def median_s(self, kind: str) -> float:
        """Return the median round, seconds."""

    @property
    def is_measured(self) -> bool: ...

    @property
    def min_cosine(self) -> float: ...


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    has = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(has) or 'no AVX'})"


def conditions(
    texts: TextSets,
    counted: Mapping[str, Counted],
    rounds: int,
    load_average: float,
    seconds: float,
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average_at_start": round(load_average, 2),
        "rounds": rounds,
        "run_s": round(seconds),
        "texts": texts.source,
        **{
            kind: f"{c.texts} texts, {c.tokens} tokens, median {c.median}, longest {c.longest}"
            for kind, c in counted.items()
        },
    }


def _texts_per_s(row: Row, kind: str, counted: Mapping[str, Counted]) -> float:
    number = sum(counted[k].texts for k in (_KINDS if kind == "pooled" else (kind,)))
    return number / row.median_s(kind)


def _tokens(counted: Mapping[str, Counted]) -> int:
    return sum(c.tokens for c in counted.values())


def _gemm_share(
    row: Row, counted: Mapping[str, Counted], gemm: Mapping[str, float]
) -> float | None:
    """Return which part of the peak in the row's own arithmetic reaches its useful work."""
    if row.arithmetic not in gemm:
        return None
    flops = sum(c.flops for c in counted.values())
    return flops / row.median_s("pooled") / 1e9 / gemm[row.arithmetic]


def summarise(
    rows: Mapping[str, Row],
    counted: Mapping[str, Counted],
    gemm: Mapping[str, float],
    static: StaticResult,
    *,
    ours: str,
    oracle: str,
    http: str,
    grpc: str,
    min_cosine: float,
) -> dict[str, Any]:
    """Put the figures that a reader compares first; what was not measured is null."""

    def times(upper: Row | None, lower: Row | None) -> float | None:
        if not (upper and lower and upper.is_measured and lower.is_measured):
            return None
        return round(lower.median_s("pooled") / upper.median_s("pooled"), 3)

    peers = [
        row
        for name, row in rows.items()
        if not name.startswith("ours") and row.is_measured and row.min_cosine >= min_cosine
    ]
    fastest = min(peers, key=lambda row: row.median_s("pooled"), default=None)
    own = rows[ours]
    share = _gemm_share(own, counted, gemm) if own.is_measured else None
    return {
        "vs_sentence_transformers": times(own, rows[oracle]),
        "vs_fastest_peer": times(own, fastest),
        "fastest_peer": fastest.name if fastest else None,
        "min_cosine": round(own.min_cosine, 6) if own.is_measured else None,
        "gemm_peak_share": round(share, 3) if share is not None else None,
        "gemm_peak_of": own.arithmetic,
        "http_over_engine": times(rows.get(http), own),
        "grpc_over_engine": times(rows.get(grpc), own),
        "static_vs_sentence_transformers": (
            None if static.failure else round(static.ours / static.theirs, 3)
        ),
        "gemm_gflops": gemm,
        "texts_per_s": {
            name: {kind: round(_texts_per_s(row, kind, counted), 1) for kind in (*_KINDS, "pooled")}
            for name, row in rows.items()
            if row.is_measured
        },
        "latency_at_half_load": {name: row.latency for name, row in rows.items() if row.latency},
        "not_measured": {name: row.failure for name, row in rows.items() if row.failure},
    }


def show(
    conditions: Mapping[str, Any],
    rows: Mapping[str, Row],
    counted: Mapping[str, Counted],
    gemm: Mapping[str, float],
    static: StaticResult,
    oracle: str,
    min_cosine: float,
) -> None:
    """Print conditions, table and notes to stdout."""
    console = Console(width=150, highlight=False)
    for name, value in conditions.items():
        console.print(f"{name.replace('_', ' '):<22}{value}")
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in gemm.items())
    console.print(f"{'matrix-multiply peak':<22}{peaks} GFLOP/s (the best call in this run)")
    console.print(_table(rows, counted, gemm, rows[oracle]))
    console.print(
        "texts/s and tokens/s: medians of the rounds, both kinds pooled where not said; "
        f"x: times {oracle}; MB: most resident memory while encoding; share: useful arithmetic "
        "over the matrix-multiply peak of the row's own arithmetic; a peer of equal fidelity has "
        f"a smallest cosine of {min_cosine} or more"
    )
    for row in rows.values():
        if row.failure:
            console.print(f"{row.name}: not measured: {row.failure}", markup=False)
        for kind, waits in row.latency.items():
            console.print(
                f"{row.name}, {kind} at half of that rate ({waits['requests_per_s']:.0f}/s): "
                f"p50 {waits['p50_ms']:.1f} ms, p99 {waits['p99_ms']:.1f} ms"
            )
    if static.failure:
        console.print(f"static models: not measured: {static.failure}")
    else:
        console.print(
            f"static model (random table, {DIM} numbers a token): ours over gRPC, "
            f"{static.clients} clients, {TEXTS_PER_REQUEST} texts a request: {static.ours:.0f} "
            f"texts/s; sentence-transformers called directly ({static.settings}): "
            f"{static.theirs:.0f} texts/s; smallest cosine {static.min_cosine:.6f}"
        )
    for row in rows.values():
        if row.versions:
            listed = ", ".join(f"{name} {version}" for name, version in row.versions.items())
            console.print(f"{row.name}: {row.settings}; {listed}")


def _table(
    rows: Mapping[str, Row], counted: Mapping[str, Counted], gemm: Mapping[str, float], oracle: Row
) -> Table:
    table = Table(title="all-MiniLM-L6-v2, texts/s")
    table.add_column("engine")
    for name in ("short", "long", "pooled", "tokens/s", "x", "min cos", "mean cos", "MB", "share"):
        table.add_column(name, justify="right")
    for row in rows.values():
        if not row.is_measured:
            table.add_row(row.name, "", "", "not measured")
            continue
        share = _gemm_share(row, counted, gemm)
        times = oracle.median_s("pooled") / row.median_s("pooled") if oracle.is_measured else 0
        cosines = row.cosines if row.cosines is not None else np.zeros(1)
        table.add_row(
            row.name,
            *(f"{_texts_per_s(row, kind, counted):.0f}" for kind in (*_KINDS, "pooled")),
            f"{_tokens(counted) / row.median_s('pooled'):.0f}",
            f"{times:.2f}",
            f"{cosines.min():.5f}",
            f"{cosines.mean():.5f}",
            f"{row.peak_bytes / 1e6:.0f}" if row.peak_bytes else "",
            f"{share:.0%} of {row.arithmetic}" if share is not None else "",
        )
    return table
