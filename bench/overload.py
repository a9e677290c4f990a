"""What the encoder does when it is asked for more than it can do.

    python -m bench.overload [--seconds 15] [--texts 8] [--model ID]

A real server with the default model over HTTP on loopback. First its capacity, closed-loop (a few
callers that each wait for their answer); then open-loop, requests at random times whatever the
answers, at 0.5, 1, 2 and 4 times that capacity. An answer counts as useful within the callers'
time-out. The load comes from a process of its own that shares the machine's processors with the
server; it writes requests that were built beforehand and reads no more than a status and a
length, so that it takes little of them. The last line is one JSON object.
"""

import argparse
import asyncio
import datetime
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from bench.report import cpu

TIMEOUT_S = 10.0
CALLERS = 16
LOADS = (0.5, 1.0, 2.0, 4.0)
WORDS = (Path(__file__).parents[1] / "README.md").read_text().split()
WORDS_PER_TEXT = 24


# The load, in its own process.


class Caller(asyncio.Protocol):
    """One keep-alive connection: writes a request, tells how it was answered."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.started = 0.0
        self.received = bytearray()
        self.wanted = -1
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, request: bytes, started: float) -> None:
        self.started, self.wanted = started, -1
        self.received.clear()
        self.timer = self.load.loop.call_later(TIMEOUT_S, self.give_up)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.wanted < 0:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = re.search(rb"(?i)content-length: (\d+)", self.received[:end])
            self.wanted = end + 4 + int(length[1] if length else 0)
        if len(self.received) >= self.wanted:
            self.finish(int(self.received[9:12]))

    def give_up(self) -> None:
        self.transport.abort()
        self.finish(0)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.started:
            self.finish(-1)

    def finish(self, status: int) -> None:
        if self.timer:
            self.timer.cancel()
        started, self.started = self.started, 0.0
        self.load.note(self, status, started)


class Load:
    """Sends requests and notes (status, seconds, when) of each; 0: too late, -1: broken."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.loop = asyncio.get_running_loop()
        self.port = port
        self.requests = requests
        self.idle: deque[Caller] = deque()
        self.noted: list[tuple[int, float, float]] = []
        self.in_flight = 0
        self.again_until = 0.0

    def note(self, caller: Caller, status: int, started: float) -> None:
        now = time.perf_counter()
        self.noted.append((status, now - started, now))
        self.in_flight -= 1
        if status > 0 and not caller.transport.is_closing():
            if now < self.again_until:
                self.send(caller)
            else:
                self.idle.append(caller)

    def send(self, caller: Caller) -> None:
        self.in_flight += 1
        caller.ask(random.choice(self.requests), time.perf_counter())

    async def connect(self) -> Caller:
        _, caller = await self.loop.create_connection(lambda: Caller(self), "127.0.0.1", self.port)
        return caller

    async def dispatch(self) -> None:
        while self.idle:
            caller = self.idle.pop()
            if not caller.transport.is_closing():
                return self.send(caller)
        self.send(await self.connect())

    async def closed(self, seconds: float) -> None:
        self.again_until = time.perf_counter() + seconds
        for _ in range(CALLERS):
            self.send(await self.connect())
        await self.settle(seconds + TIMEOUT_S)

    async def open(self, rate: float, seconds: float) -> None:
        self.again_until = 0.0
        tasks: set[asyncio.Task[None]] = set()
        start = due = time.perf_counter()
        while due < start + seconds:
            due += random.expovariate(rate)
            # Late sends are sent at once: what is offered stays what was said.
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(self.dispatch())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await self.settle(TIMEOUT_S)

    async def settle(self, seconds: float) -> None:
        end = time.perf_counter() + seconds + 1
        while self.in_flight and time.perf_counter() < end:  # noqa: ASYNC110 (once, at the end)
            await asyncio.sleep(0.05)


async def client(order: dict) -> dict:
    """Run one phase; return its figures."""
    random.seed(order["seed"])
    load = Load(order["port"], [build(order) for _ in range(64)])
    start = time.perf_counter()
    if order["rate"]:
        await load.open(order["rate"], order["seconds"])
    else:
        await load.closed(order["seconds"])
    end = start + order["seconds"]
    in_time = [seconds for status, seconds, when in load.noted if status == 200 and when <= end]
    refused = [seconds for status, seconds, _ in load.noted if status == 429]
    other = sorted({status for status, _, _ in load.noted} - {200, 429, 0})
    return {
        "useful_per_s": len(in_time) / order["seconds"],
        "refused_per_s": len(refused) / order["seconds"],
        "late": sum(status == 0 for status, _, _ in load.noted),
        "other": other,
        "p50_ms": 1000 * quantile(in_time, 0.5),
        "p99_ms": 1000 * quantile(in_time, 0.99),
        "refusal_p50_ms": 1000 * quantile(refused, 0.5),
        "refusal_p99_ms": 1000 * quantile(refused, 0.99),
        "client_cpu": time.process_time() / (time.perf_counter() - start),
    }


def build(order: dict) -> bytes:
    texts = [" ".join(random.choices(WORDS, k=WORDS_PER_TEXT)) for _ in range(order["texts"])]
    body = json.dumps({"model": "default", "input": texts, "encoding_format": "base64"}).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def quantile(values: list[float], share: float) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


# The server and the table.


def start_server(folder: Path, model: str | None) -> tuple[subprocess.Popen[bytes], int]:
    log_path = folder / "server.log"
    command = [sys.executable, "-m", "services.cli.main", "serve", "encoder"]
    command += ["--http-port", "0", "--grpc-port", "0", "--data", str(folder / "data")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MATRYOSHKA_ENCODER_CACHE_BYTES": "0"}
    if model:
        environment["MATRYOSHKA_ENCODER_MODEL"] = model
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    while True:
        text = log_path.read_text()
        if match := re.search(r"is ready at http://[^:]+:(\d+)", text):
            return server, int(match[1])
        if server.poll() is not None:
            raise SystemExit(f"the server did not start:\n{text}")
        time.sleep(0.1)


def run_phase(port: int, rate: float, seconds: float, texts: int) -> dict:
    order = {"port": port, "rate": rate, "seconds": seconds, "texts": texts, "seed": int(rate * 7)}
    done = subprocess.run(
        [sys.executable, "-m", "bench.overload", "--client"],
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + 3 * TIMEOUT_S,
    )
    return json.loads(done.stdout)


def resident_mb(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each phase")
    parser.add_argument("--texts", type=int, default=8, help="texts in each request")
    parser.add_argument("--model", help="a model folder or hub id")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(client(json.load(sys.stdin)))))
        return
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    conditions = {"date": today, "cpu": cpu(), "seconds": options.seconds, "texts": options.texts}
    print(
        f"HTTP on loopback, {options.texts} texts of {WORDS_PER_TEXT} words a request, time-out "
        f"{TIMEOUT_S:g} s, {options.seconds:g} s a phase; no cache; the load's own process shares "
        f"{os.cpu_count()} processors with the server; {conditions['date']}, {conditions['cpu']}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        server, port = start_server(Path(folder), options.model)
        try:
            report = measure(server.pid, port, options)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)
    print(json.dumps(report | conditions))


def measure(pid: int, port: int, options: argparse.Namespace) -> dict:
    run_phase(port, 0, 5, options.texts)  # the pace is learned, memory is as it will be
    memory_mb = resident_mb(pid)
    titles = ("load", "offered/s", "useful/s", "refused/s", "late", "p50 ms", "p99 ms",
              "refusal p99 ms", "load's CPU", "server MB")  # fmt: skip
    print(" ".join(f"{title:>14}" for title in titles))
    phases = {}
    for load in (0.0, *LOADS):
        rate = load * phases[0.0]["useful_per_s"] if load else 0.0
        found = phases[load] = run_phase(port, rate, options.seconds, options.texts)
        row = (f"{load:g}x" if load else "closed", f"{rate:.1f}" if load else f"{CALLERS} callers",
               f"{found['useful_per_s']:.1f}", f"{found['refused_per_s']:.1f}", found["late"],
               f"{found['p50_ms']:.0f}", f"{found['p99_ms']:.0f}", f"{found['refusal_p99_ms']:.1f}",
               f"{found['client_cpu']:.2f}", f"{resident_mb(pid):.0f}")  # fmt: skip
        print(" ".join(f"{value:>14}" for value in row), flush=True)
        if found["other"]:
            print(f"answers other than 200 and 429: {found['other']}")
    peak = max(found["useful_per_s"] for found in phases.values())
    worst = phases[4.0]
    return {
        "bench": "overload",
        "capacity_requests_per_s": round(phases[0.0]["useful_per_s"], 1),
        "peak_useful_per_s": round(peak, 1),
        "useful_share_at_4x": round(worst["useful_per_s"] / peak, 3),
        "refusal_p99_ms": round(worst["refusal_p99_ms"], 1),
        "half_load_p50_ms": round(phases[0.5]["p50_ms"], 1),
        "half_load_p99_ms": round(phases[0.5]["p99_ms"], 1),
        "late_at_4x": worst["late"],
        "memory_growth_mb": round(resident_mb(pid) - memory_mb, 1),
    }


if __name__ == "__main__":
    main()
