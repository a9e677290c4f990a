"""A lean load generator: many clients on one server, in a process of its own.

    python -m bench.load PLAN.json

The plan names the wire ("grpc" or "http"), the address, a file of texts, how many go in one
request, how many clients there are, and a rate: 0 is a closed loop (each client sends as soon as
it is answered), else requests arrive at random at that mean rate. Requests are built before the
clock starts, answers are read after it has stopped. The last line of stdout is one JSON object.
"""

import asyncio
import base64
import itertools
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import numpy as np

from services.shared.pb import encoder_pb2 as pb

_EMBED = "/matryoshka.v1.EncoderService/Embed"
_SEED = 11
# One HTTP/2 connection for all would measure that connection's flow control.
_GRPC_CHANNELS = 4


class Client(Protocol):
    """One client on one of the two wires: sends a request, reports the answer to its run."""

    def send(self, row: int) -> None:
        """Send request number `row`."""


@dataclass
class Run:
    """Requests on their way: who is idle, what waits, when each began and ended."""

    requests: list[bytes]
    idle: deque[Client] = field(default_factory=deque)
    waiting: deque[int] = field(default_factory=deque)
    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    left: int = 0
    closed: bool = True
    done: "asyncio.Future[None] | None" = None

    async def play(self, rate: float) -> float:
        """Send all requests and return the seconds until the last answer."""
        loop = asyncio.get_running_loop()
        number = len(self.requests)
        self.begun, self.ended = [0.0] * number, [0.0] * number
        self.answers, self.left = [b""] * number, number
        self.done = loop.create_future()
        self.closed = not rate
        start = loop.time()
        if rate:
            gaps = random.Random(_SEED)
            times = itertools.accumulate(gaps.expovariate(rate) for _ in range(number))
            for row, at in enumerate(times):
                loop.call_at(start + at, self.offer, row)
        else:
            self.waiting.extend(range(number))
            self.match()
        await self.done
        return loop.time() - start

    def offer(self, row: int) -> None:
        # Time spent waiting for an idle client counts: it is waiting for the server.
        self.begun[row] = time.monotonic()
        self.waiting.append(row)
        self.match()

    def match(self) -> None:
        while self.idle and self.waiting:
            client, row = self.idle.popleft(), self.waiting.popleft()
            if self.closed:
                self.begun[row] = time.monotonic()
            client.send(row)

    def finish(self, client: Client, row: int, answer: bytes) -> None:
        self.ended[row], self.answers[row] = time.monotonic(), answer
        self.idle.append(client)
        self.left -= 1
        self.match()
        if self.left == 0 and self.done and not self.done.done():
            self.done.set_result(None)

    def fail(self, message: str) -> None:
        if self.done and not self.done.done():
            self.done.set_exception(RuntimeError(message))


class HttpClient(asyncio.Protocol):
    """One kept-alive connection; reads no more of HTTP than the answer's length."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._row = -1
        self._needed = 0  # bytes of the whole answer, once its head is read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, row: int) -> None:
        self._row = row
        self._transport.write(self._run.requests[row])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            if not head.startswith(b"http/1.1 200"):
                self._run.fail(bytes(self._buffer[:500]).decode(errors="replace"))
                return
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            self._start, self._needed = end + 4, end + 4 + length
        if len(self._buffer) >= self._needed:
            answer = bytes(self._buffer[self._start : self._needed])
            del self._buffer[: self._needed]
            self._needed = 0
            self._run.finish(self, self._row, answer)

    def connection_lost(self, _: Exception | None) -> None:
        self._run.fail("the server closed a connection")


class GrpcClient:
    """One caller; bytes go in and out as they are."""

    def __init__(self, run: Run, channel: grpc.aio.Channel) -> None:
        self._run = run
        self._call: Any = channel.unary_unary(_EMBED, None, None)
        self._task: asyncio.Task[None] | None = None

    def send(self, row: int) -> None:
        self._task = asyncio.ensure_future(self._send(row))

    async def _send(self, row: int) -> None:
        try:
            answer = await self._call(self._run.requests[row])
        except grpc.aio.AioRpcError as error:
            self._run.fail(f"{error.code().name}: {error.details()}")
        else:
            self._run.finish(self, row, answer)


def build_requests(plan: dict[str, Any], texts: list[str]) -> list[bytes]:
    size = plan["texts_per_request"]
    groups = [texts[start : start + size] for start in range(0, len(texts), size)]
    if plan["wire"] == "grpc":
        return [
            pb.EmbedRequest(texts=group, truncation=pb.TRUNCATION_END).SerializeToString()
            for group in groups
        ]
    host = urlsplit(plan["address"]).netloc
    return [_post(host, plan["model"], group) for group in groups]


def _post(host: str, model: str, texts: list[str]) -> bytes:
    # base64 is what OpenAI's own client asks for.
    body = json.dumps(
        {"model": model, "input": texts, "encoding_format": "base64", "truncate": True}
    ).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read_vectors(wire: str, answers: list[bytes]) -> np.ndarray:
    if wire == "grpc":
        found = [pb.EmbedResponse.FromString(answer).vectors[0] for answer in answers]
        return np.concatenate([np.frombuffer(v.data, "<f4").reshape(-1, v.dim) for v in found])
    rows = [item["embedding"] for answer in answers for item in json.loads(answer)["data"]]
    return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])


async def play(plan: dict[str, Any], texts: list[str]) -> tuple[Run, float]:
    run = Run(build_requests(plan, texts))
    number = min(plan["clients"], len(run.requests))
    if plan["wire"] == "grpc":
        # A channel option that differs keeps grpc from sharing one connection between channels.
        channels = [
            grpc.aio.insecure_channel(
                plan["address"],
                options=[("bench.channel", i), ("grpc.max_receive_message_length", -1)],
            )
            for i in range(_GRPC_CHANNELS)
        ]
        run.idle.extend(GrpcClient(run, channels[i % _GRPC_CHANNELS]) for i in range(number))
        seconds = await run.play(plan["rate"])
        for channel in channels:
            await channel.close(grace=None)
        return run, seconds
    loop = asyncio.get_running_loop()
    address = urlsplit(plan["address"])
    make: Callable[[], HttpClient] = lambda: HttpClient(run)  # noqa: E731 (typed)
    opened = [
        await loop.create_connection(make, address.hostname, address.port) for _ in range(number)
    ]
    run.idle.extend(client for _, client in opened)
    seconds = await run.play(plan["rate"])
    for transport, _ in opened:
        transport.abort()
    return run, seconds


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    texts = json.loads(Path(plan["texts"]).read_text())
    run, seconds = asyncio.run(play(plan, texts))
    waits_ms = 1000 * (np.array(run.ended) - np.array(run.begun))
    if plan["vectors"]:
        np.save(plan["vectors"], read_vectors(plan["wire"], run.answers))
    result = {
        "seconds": seconds,
        "texts_per_s": len(texts) / seconds,
        "p50_ms": float(np.percentile(waits_ms, 50)),
        "p99_ms": float(np.percentile(waits_ms, 99)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
