"""What is text in a file, and what becomes of files that are none, or hostile."""

import asyncio
import json
from pathlib import Path

import pytest

from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.documents import InvalidFile, UnsupportedFile, read_parts
from services.router.vector_stores.reader import CannotRead, Reader
from tests.router.pdfs import write_pdf


def read(tmp_path, filename, data, max_pages=10):
    path = tmp_path / "file"
    path.write_bytes(data)
    return list(read_parts(path, filename, max_pages))


@pytest.mark.parametrize(
    ("filename", "data", "parts"),
    [
        ("a.txt", b"one\r\ntwo  \n\n\n\nthree", ["one\ntwo\n\nthree"]),
        ("README", "ünï".encode(), ["ünï"]),
        ("A.TXT", "\ufeffwith a mark".encode(), ["with a mark"]),
        ("a.txt", "wide".encode("utf-16"), ["wide"]),
        ("a.py", b"def f():\n    return 1\n", ["def f():\n    return 1\n"]),
        ("a.md", b"# Title\n\ntext", ["# Title\n\ntext"]),
        (
            "a.html",
            b"<title>T</title><style>p{}</style><p>one <b>two</b> &amp; &eacute;<script>x</script>"
            b"<ul><li>a<li>b</ul>",
            ["T\n\n\none two & é\n\na\nb".replace("\n\n\n", "\n\n")],
        ),
        ("a.json", b'{"a": {"b": [1, true, null]}, "t": "x"}', ["a.b: 1\na.b: true\nt: x"]),
        ("a.jsonl", b'{"t": "x"}\n\n{"t": "y"}\n', ["t: x\n\nt: y"]),
        ("a.pdf", write_pdf("page one", "", "page three"), ["page one", "page three"]),
    ],
)
def test_text_is_read_from_every_kind(tmp_path, filename, data, parts):
    """Plain text as it is; of the others what a reader would see."""
    assert read(tmp_path, filename, data) == parts


@pytest.mark.parametrize(
    ("filename", "data", "says"),
    [
        ("a.docx", b"PK", "accepted are .html"),
        ("a.txt", b"\xff\xfe\xfd", "UTF-16"),
        ("a.txt", b"\x80abc", "UTF-8"),
        ("a.bin.txt", b"a\0b", "null"),
        ("a.txt", b" \n ", "no text"),
        ("a.html", b"<script>only()</script>", "no text"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"a": 1}\n{', "line 2 is not JSON"),
        ("a.pdf", b"not a pdf", "damaged or not a PDF"),
        ("a.pdf", write_pdf("")[:200], "damaged or not a PDF"),
        ("a.pdf", write_pdf(""), "no text"),
        ("a.pdf", write_pdf(*["x"] * 11), "at most 10 are read"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, filename, data, says):
    """One sentence, which says what would be accepted and holds nothing of the file."""
    with pytest.raises((InvalidFile, UnsupportedFile), match=says):
        read(tmp_path, filename, data)


@pytest.fixture
async def reader():
    opened = Reader(max_s=30, max_memory_bytes=2**30, max_pages=10, max_tokens=5000)
    yield opened
    await opened.close()


async def read_with(reader, path, filename, chunking=None):
    return [chunk async for some in reader.read(path, filename, chunking) for chunk in some]


async def test_a_process_reads_one_file_after_another(tmp_path, reader):
    """It is started once; a file that it refuses does not end it."""
    path = tmp_path / "file"
    path.write_text("word " * 1000)
    chunks = await read_with(reader, path, "a.txt", Chunking(100, 50))
    assert len(chunks) > 10
    with pytest.raises(CannotRead, match="not JSON") as caught:
        await read_with(reader, path, "a.json")
    assert caught.value.code == "invalid_file"
    with pytest.raises(CannotRead) as caught:
        await read_with(reader, path, "a.exe")
    assert caught.value.code == "unsupported_file"
    assert await read_with(reader, path, "a.txt") == ["word " * 1000]


async def test_a_file_that_takes_too_long_fails_alone(tmp_path):
    """Its process is killed, and the next file is read by another."""
    reader = Reader(max_s=0.4, max_memory_bytes=2**30, max_pages=10, max_tokens=10**9)
    path = tmp_path / "file"
    path.write_text("word " * 4_000_000)
    with pytest.raises(CannotRead, match="takes longer than 0.4 s"):
        await read_with(reader, path, "slow.txt", Chunking(100, 50))
    path.write_text("well")
    assert await read_with(reader, path, "well.txt") == ["well"]
    await reader.close()


async def test_a_file_that_takes_too_much_memory_fails_alone(tmp_path):
    """What the machine has is not asked for, and the next file is read."""
    reader = Reader(max_s=30, max_memory_bytes=2**28, max_pages=10, max_tokens=10**9)
    path = tmp_path / "file"
    path.write_text(json.dumps([[]] * 5_000_000))
    with pytest.raises(CannotRead, match="more memory"):
        await read_with(reader, path, "large.json")
    path.write_text("well")
    assert await read_with(reader, path, "well.txt") == ["well"]
    await reader.close()


async def test_a_file_with_too_many_tokens_is_refused(tmp_path, reader):
    """The error says how many there may be."""
    path = tmp_path / "file"
    path.write_text("word " * 6000)
    with pytest.raises(CannotRead, match="at most 5000"):
        await read_with(reader, path, "long.txt", Chunking(100, 0))


async def test_a_reader_that_is_left_half_way_starts_anew(tmp_path):
    """What it still had to say is not taken for the next file's."""
    path: Path = tmp_path / "file"
    reader = Reader(max_s=30, max_memory_bytes=2**30, max_pages=10, max_tokens=10**9)
    path.write_text("word " * 1_000_000)
    reading = reader.read(path, "a.txt", Chunking(100, 50))
    await anext(reading)
    await asyncio.sleep(0.2)  # now what is to be read fills every buffer on the way
    async with asyncio.timeout(10):
        await reading.aclose()
    path.write_text("other")
    assert await read_with(reader, path, "a.txt") == ["other"]
    await reader.close()
