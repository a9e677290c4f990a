"""The router's own time: a search by vector through gRPC, less the engine's time in it.

A real server (`matryoshka up`) on loopback, and this process its only caller, one search at a
time. Beside it the same caller asks the same server for its health, which passes nothing of ours:
what is left then is gRPC's own, in both processes. Rounds of searches and of these take turns,
and medians of rounds are shown. With --beside, the server of another checkout takes turns with
this one, which is how a change is measured on a machine that does other work too. The last line
of stdout is one JSON object.

    python -m bench.overhead [--rounds N] [--beside CHECKOUT]
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.nest import make_vectors
from bench.report import cpu
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.vectors import Array, pack

POINTS, FULL, SHORT = 20_000, 384, 96
_READY = re.compile(r"^matryoshka is ready at .*\(gRPC at (\S+)\)$", re.MULTILINE)
_START_TIMEOUT_S = 120
_SEARCHES, _HEALTH = 100, 30
_WARM_ROUNDS = 3
# Nothing is encoded, so nothing need be measured for it at the start.
_SETTINGS = {"MATRYOSHKA_ENCODER_PRECISION": "float32"}
_KINDS = ("search", "engine", "own", "health")


@dataclass
class Server:
    """The server of a checkout, its collection, and the medians of its rounds, in seconds."""

    checkout: Path
    folder: Path
    popen: subprocess.Popen[bytes] | None = None
    medians: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})

    def start(self) -> None:
        log = self.folder / "log"
        self.folder.mkdir()
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                [
                    sys.executable, "-m", "services.cli.main", "up", "--port", "0",
                    "--grpc-port", "0", "--data", str(self.folder / "data"),
                ],
                cwd=self.checkout,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONPATH": str(self.checkout), **_SETTINGS},
            )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (match := _READY.search(log.read_text(errors="replace"))):
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.checkout} did not get ready:\n{log.read_text()}")
            time.sleep(0.1)
        self.address = match[1]

    def stop(self) -> None:
        if self.popen is not None:
            self.popen.terminate()
            self.popen.wait(timeout=30)

    async def fill(self, vectors_ND: Array) -> None:
        """Connect, and make a collection."""
        self.channel = grpc.aio.insecure_channel(self.address)
        self.router = pb_grpc.RouterServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        size = pb.Size(dim=SHORT, quantization=pb.QUANTIZATION_TURBO4)
        made = await self.router.CreateCollection(
            pb.CreateCollectionRequest(name="bench", model="default", sizes=[size])
        )
        self.space = made.collection.space_id

        async def batches() -> AsyncIterator[pb.UpsertRequest]:
            for begin in range(0, len(vectors_ND), 1000):
                some = vectors_ND[begin : begin + 1000]
                points = [pb.Point(id=str(begin + n)) for n in range(len(some))]
                yield pb.UpsertRequest(
                    collection="bench", points=points, vectors=pack(some), space_id=self.space
                )

        async for _ in self.router.Upsert(batches()):
            pass

    async def round(self, queries_QD: Array) -> None:
        seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        for query_D in queries_QD:
            request = pb.SearchRequest(
                collection="bench", vector=pack(query_D), space_id=self.space
            )
            begin_s = time.perf_counter()
            answer = await self.router.Search(request)
            took_s = time.perf_counter() - begin_s
            seconds["search"].append(took_s)
            seconds["engine"].append(answer.search_seconds)
            seconds["own"].append(took_s - answer.search_seconds)
        for _ in range(_HEALTH):
            begin_s = time.perf_counter()
            await self.health.Check(health_pb2.HealthCheckRequest())
            seconds["health"].append(time.perf_counter() - begin_s)
        for kind, some in seconds.items():
            self.medians[kind].append(float(np.median(some)))

    def median_us(self, kind: str) -> int:
        return round(float(np.median(self.medians[kind][_WARM_ROUNDS:])) * 1e6)


async def run(checkouts: list[Path], rounds: int) -> None:
    vectors_ND = make_vectors(POINTS + 1000, FULL)
    documents_ND, queries_QD = vectors_ND[:POINTS], vectors_ND[POINTS:]
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as folder:
        servers = [Server(path, Path(folder) / str(n)) for n, path in enumerate(checkouts)]
        try:
            for server in servers:
                server.start()
                await server.fill(documents_ND)
            for number in range(_WARM_ROUNDS + rounds):
                begin = number * _SEARCHES % len(queries_QD)
                # Who goes first takes turns too.
                for server in servers if number % 2 else reversed(servers):
                    await server.round(queries_QD[begin : begin + _SEARCHES])
            for server in servers:
                await server.channel.close(grace=None)
        finally:
            for server in servers:
                server.stop()
    show(servers)


def show(servers: list[Server]) -> None:
    print(
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, load "
        f"{os.getloadavg()[0]:.1f}; {POINTS:,} points of {FULL} numbers, shortlists of 100 at "
        f"{SHORT}; medians of {len(servers[0].medians['own']) - _WARM_ROUNDS} rounds, us\n"
    )
    print("| checkout | search | engine | the router's own | of which gRPC's (health) |")
    print("|---|---|---|---|---|")
    for number, server in enumerate(servers):
        row = " | ".join(str(server.median_us(kind)) for kind in _KINDS)
        print(f"| {'the other' if number else 'this one'} | {row} |")
    result = {f"{kind}_p50_us": servers[0].median_us(kind) for kind in _KINDS}
    if servers[1:]:
        mine, other = (server.medians["own"][_WARM_ROUNDS:] for server in servers)
        saved = np.median(np.subtract(other, mine)) * 1e6
        print(f"\nround by round this one takes {saved:.0f} us less of its own (median)")
        result["own_saved_us"] = round(float(saved))
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30, help="of 100 searches")
    parser.add_argument("--beside", type=Path, help="another checkout, to compare with")
    arguments = parser.parse_args()
    here = Path(__file__).parents[1]
    others = [arguments.beside.absolute()] if arguments.beside else []
    asyncio.run(run([here, *others], arguments.rounds))


if __name__ == "__main__":
    main()
