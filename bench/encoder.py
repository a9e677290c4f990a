"""Ours beside its peers on a CPU: texts encoded a second, on the same real texts, in one run.

Every peer runs in an environment and a process of its own, at the settings that a trial found to be
its fastest; rounds take turns between all of them, so that a noisy machine disturbs all alike. Then
our service is loaded by 64 clients over both wires, and static models are compared. A peer that
cannot run keeps its row, with the reason. The last line of stdout is one JSON object.

    python -m bench.encoder [--quick] [--rounds N] [--only NAME,NAME]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from bench import report
from bench.served import ServedFailed, Server
from bench.static import StaticResult, compare_static
from bench.texts import TextSets, collect
from bench.tokens import Counted, count
from bench.workers import BUILD, ROOT, PeerFailed, Worker
from services.shared.folder import BASE_MODEL, locate

MAX_TOKENS = 256
CLIENTS = 64
ORACLE = "sentence-transformers fp32"
OURS = "ours: engine"
# Peers are compared at equal fidelity: int8 that bends the vectors is another product.
MIN_COSINE = 0.999
# What OpenMP's threads may do while they wait: our service fixes it, for others both are tried.
ASLEEP, BOTH, OWN_THREADS = ("PASSIVE",), ("PASSIVE", ""), ("",)
# {row: (environment, module, variant, policies)}
ENGINES = {
    OURS: ("", "ours", "", ASLEEP),
    ORACLE: ("sentence-transformers", "sbert", "float32", BOTH),
    "sentence-transformers bf16": ("sentence-transformers", "sbert", "bfloat16", BOTH),
    "sentence-transformers OpenVINO": ("openvino", "sbert", "openvino", OWN_THREADS),
    "sentence-transformers OpenVINO qint8": ("openvino", "sbert", "openvino-qint8", OWN_THREADS),
    "sentence-transformers ONNX O2": ("onnx", "sbert", "onnx", OWN_THREADS),
    "sentence-transformers ONNX qint8": ("onnx", "sbert", "onnx-qint8", OWN_THREADS),
    "OpenVINO bf16": ("openvino", "openvino_loop", "bf16", OWN_THREADS),
    "OpenVINO int8": ("openvino", "openvino_loop", "int8", OWN_THREADS),
    "Infinity torch": ("infinity", "infinity", "torch", BOTH),
    "Infinity ONNX": ("infinity", "infinity", "optimum", OWN_THREADS),
}
GRPC, HTTP = f"ours: gRPC {CLIENTS} clients", f"ours: HTTP {CLIENTS} clients"
WIRES = {GRPC: "grpc", HTTP: "http"}


@dataclass
class Row:
    """What was measured of one engine or wire.

    Args:
        seconds: of each round, for each kind of texts.
        cosines: to the oracle, of every text.
        failure: why there is nothing more, else empty.
        latency: of a wire at half of its rate, for each kind of texts.
    """

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"short": [], "long": []})
    cosines: np.ndarray | None = None
    settings: str = ""
    arithmetic: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    failure: str = ""
    latency: dict[str, dict[str, float]] = field(default_factory=dict)

    def median_s(self, kind: str) -> float:
        """Return the median round, seconds; "pooled" adds both kinds of one round."""
        if kind == "pooled":
            both = zip(self.seconds["short"], self.seconds["long"], strict=True)
            return statistics.median(a + b for a, b in both)
        return statistics.median(self.seconds[kind])

    @property
    def is_measured(self) -> bool:
        return not self.failure and bool(self.seconds["long"])

    @property
    def min_cosine(self) -> float:
        return float(self.cosines.min()) if self.cosines is not None else 0.0


def say(text: str) -> None:
    Console(stderr=True, highlight=False).print(
        f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True
    )


class Bench:
    """One run: its texts, its processes and its rows."""

    def __init__(self, texts: TextSets, sample: list[str], names: list[str]) -> None:
        self.folder = BUILD / "run"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.texts = {"short": texts.short, "long": texts.long}
        self.model = locate(BASE_MODEL)
        for kind, listed in {**self.texts, "sample": sample}.items():
            self.path(kind).write_text(json.dumps(listed))
        self.rows = {name: Row(name) for name in names}
        self.workers = {
            name: Worker(
                name,
                *ENGINES[name][:3],
                self.model,
                self.path("sample"),
                MAX_TOKENS,
                ENGINES[name][3],
            )
            for name in names
            if name in ENGINES
        }

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}.json"

    def vectors(self, name: str, kind: str) -> Path:
        return self.folder / f"{name.replace(': ', ' ').replace(' ', '-')}-{kind}.npy"

    def start_workers(self) -> None:
        for name, worker in self.workers.items():
            row = self.rows[name]
            try:
                worker.start()
            except PeerFailed as error:
                row.failure = str(error)
                worker.end()
                say(f"{name}: not measured: {error}")
                continue
            row.settings, row.arithmetic = worker.settings, worker.arithmetic
            row.versions = worker.versions
            say(f"{name}: {worker.settings}")

    def round(self, number: int, server: Server) -> None:
        """Let every engine and wire encode all texts once; the order turns with each round."""
        names = [name for name, row in self.rows.items() if not row.failure]
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            row = self.rows[name]
            try:
                for kind in self.texts:
                    vectors = self.vectors(name, kind) if number == 0 else None
                    row.seconds[kind].append(self._once(name, kind, server, vectors))
            except (PeerFailed, ServedFailed) as error:
                row.failure = str(error)
                say(f"{name}: not measured: {error}")
                continue
            say(f"round {number + 1}: {name}: {row.seconds['short'][-1]:.2f} + "
                f"{row.seconds['long'][-1]:.2f} s")  # fmt: skip

    def _once(self, name: str, kind: str, server: Server, vectors: Path | None) -> float:
        if name in WIRES:
            return server.load(WIRES[name], self.path(kind), CLIENTS, vectors=vectors).seconds
        return self.workers[name].encode(self.path(kind), vectors)

    def measure_latency(self, server: Server) -> None:
        """At half of the rate that was reached: how long a request takes."""
        for name, wire in WIRES.items():
            row = self.rows.get(name)
            if row is None or not row.is_measured:
                continue
            for kind, texts in self.texts.items():
                rate = 0.5 * len(texts) / row.median_s(kind)
                loaded = server.load(wire, self.path(kind), CLIENTS, rate=rate)
                row.latency[kind] = {
                    "requests_per_s": round(rate, 1),
                    "p50_ms": round(loaded.p50_ms, 1),
                    "p99_ms": round(loaded.p99_ms, 1),
                }

    def compare_vectors(self) -> None:
        if not self.rows[ORACLE].is_measured:
            return
        oracle = self._unit_vectors(ORACLE)
        for name, row in self.rows.items():
            if row.is_measured:
                row.cosines = (self._unit_vectors(name) * oracle).sum(1)
            if name in self.workers:
                row.peak_bytes = self.workers[name].peak_bytes

    def _unit_vectors(self, name: str) -> np.ndarray:
        vectors = np.concatenate([np.load(self.vectors(name, kind)) for kind in self.texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()


def measure_gemm(seconds: float) -> dict[str, float]:
    """Measure the peak of matrix multiplication in a process of its own, GFLOP/s."""
    made = subprocess.run(
        [sys.executable, "-m", "bench.gemm", str(seconds)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    return peaks


def run(options: argparse.Namespace) -> None:
    num_short, num_long, rounds = (96, 24, 2) if options.quick else (3000, 600, 3)
    rounds = options.rounds or rounds
    num_sample = (32, 8) if options.quick else (160, 40)
    drawn = collect(num_short + num_sample[0], num_long + num_sample[1])
    texts = TextSets(drawn.source, drawn.short[num_sample[0] :], drawn.long[num_sample[1] :])
    sample = drawn.short[: num_sample[0]] + drawn.long[: num_sample[1]]
    wanted = options.only.split(",") if options.only else [*ENGINES, *WIRES]
    names = [name for name in (*ENGINES, *WIRES) if name in {*wanted, OURS, ORACLE}]
    load_average = os.getloadavg()[0]
    begin = time.monotonic()
    bench = Bench(texts, sample, names)
    counted = {kind: count(bench.model, part, MAX_TOKENS) for kind, part in bench.texts.items()}
    gemm: dict[str, float] = {}
    try:
        bench.start_workers()
        with Server(bench.model) as server:
            server.load("http", bench.path("sample"), CLIENTS)
            for number in range(rounds):
                bench.round(number, server)
                # With each round, so that the peak too is seen in the machine's quiet moments.
                for name, reached in measure_gemm(0.2 if options.quick else 0.7).items():
                    gemm[name] = max(gemm.get(name, 0.0), reached)
            bench.measure_latency(server)
            for name in WIRES:
                if name in bench.rows:
                    bench.rows[name].peak_bytes = server.peak_bytes()
        bench.compare_vectors()
    finally:
        bench.end()
    static = compare_static(bench.texts, bench.path("sample"), bench.model, rounds, say)
    conclude(bench, texts, counted, gemm, static, rounds, load_average, time.monotonic() - begin)


def conclude(
    bench: Bench,
    texts: TextSets,
    counted: dict[str, Counted],
    gemm: dict[str, float],
    static: StaticResult,
    rounds: int,
    load_average: float,
    seconds: float,
) -> None:
    conditions = report.conditions(texts, counted, rounds, load_average, seconds)
    summary = report.summarise(
        bench.rows, counted, gemm, static, ours=OURS, oracle=ORACLE, http=HTTP, grpc=GRPC,
        min_cosine=MIN_COSINE,
    )  # fmt: skip
    report.show(conditions, bench.rows, counted, gemm, static, ORACLE, MIN_COSINE)
    print(json.dumps({"bench": "encoder", **summary, **conditions}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few texts: does everything run?")
    parser.add_argument("--rounds", type=int, help="rounds of all engines; 3 by default")
    parser.add_argument("--only", help="rows to measure, by name; ours and the oracle always are")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
