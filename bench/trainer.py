"""Our full training beside sentence-transformers' trainer: steps a second, memory, and the adaptor.

In: pairs of the medquad collection beside the repository. Each side trains all weights of the
packaged MiniLM on the same pairs in the same order of batches, with the same loss over six sizes
(theirs is MatryoshkaLoss over MultipleNegativesRankingLoss), arithmetic and limits, in a process of
its own; sides take turns, and medians are compared. Theirs runs as it comes; ours leaves out the
dropout of attention weights (see `services/shared/packing.py`). Then our step with six sizes beside
one, and the adaptor on 15,000 pairs of cached vectors. The last line of stdout is one JSON object.

    python -m bench.trainer [--rounds N] [--steps N] [--batch N] [--max-tokens N] [--threads N]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.report import cpu
from bench.training_sides import DATA, SIDES
from services.trainer.training.passes import best_arithmetic

ROOT = Path(__file__).parents[1]
OURS, ONE_SIZE, THEIRS, ADAPTOR = "ours", "ours, one size", "sentence-transformers", "adaptor"


def measure(name: str, options: argparse.Namespace, arithmetic: str) -> dict[str, float]:
    """Run a side once in a process of its own.

    Returns:
        seconds and cpu_seconds of the median step, peak_bytes, and pairs and tokens of a step.
    """
    asked = {
        "side": name, "steps": options.steps, "batch": options.batch, "threads": options.threads,
        "max_tokens": options.max_tokens, "arithmetic": arithmetic,
    }  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-m", "bench.training_sides", json.dumps(asked)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    if made.returncode:
        raise SystemExit(f"{name} failed:\n{made.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    return figures


def run(options: argparse.Namespace) -> None:
    arithmetic = options.arithmetic or best_arithmetic("cpu")
    names = [OURS, ONE_SIZE]
    missing = [name for name in ("accelerate", "datasets") if find_spec(name) is None]
    if missing:
        print(f"{THEIRS}: not measured: {' and '.join(missing)} not installed (the extra 'bench')")
    else:
        names.append(THEIRS)
    begin, load = time.monotonic(), os.getloadavg()[0]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*names, ADAPTOR)}
    for number in range(options.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(measure(name, options, arithmetic))
            figures = found[name][-1]
            print(
                f"round {number + 1}: {name}: {figures['seconds']:.3f} s a step, "
                f"{figures['cpu_seconds']:.3f} s of CPU", file=sys.stderr,
            )  # fmt: skip
    found[ADAPTOR].append(measure(ADAPTOR, options, "float32"))
    conditions = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": "all-MiniLM-L6-v2",
        "arithmetic": arithmetic,
        "batch": options.batch,
        "max_tokens": options.max_tokens,
        "steps": options.steps,
        "rounds": options.rounds,
        "load_average_at_start": round(load, 2),
        "load_average_at_end": round(os.getloadavg()[0], 2),
        "run_s": round(time.monotonic() - begin),
    }
    medians = {name: _medians(rounds) for name, rounds in found.items() if rounds}
    show(conditions, medians)
    print(json.dumps({"bench": "trainer", **summarise(medians), **conditions}))


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def summarise(medians: dict[str, dict[str, float]]) -> dict[str, object]:
    """Return the ratios: above 1 ours is faster; memory below 1 is less than theirs."""

    def ratio(upper: str, lower: str, key: str) -> float | None:
        if upper not in medians or lower not in medians:
            return None
        return round(medians[upper][key] / medians[lower][key], 3)

    return {
        "mrl_overhead": ratio(OURS, ONE_SIZE, "seconds"),
        "mrl_overhead_cpu": ratio(OURS, ONE_SIZE, "cpu_seconds"),
        "mrl_overhead_loss": ratio(OURS, ONE_SIZE, "loss_seconds"),
        "steps_vs_sentence_transformers": ratio(THEIRS, OURS, "seconds"),
        "steps_vs_sentence_transformers_cpu": ratio(THEIRS, OURS, "cpu_seconds"),
        "memory_vs_sentence_transformers": ratio(OURS, THEIRS, "peak_bytes"),
        "adaptor_seconds_15k": round(medians[ADAPTOR]["seconds"], 1),
        "adaptor_cpu_seconds_15k": round(medians[ADAPTOR]["cpu_seconds"], 1),
        "medians": medians,
    }


def show(conditions: dict[str, object], medians: dict[str, dict[str, float]]) -> None:
    console = Console(width=110, highlight=False)
    for name, value in conditions.items():
        console.print(f"{name.replace('_', ' '):<24}{value}")
    table = Table(title="all weights of all-MiniLM-L6-v2 on medquad's pairs")
    for title in ("side", "steps/s", "CPU s a step", "tokens a step", "peak MB"):
        table.add_column(title, justify="left" if title == "side" else "right")
    for name, figures in medians.items():
        if name != ADAPTOR:
            table.add_row(
                name, f"{1 / figures['seconds']:.3f}", f"{figures['cpu_seconds']:.3f}",
                f"{figures['tokens']:.0f}", f"{figures['peak_bytes'] / 1e6:.0f}",
            )  # fmt: skip
    console.print(table)
    adaptor = medians[ADAPTOR]
    console.print(
        f"adaptor on 15,000 pairs of cached vectors, with its trials: {adaptor['seconds']:.1f} s, "
        f"{adaptor['cpu_seconds']:.1f} s of CPU, {adaptor['peak_bytes'] / 1e6:.0f} MB"
    )
    console.print(
        "medians of rounds in turns, each of the median step; CPU seconds are of all threads, and "
        "say less of other work on the machine; tokens are those that are run, padding included"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="measured, after two others")
    parser.add_argument("--batch", type=int, default=32, help="pairs")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--arithmetic", choices=("float32", "bfloat16"), help="default: our choice")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: there is no {DATA.name} beside the repository")
        print(json.dumps({"bench": "trainer", "skipped": True}))
        return
    assert {OURS, ONE_SIZE, THEIRS, ADAPTOR} == set(SIDES)
    run(options)


if __name__ == "__main__":
    main()
