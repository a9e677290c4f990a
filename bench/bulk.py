"""How near indexing through the router comes to the encoder's own speed.

    python -m bench.bulk [--documents 3000] [--rounds 5]

Two real processes on loopback: an encoder with the default model, no cache, and a router on Qdrant
Edge. Rounds take turns: all texts through the encoder's own gRPC with bulk priority, as many calls
in flight as were fastest in a trial; then the same texts from a file of JSON lines through
`matryoshka index`'s own batches and stream into a new collection of three sizes, until the last
acknowledgement. What the router does then, building the index, is timed apart; its threshold is set
so low that it always does. Seconds of processor time by process show where a gap comes from. The
last line is one JSON object.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from bench.report import cpu
from bench.served import ROOT
from services.cli.bulk.batches import Batches
from services.cli.bulk.collection import parse_sizes
from services.cli.bulk.documents import Fields
from services.cli.bulk.engine import Sending
from services.cli.bulk.readers import Mark
from services.cli.bulk.sender import Acknowledged, Router, Sender
from services.cli.bulk.sources import Part, Source, cut_points
from services.cli.corpus import read_corpus
from services.shared.pb import encoder_pb2, encoder_pb2_grpc, router_pb2, router_pb2_grpc

_READY = re.compile(r"^\w+ is ready at (http://\S+) \(gRPC at (\S+)\)$", re.MULTILINE)
_START_TIMEOUT_S = 180
SIZES = "64:int8,128"
CALL_TEXTS = 256
IN_FLIGHT = (2, 4, 8)
_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serve(name: str, folder: Path, **settings: str) -> Iterator[tuple[int, str]]:
    """Run a service; yields its process id and its gRPC address."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        popen = subprocess.Popen(
            [
                sys.executable, "-m", "services.cli.main", "serve", name,
                "--http-port", "0", "--grpc-port", "0", "--data", str(folder / name),
            ],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env=os.environ | settings,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (ready := _READY.search(log.read_text(errors="replace"))):
            if popen.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the {name} did not get ready: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield popen.pid, ready[2]
    finally:
        popen.terminate()
        try:
            popen.wait(timeout=40)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """Return processor seconds so far of each process; of the router's children as `storage`."""
    used = {name: _ticks(pid, 11) / _TICKS for name, pid in pids.items()}
    children = Path(f"/proc/{pids['router']}/task/{pids['router']}/children").read_text().split()
    # A worker that was replaced after indexing has ended, and counts as waited for.
    ticks = _ticks(pids["router"], 13) + sum(_ticks(int(pid), 11) for pid in children)
    return used | {"storage": ticks / _TICKS}


def _ticks(pid: int, first: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[first]) + int(fields[first + 1])


async def encode(address: str, texts: list[str], in_flight: int) -> float:
    """Encode all texts, so many calls in flight; return seconds."""
    calls = [texts[start : start + CALL_TEXTS] for start in range(0, len(texts), CALL_TEXTS)]
    room = asyncio.Semaphore(in_flight)
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)

        async def call(some: list[str]) -> None:
            async with room:
                await stub.Embed(
                    encoder_pb2.EmbedRequest(
                        texts=some,
                        role=encoder_pb2.ROLE_DOCUMENT,
                        truncation=encoder_pb2.TRUNCATION_END,
                        priority=encoder_pb2.PRIORITY_BULK,
                    )
                )

        start = time.monotonic()
        await asyncio.gather(*map(call, calls))
        return time.monotonic() - start


async def index(address: str, name: str, path: Path) -> tuple[float, float]:
    """Index the file into a new collection; return seconds to the last answer, and of the index."""
    router = Router(address)
    async with router.connect() as channel:
        stub: Any = router_pb2_grpc.RouterServiceStub(channel)
        await stub.CreateCollection(
            router_pb2.CreateCollectionRequest(name=name, model="default", sizes=parse_sizes(SIZES))
        )
    source = Source(path.name, path)
    part = Part(source, 0, Mark(), cut_points(source, 0)[-1])
    sending = Sending()

    async def on_acknowledged(_: Acknowledged) -> None:
        pass

    batches = Batches(name, [part], Fields(), sending.batch_documents, sending.batch_bytes)
    sender = Sender(router, sending.window, sending.max_wait_s, on_acknowledged)
    start = time.monotonic()
    await sender.send(iter(batches))
    return time.monotonic() - start - sender.settle_s, sender.settle_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    documents = read_corpus(None, options.documents)
    texts = [document.text for document in documents]
    with tempfile.TemporaryDirectory(prefix="bench-bulk-") as name, contextlib.ExitStack() as open_:
        folder = Path(name)
        path = folder / "documents.jsonl"
        path.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents))
        encoder_pid, encoder = open_.enter_context(
            serve("encoder", folder, MATRYOSHKA_ENCODER_CACHE_BYTES="0")
        )
        router_pid, router = open_.enter_context(
            serve(
                "router", folder, MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder,
                MATRYOSHKA_ROUTER_EDGE_INDEXING_THRESHOLD_KB="1",
            )
        )  # fmt: skip
        pids = {"encoder": encoder_pid, "router": router_pid, "client": os.getpid()}
        report(options, texts, asyncio.run(rounds(options, texts, path, encoder, router, pids)))


async def rounds(
    options: argparse.Namespace,
    texts: list[str],
    path: Path,
    encoder: str,
    router: str,
    pids: dict[str, int],
) -> dict[str, Any]:
    await encode(encoder, texts[:512], 2)
    tried = {n: await encode(encoder, texts, n) for n in IN_FLIGHT}
    in_flight = min(tried, key=lambda n: tried[n])
    alone, whole, settle = [], [], []
    used: dict[str, list[float]] = {"encoder alone": []}
    for number in range(options.rounds):
        before = cpu_s(pids)
        alone.append(await encode(encoder, texts, in_flight))
        middle = cpu_s(pids)
        seconds, settle_s = await index(router, f"round-{number}", path)
        after = cpu_s(pids)
        whole.append(seconds)
        settle.append(settle_s)
        used["encoder alone"].append(middle["encoder"] - before["encoder"])
        for name in after:
            used.setdefault(name, []).append(after[name] - middle[name])
        print(
            f"round {number + 1}: encoder alone {len(texts) / alone[-1]:.0f}/s, whole path "
            f"{len(texts) / seconds:.0f}/s, index {settle_s:.1f} s", flush=True,
        )  # fmt: skip
    return {
        "in_flight": in_flight, "alone": alone, "whole": whole, "settle": settle,
        "cpu": {name: statistics.median(values) for name, values in used.items()},
    }  # fmt: skip


def report(options: argparse.Namespace, texts: list[str], found: dict[str, Any]) -> None:
    """Print medians, their ratio, and where processor time went."""
    alone = [len(texts) / seconds for seconds in found["alone"]]
    whole = [len(texts) / seconds for seconds in found["whole"]]
    ratios = [w / a for w, a in zip(whole, alone, strict=True)]
    ratio = statistics.median(ratios)
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    load = os.getloadavg()
    print(
        f"{date}, {cpu()}, {os.cpu_count()} processors shared by encoder, router, storage and "
        f"client; {len(texts):,} docstrings of {statistics.mean(map(len, texts)):.0f} characters "
        f"in the mean, {CALL_TEXTS} a call, {found['in_flight']} calls in flight at the encoder "
        f"alone; sizes {SIZES} and full; {options.rounds} rounds; load of the machine at the end "
        f"{load[0]:.1f} over one minute, {load[2]:.1f} over fifteen"
    )
    print(f"encoder alone   {statistics.median(alone):8.1f} texts/s (median)")
    print(f"whole path      {statistics.median(whole):8.1f} texts/s (median)")
    print(
        f"ratio           {ratio:8.3f} (median of rounds; {min(ratios):.3f} to {max(ratios):.3f})"
    )
    print(f"then the index  {statistics.median(found['settle']):8.1f} s (median, counted apart)")
    for name, seconds in found["cpu"].items():
        note = " (the index included)" if name == "storage" else ""
        print(f"processor time  {1000 * seconds / len(texts):8.2f} ms a text: {name}{note}")
    used = dict(found["cpu"])
    share = used.pop("encoder alone") / sum(used.values())
    print(f"of all processor time of the whole path {share:.3f} is what the encoder alone took")
    print(
        json.dumps(
            {
                "bench": "bulk", "ratio": round(ratio, 3),
                "encoder_texts_per_s": round(statistics.median(alone), 1),
                "bulk_texts_per_s": round(statistics.median(whole), 1),
                "settle_s": round(statistics.median(found["settle"]), 2),
                "encoder_cpu_share": round(share, 3),
                "documents": len(texts), "rounds": options.rounds, "date": date, "cpu": cpu(),
                "load_1m": round(load[0], 1),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
