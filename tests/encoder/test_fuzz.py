"""Malformed and hostile HTTP: whatever is sent, no 5xx, no growth, and the next caller is served.

MATRYOSHKA_FUZZ_REQUESTS sets how many are sent (3,000 unless told; 100,000 take some minutes).
A failure names the seed of the request, and MATRYOSHKA_FUZZ_SEED starts from there.
"""

import asyncio
import contextlib
import json
import os
import random
import re
from pathlib import Path

import httpx
import pytest

from tests.conftest import serve

REQUESTS = int(os.environ.get("MATRYOSHKA_FUZZ_REQUESTS", "3000"))
SEED = int(os.environ.get("MATRYOSHKA_FUZZ_SEED", "1"))
WORKERS = 24
ANSWER_S = 60
# In the second half; in the first, torch and the allocator take what they keep for good. With
# 100,000 requests a leak of a few kilobytes each would show.
MAX_GROWTH_MB = 400
VALID = {"model": "default", "input": "x"}
FIELDS = [*VALID, "dimensions", "encoding_format", "user", "input_type", "truncate", "priority"]
STRANGE_TEXT = [
    "", " ", "\0", "\ud800", "\udfff\ud800", "\u202e", "e\u0301" * 50, "😀" * 20, "\r\n",
    "default\n", "' OR 1=1 --", "../../etc/passwd", "${jndi:ldap://x}", "<script>", "%s%n",
    "a" * 999,
]  # fmt: skip
STRANGE_JSON = [
    b"", b" ", b"{", b"[]", b"null", b"NaN", b'"x"', b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\x80",
    b'{"model":"default","input":"\xff"}', b'{"model":"default","input":"\\ud800"}',
    b'{"model":"default","input":"x","input":1}', b'{"model":"default","input":NaN}',
    b'{"model":"default","input":"x","dimensions":1e999}', b'{"model":"default","input":[1e2]}',
    b'{"model":"default","input":[' + b"9" * 5000 + b"]}",
    b'{"model":"default","input":"x","dimensions":-' + b"9" * 4500 + b"}",
]  # fmt: skip
STRANGE_BYTES = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 200,
    b"POST http://[::1 HTTP/1.1\r\n\r\n", b"GET /%00%ff HTTP/1.1\r\n\r\n", b"\0" * 300,
    b"GET /v1/models/" + b"a/" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
]  # fmt: skip


def value(rng, depth=0):
    """Any JSON value, now and then a very large or strange one."""
    kind = rng.randrange(12 if depth < 4 else 8)
    if kind < 2:
        return rng.choice([None, True, False, 0, -1, 1, 384, 385, 2**31, 2**63, 2**64, 10**400])
    if kind < 4:
        return rng.choice([0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 64.0])
    if kind < 8:
        return rng.choice([*STRANGE_TEXT, "default", "query", "float", "base64", "word " * 300])
    if kind < 10:
        return [value(rng, depth + 1) for _ in range(rng.randrange(6))]
    return {rng.choice([*FIELDS, *STRANGE_TEXT]): value(rng, depth + 1) for _ in range(3)}


def wrong_fields(rng):
    body = dict(VALID)
    for _ in range(rng.randrange(1, 4)):
        field = rng.choice([*FIELDS, "unknown"])
        body[field] = value(rng)
        if rng.random() < 0.1:
            body.pop(field)
    return http(json.dumps(body).encode("utf-8", "surrogatepass"))


def strange_json(rng):
    return http(rng.choice(STRANGE_JSON))


def any_value(rng):
    return http(json.dumps(value(rng)).encode())


def deep(rng):
    depth = rng.choice([50, 1000, 100_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    body = opening * depth + b"1" + closing * rng.choice([0, depth])
    return http(rng.choice([body, b'{"model":"default","input":' + body + b"}"]))


def giant_array(rng):
    item = rng.choice(["x", "", 1, -1, [1], [], None, {}, [[1]]])
    return http(json.dumps(VALID | {"input": [item] * rng.choice([2049, 50_000])}).encode())


def giant_text(rng):
    text = rng.choice(["x", "x ", "é", "\u200b", "😀"]) * rng.choice([100_000, 1_000_000])
    return http(json.dumps(VALID | {"input": text, "truncate": rng.random() < 0.2}).encode())


def broken(rng):
    """A right body, cut off or with some bytes changed."""
    body = bytearray(json.dumps(VALID | {"input": ["a", "b" * 50]}).encode())
    for _ in range(rng.randrange(1, 5)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return http(bytes(body[: rng.randrange(len(body))] if rng.random() < 0.3 else body))


def wrong_length(rng):
    body = json.dumps(VALID).encode()
    lengths = [
        b"0",
        b"5",
        b"9999",
        b"-1",
        b"1e3",
        b"\xb2",
        b"",
        b"9" * 30,
        b"33554433",
        b"9" * 5000,
    ]
    return http(body, length=rng.choice(lengths))


def wrong_framing(rng):
    extra = rng.choice([
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Length: 3\r\n", b"Content-Encoding: gzip\r\n", b"Expect: 100-continue\r\n",
        b"Content-Type: text/plain; charset=utf-7\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    ])  # fmt: skip
    chunks = rng.choice([b"zz\r\n", b"ffffffffffffffff\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n"])
    return http(rng.choice([chunks, json.dumps(VALID).encode()]), extra=extra)


def abused_headers(rng):
    extra = rng.choice([
        b"X: " + b"a" * 200_000 + b"\r\n", b"X-%d: 1\r\n" * 50 % tuple(range(50)),
        b"X: 1\r\n" * 20_000, b"Bad Name: 1\r\n", b": empty\r\n", b"X: \0\r\n", b"X\r\n",
        b"Authorization: Bearer " + b"\xff" * 30 + b"\r\n", b"X: a\r\n b\r\n",
    ])  # fmt: skip
    return http(json.dumps(VALID).encode(), extra=extra)


def wrong_route(rng):
    method = rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW", "POST"])
    path = rng.choice(["/v1/embeddings", "/v1/models", "/v1/models/gone", "/", "/v1/models/%F0%9F"])
    return http(b"", line=f"{method} {path}{rng.choice(['', '?a=%00', '?' + 'q=1&' * 99])}")


def strange_bytes(rng):
    return rng.choice([*STRANGE_BYTES, rng.randbytes(rng.randrange(1, 400))])


def right(rng):
    return http(json.dumps(VALID | {"input": f"right {rng.random()}"}).encode())


def http(body, line="POST /v1/embeddings", length=None, extra=b""):
    length = str(len(body)).encode() if length is None else length
    head = f"{line} HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\n".encode()
    return head + b"Content-Length: " + length + b"\r\n" + extra + b"\r\n" + body


# Those that cost the server more come less often.
KINDS = [
    wrong_fields, wrong_fields, strange_json, any_value, broken, broken, wrong_length,
    wrong_framing, abused_headers, wrong_route, strange_bytes, right,
]  # fmt: skip
COSTLY = [deep, giant_array, giant_text]
# These may rightly be waited on for more: the server ends them in its own time.
PATIENCE_S = {wrong_length: 1.0, wrong_framing: 1.0, abused_headers: 1.0, strange_bytes: 0.2}


async def send(port, seed):
    """Send what the seed says; return (kind, status), with status 0 for a closed connection."""
    rng = random.Random(seed)
    kind = rng.choice(COSTLY if seed % 50 == 0 else KINDS)
    data = kind(rng)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if seed % 97 == 0:  # leaves without waiting, perhaps in the middle
            return kind, 0
        answer = await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S.get(kind, ANSWER_S))
        match = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
        return kind, int(match[1]) if match else 0
    except ConnectionError:
        return kind, 0
    except TimeoutError:
        if kind in PATIENCE_S:
            return kind, 0
        raise
    finally:
        writer.transport.abort()


async def send_all(port, seeds):
    """Send from several workers; return the seeds of answers that may not be, and all statuses."""
    seeds = iter(seeds)
    wrong, statuses = [], {}

    async def work():
        for seed in seeds:
            kind, status = await send(port, seed)
            statuses[status] = statuses.get(status, 0) + 1
            if status >= 500 or (kind is right and status not in (200, 429, 0)):
                wrong.append((seed, kind.__name__, status))

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return wrong, statuses


def resident_mb(pid):
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """An encoder that waits but half a second for a body."""
    folder = tmp_path_factory.mktemp("fuzz")
    started = serve(folder, "serve", "encoder", MATRYOSHKA_ENCODER_MAX_BODY_S="0.5")
    yield started
    assert started.stop() == 0


@pytest.mark.timeout(240 + REQUESTS / 20)
async def test_whatever_is_sent_it_is_answered_or_refused(process):
    """No 5xx for anything, right requests in between are served, and memory stays as it was."""
    port = int(process.http.rpartition(":")[2])
    warm = REQUESTS // 2
    wrong, _ = await send_all(port, range(SEED, SEED + warm))
    before_mb = resident_mb(process.popen.pid)
    found, statuses = await send_all(port, range(SEED + warm, SEED + REQUESTS))
    assert not wrong + found, f"(seed, kind, status): {(wrong + found)[:20]}"
    # The requests do reach what they are meant to reach.
    assert {200, 400, 404, 405} <= statuses.keys(), statuses
    assert resident_mb(process.popen.pid) - before_mb < MAX_GROWTH_MB
    assert "internal error" not in process.log_path.read_text()
    assert "Traceback" not in process.log_path.read_text()
    assert httpx.post(f"{process.http}/v1/embeddings", json=VALID, timeout=30).status_code == 200


async def test_slow_bodies_are_ended_and_hold_nobody_up(process):
    """Bodies that trickle in are refused after their time, and meanwhile others are served."""
    port = int(process.http.rpartition(":")[2])
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
    for _, writer in slow:
        writer.write(http(b'{"model"', length=b"1000").replace(b"Connection: close\r\n", b""))
    async with httpx.AsyncClient(base_url=process.http, timeout=30) as client:
        assert (await client.post("/v1/embeddings", json=VALID)).status_code == 200
    for reader, writer in slow:
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), ANSWER_S)
        assert answer.startswith(b"HTTP/1.1 408 "), answer[:100]
        assert b"must arrive within 0.5 s" in answer
        writer.close()


async def test_a_head_that_never_ends_is_cut_off(process):
    """Neither a long head nor a slow one holds a connection or memory."""
    port = int(process.http.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 10_000:
            writer.write(b"X-Header: " + b"a" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)
            sent += 1
    writer.transport.abort()
    assert 60 < sent < 10_000
