"""Bad input of every kind gets OpenAI's error shape and one sentence; nothing is done."""

import asyncio
import contextlib
import json
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import serve
from tests.router.conftest import Encoder

UNKNOWN = "file-" + "0" * 32
STATIC = "chunking_strategy must be"


@pytest.fixture
async def served(tmp_path, encoder: tuple[Encoder, str]):
    """A router and its HTTP client; each test is many requests, as a router takes a second."""
    router = serve(
        tmp_path,
        "serve",
        "router",
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder[1],
        MATRYOSHKA_ROUTER_DRAIN_S="0",
        MATRYOSHKA_ROUTER_MAX_FILE_BYTES="40000000",
        MATRYOSHKA_ROUTER_MAX_BODY_S="0.5",
        MATRYOSHKA_ROUTER_MAX_TEXT_CHARS="1000",
    )
    async with httpx.AsyncClient(base_url=f"{router.http}/v1", timeout=20) as client:
        yield client, tmp_path
    assert router.stop() == 0
    assert "Traceback" not in router.log_path.read_text()


def check(answer: httpx.Response, status: int, says: str, param: str | None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"], error
    assert error["param"] == param


def static(size, overlap):
    sizes = {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap}
    return {"chunking_strategy": {"type": "static", "static": sizes}}


STORES = [
    ("POST", "", b"", 400, "must be JSON", None),
    ("POST", "", b"[]", 400, "must be a JSON object", None),
    ("POST", "", {"names": "x"}, 400, "unknown field 'names'; the fields are: name", "names"),
    ("POST", "", {"name": 1}, 400, "name must be a string", "name"),
    ("POST", "", {"name": "\ud800"}, 400, "name must be a string", "name"),
    ("POST", "", {"name": "x" * 257}, 400, "256", "name"),
    ("POST", "", {"metadata": {"a": 1}}, 400, "values must be strings", "metadata"),
    ("POST", "", {"metadata": {"a" * 65: ""}}, 400, "64 characters", "metadata"),
    ("POST", "", {"file_ids": [UNKNOWN]}, 404, "there is no file", "file_ids"),
    ("POST", "", {"file_ids": ["x"] * 501}, 400, "at most 500", "file_ids"),
    ("POST", "", {"expires_after": {"days": 1}}, 400, "anchor", "expires_after"),
    (
        "POST", "", {"expires_after": {"anchor": "last_active_at", "days": 366}},
        400, "from 1 to 365", "expires_after",
    ),
    ("POST", "", {"model": "nobody"}, 404, "nobody", "model"),
    ("POST", "", static(99, 0), 400, STATIC, "chunking_strategy"),
    ("POST", "", static(4097, 0), 400, STATIC, "chunking_strategy"),
    ("POST", "", static(100, 51), 400, "at most half", "chunking_strategy"),
    ("POST", "", {"chunking_strategy": {"type": "static"}}, 400, "needs 'static'",
     "chunking_strategy"),
    ("GET", "?limit=0", None, 400, "from 1 to 100", "limit"),
    ("GET", "?limit=101", None, 400, "from 1 to 100", "limit"),
    ("GET", "?limit=ten", None, 400, "from 1 to 100", "limit"),
    ("GET", "?order=up", None, 400, "'asc' or 'desc'", "order"),
    ("GET", "?page=2", None, 400, "unknown query parameter 'page'", "page"),
    ("GET", "?after=vs_none", None, 404, "no vector store", "vector_store_id"),
    ("GET", "/vs_none", None, 404, "no vector store 'vs_none'", "vector_store_id"),
    ("POST", "/vs_none", {}, 404, "no vector store", "vector_store_id"),
    ("DELETE", "/vs_none", None, 404, "no vector store", "vector_store_id"),
    ("POST", "/vs_none/search", {"query": "x"}, 404, "no vector store", "vector_store_id"),
    ("GET", "/vs_none/files", None, 404, "no vector store", "vector_store_id"),
    ("POST", "/vs_none/calibrate", {}, 404, "no vector store", "vector_store_id"),
    ("GET", "/vs_none/calibration", None, 404, "no vector store", "vector_store_id"),
    ("GET", "/vs_none/recall", None, 404, "no vector store", "vector_store_id"),
    ("POST", "/vs_none/files", {"file_id": UNKNOWN}, 404, "no vector store", "vector_store_id"),
    ("GET", "/vs_none/file_batches/x", None, 404, "no vector store", "vector_store_id"),
    ("PUT", "", {}, 405, "Method Not Allowed", None),
]  # fmt: skip

STORE = [
    ("POST", "", {"name": 1}, 400, "name must be", "name"),
    ("POST", "", {"file_ids": []}, 400, "unknown field 'file_ids'", "file_ids"),
    ("POST", "/files", {}, 400, "file_id must be", "file_id"),
    ("POST", "/files", {"file_id": 1}, 400, "file_id must be", "file_id"),
    ("POST", "/files", {"file_id": UNKNOWN}, 404, "there is no file", "file_id"),
    ("POST", "/files", {"file_id": "../x"}, 404, "there is no file", "file_id"),
    ("POST", "/files", {"file_id": UNKNOWN, "attributes": []}, 400, "at most 16", "attributes"),
    ("GET", "/files?filter=done", None, 400, "filter must be one of: in_progress", "filter"),
    ("GET", "/files?after=file-x", None, 404, "has no file", "file_id"),
    ("GET", f"/files/{UNKNOWN}", None, 404, "has no file", "file_id"),
    ("POST", f"/files/{UNKNOWN}", {"attributes": {}}, 404, "has no file", "file_id"),
    ("POST", f"/files/{UNKNOWN}", {}, 400, "must provide 'attributes'", "attributes"),
    ("DELETE", f"/files/{UNKNOWN}", None, 404, "has no file", "file_id"),
    ("GET", f"/files/{UNKNOWN}/content", None, 404, "has no file", "file_id"),
    ("POST", "/file_batches", {}, 400, "either file_ids or files", "file_ids"),
    ("POST", "/file_batches", {"file_ids": []}, 400, "at most 2000", "file_ids"),
    ("POST", "/file_batches", {"file_ids": ["x"], "files": [{"file_id": "x"}]}, 400, "either",
     "file_ids"),
    ("POST", "/file_batches", {"files": [{"id": "x"}]}, 400, "with a file_id", "files"),
    ("POST", "/file_batches", {"file_ids": [UNKNOWN]}, 404, "there is no file", "file_id"),
    ("GET", "/file_batches/vsfb_x", None, 404, "no file batch", "batch_id"),
    ("POST", "/file_batches/vsfb_x/cancel", None, 404, "no file batch", "batch_id"),
    ("GET", "/file_batches/vsfb_x/files", None, 404, "no file batch", "batch_id"),
    ("POST", "/calibrate", {"target": 0.9}, 400, "unknown field 'target'", "target"),
    ("POST", "/calibrate", {"queries": "x"}, 400, "a list of strings, or of objects", "queries"),
    ("POST", "/calibrate", {"queries": [{"slice": "a"}]}, 400, "with a text", "queries"),
    ("POST", "/calibrate", {"recall_target": 1}, 400, "below 1", "recall_target"),
    ("POST", "/calibrate", {"objective": "cost"}, 400, "'latency' or 'memory'", "objective"),
    ("POST", "/calibrate", {"confidence": 0.1}, 400, "at least 0.5", "confidence"),
    ("POST", "/calibrate", {"max_num_results": 51}, 400, "1 to 50", "max_num_results"),
    ("POST", "/calibrate", {"queries": [" "]}, 400, "not blank", "texts[0]"),
    ("POST", "/calibrate", {}, 400, "has 0 points", "collection"),
    ("GET", "/calibration", None, 404, "is not calibrated", "vector_store_id"),
    ("POST", "/search", {}, 400, "query must be", "query"),
    ("POST", "/search", {"query": 1}, 400, "query must be", "query"),
    ("POST", "/search", {"query": []}, 400, "1 to 16 strings", "query"),
    ("POST", "/search", {"query": ["x"] * 17}, 400, "1 to 16 strings", "query"),
    ("POST", "/search", {"query": " "}, 400, "not all blank", "query"),
    ("POST", "/search", {"query": "x" * 1001}, 400, "1 to 1000 characters", "query"),
    ("POST", "/search", {"query": "x", "limit": 1}, 400, "unknown field 'limit'", "limit"),
    ("POST", "/search", {"query": "x", "max_num_results": 51}, 400, "1 to 50", "max_num_results"),
    ("POST", "/search", {"query": "x", "max_num_results": True}, 400, "1 to 50",
     "max_num_results"),
    ("POST", "/search", {"query": "x", "ranking_options": {"score_threshold": 2}}, 400, "0 to 1",
     "ranking_options"),
    ("POST", "/search", {"query": "x", "ranking_options": {"ranker": "best"}}, 400, "'auto'",
     "ranking_options"),
    ("POST", "/search", {"query": "x", "ranking_options": {"hybrid_search": {"text_weight": 1}}},
     400, "an embedding_weight and a text_weight", "ranking_options"),
    ("POST", "/search", {"query": "x", "ranking_options": {
        "hybrid_search": {"text_weight": 0, "embedding_weight": 0}}},
     400, "one of them above", "ranking_options"),
    ("POST", "/search", {"query": "x", "routing": {"hybrid": {"fusion": "dbsf"}}}, 400,
     "fusion ('score' or 'rank')", "routing"),
    ("POST", "/search", {"query": "x", "rewrite_query": "no"}, 400, "true or false",
     "rewrite_query"),
    ("POST", "/search", {"query": "x", "filters": {"type": "eq"}}, 400, "fields type, key, value",
     "filters"),
    ("POST", "/search", {"query": "x", "routing": {"plans": []}}, 400, "some of recall_target",
     "routing"),
    ("POST", "/search", {"query": "x", "routing": {"recall_target": 2}}, 400, "from 0 to 1",
     "routing"),
    ("POST", "/search", {"query": "x", "routing": {"plan": [{"dim": 7}]}}, 400, "8, 16, 32",
     "plan"),
]  # fmt: skip


async def test_vector_stores_refuse_what_is_wrong(served):
    """Bodies, queries and ids; and no collection is left of what was refused."""
    client, _ = served
    store = (await client.post("/vector_stores", json={})).json()
    for number, (method, path, body, status, says, param) in enumerate(
        [*STORES, *((m, f"/{store['id']}{p}", *rest) for m, p, *rest in STORE)]
    ):
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        answer = await client.request(method, f"/vector_stores{path}", content=content)
        try:
            check(answer, status, says, param)
        except AssertionError as error:
            raise AssertionError(f"case {number}: {method} {path} {body}: {answer.text}") from error
    listed = (await client.get("/vector_stores")).json()
    assert [one["id"] for one in listed["data"]] == [store["id"]]
    assert (await client.get(f"/vector_stores/{store['id']}")).json() == store


def form(*parts, boundary="b"):
    """A form's body from (disposition, bytes)."""
    lines = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return lines + f"--{boundary}--\r\n".encode()


FILE = ('name="file"; filename="a.txt"', b"text")
PURPOSE = ('name="purpose"', b"assistants")


def expiry(anchor, seconds):
    return (('name="expires_after[anchor]"', anchor), ('name="expires_after[seconds]"', seconds))


UPLOADS = [
    (form(PURPOSE), 400, "field 'file'", "file"),
    (form(FILE), 400, "purpose must be one of: assistants", "purpose"),
    (form(FILE, ('name="purpose"', b"fun")), 400, "purpose must be one of", "purpose"),
    (form(FILE, PURPOSE, ('name="more"', b"x")), 400, "unknown field 'more'", "more"),
    (form(FILE, PURPOSE, FILE), 400, "one file", "file"),
    (form(('name="data"; filename="a"', b"x"), PURPOSE), 400, "field 'file'", "file"),
    (form(('name="file"', b"x"), PURPOSE), 400, "with a filename", "file"),
    (form(('name="file"; filename=""', b"x"), PURPOSE), 400, "1 to 255", "file"),
    (form(('name="file"; filename="a.txt"', b""), PURPOSE), 400, "empty", "data"),
    (
        form(('name="file"; filename="a"', b"x" * 40_000_001), PURPOSE),
        413,
        "at most 40000000",
        None,
    ),
    (form(PURPOSE, ('name="purpose"', b"x" * 9000)), 400, "at most 8192", "purpose"),
    (form(FILE, PURPOSE, *expiry(b"now", b"3600")), 400, "3600 to 2592000", "expires_after"),
    (form(FILE, PURPOSE, *expiry(b"created_at", b"1")), 400, "3600 to", "expires_after"),
    (form(FILE, PURPOSE)[:-6], 400, "ended before", None),
    (form(FILE, PURPOSE)[:120], 400, "ended before", None),
    (b"not a form", 400, "well-formed", None),
    (form((f'name="file"; filename="{"a" * 9000}"', b"x")), 400, "well-formed", None),
    (form(*[(f'name="f{n}"', b"") for n in range(17)]), 400, "at most 16 fields", None),
]

FILES = [
    ("GET", "?limit=10001", 400, "from 1 to 10000", "limit"),
    ("GET", "?after=file-x", 404, "there is no file", "after"),
    ("GET", "?filter=x", 400, "unknown query parameter", "filter"),
    ("GET", f"/{UNKNOWN}", 404, "there is no file", "file_id"),
    ("GET", f"/{UNKNOWN}/content", 404, "there is no file", "file_id"),
    ("GET", "/..%2Frouter.sqlite/content", 404, "", None),
    ("DELETE", f"/{UNKNOWN}", 404, "there is no file", "file_id"),
]


async def test_files_refuse_what_is_wrong(served):
    """Forms that are none, ids that are none; and no byte is left of what was refused."""
    client, tmp_path = served
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for number, (body, status, says, param) in enumerate(UPLOADS):
        answer = await client.post("/files", content=body, headers=kind)
        try:
            check(answer, status, says, param)
        except AssertionError as error:
            raise AssertionError(f"case {number}: {answer.text}") from error
    check(await client.post("/files", json={}), 400, "multipart/form-data", None)
    for method, path, status, says, param in FILES:
        check(await client.request(method, f"/files{path}"), status, says, param)
    check(await slow_upload(client), 408, "without pauses over 0.5 s", None)
    assert (await client.get("/files")).json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    (folder,) = tmp_path.glob("*/files")
    assert list(folder.iterdir()) == []


async def test_an_upload_is_not_held_in_memory(served):
    """A file of 39 MB comes and goes while the router grows by much less."""
    client, tmp_path = served
    (pid,) = pids(tmp_path)
    before = peak_bytes(pid)
    kind = {"content-type": "multipart/form-data; boundary=b"}
    body = form(('name="file"; filename="a.bin"', bytes(39_000_000)), PURPOSE)
    file = (await client.post("/files", content=body, headers=kind)).json()
    answer = await client.get(f"/files/{file['id']}/content")
    assert len(answer.content) == file["bytes"] == 39_000_000
    assert peak_bytes(pid) - before < 16_000_000


def pids(folder: Path) -> list[int]:
    """The router that keeps its data there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if b"services.cli.main" in line and str(folder).encode() in line:
                found.append(int(path.parent.name))
    return found


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


async def slow_upload(client: httpx.AsyncClient) -> httpx.Response:
    """Begin to send a file, and stop."""

    async def pieces():
        yield form(FILE, PURPOSE)[:100]
        await asyncio.sleep(3)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    return await client.post("/files", content=pieces(), headers=kind)


async def test_an_upload_whose_caller_leaves_keeps_nothing(served):
    """The bytes that came before are removed."""
    client, tmp_path = served
    (folder,) = tmp_path.glob("*/files")
    url = client.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        body = form(('name="file"; filename="a.txt"', b"x" * 50_000))
        head = (
            "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b"
            f"\r\nContent-Length: {2 * len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body[:40_000])
        await until(lambda: list(folder.iterdir()))
    await until(lambda: not list(folder.iterdir()))


async def until(happens):
    deadline = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
