"""`matryoshka index --engine ray`, on a Ray of this machine."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from services.cli.bulk.journal import Journal
from tests.cli.test_commands import matryoshka
from tests.cli.test_index import (  # noqa: F401 (fixtures)
    NUM_DOCUMENTS,
    command,
    corpus,
    documents,
    router,
    start,
    stored,
    wait_acknowledged,
)

ray = pytest.importorskip(
    "ray", reason="ray comes with the extra `ray`; it is not installed in this environment"
)


def folders():
    """What Rays keep their sessions in."""
    return set(Path(tempfile.gettempdir()).glob("ray-*"))


@pytest.fixture(autouse=True)
def left_over():
    """A Ray whose driver was killed leaves its folder behind; nobody else is to find it."""
    before = folders()
    yield
    for folder in folders() - before:
        shutil.rmtree(folder, ignore_errors=True)


def rays():
    """Processes of any Ray on this machine."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines() if "raylet" in line}


@pytest.fixture
def long_corpus(corpus):  # noqa: F811
    """Its documents are long, so that it has some parts of the least length, a MiB."""
    for path in [corpus / "a.jsonl", corpus / "deep" / "b.jsonl"]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"pad": "x" * 8000}) + "\n" for row in rows))
    return corpus


def test_parts_on_ray_are_each_indexed_once_and_go_on_after_a_kill(
    router, long_corpus, documents  # noqa: F811
):  # fmt: skip
    """Killed in the middle, it goes on with the parts that are left; this process may, too."""
    before = rays()
    more = ["--engine", "ray", "--part-mb", "1", "--streams", "2"]
    running = start(command(router, long_corpus, *more))
    acknowledged = wait_acknowledged(long_corpus, 100, running)
    assert acknowledged < NUM_DOCUMENTS
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.communicate()
    journal = Journal.open(long_corpus.parent / "docs.index-state", "docs")
    acknowledged = journal.num_documents

    ended = matryoshka(*command(router, long_corpus, *more))
    assert ended.returncode == 0, ended.stderr
    assert f"{acknowledged} documents are acknowledged already" in ended.stdout
    assert f"{NUM_DOCUMENTS - acknowledged} documents in" in ended.stdout
    assert stored(router)[0] == documents

    ended = matryoshka(*command(router, long_corpus))
    assert "0 documents in" in ended.stdout
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert rays() <= before


def test_ray_finds_the_same_mistakes(router, tmp_path):  # noqa: F811
    """In files cut into parts, each is told with its line in the whole file."""
    folder = tmp_path / "bad"
    folder.mkdir()
    lines = [json.dumps({"id": f"{n}", "text": "x" * 1000}) for n in range(3000)]
    lines[2500] = "{"
    lines[2900] = lines[7]
    (folder / "a.jsonl").write_text("\n".join(lines))
    ended = matryoshka(*command(router, folder, "--engine", "ray", "--part-mb", "1", name="bad"))
    assert ended.returncode == 2
    assert "2 rows are no documents:\n  bad/a.jsonl:2501 must be one JSON object" in ended.stderr
    assert "  bad/a.jsonl:2901 the id '7' is already that of bad/a.jsonl:8" in ended.stderr


def test_ids_by_place_do_not_depend_on_the_engine(router, tmp_path):  # noqa: F811
    """What one engine indexed, the other finds by the same ids."""
    folder = tmp_path / "plain"
    folder.mkdir()
    rows = [json.dumps({"text": f"number {n}", "pad": "x" * 20_000}) for n in range(150)]
    (folder / "a.jsonl").write_text("\n\n".join(rows))
    (folder / "b.md").write_text("one\n\ntwo")
    ended = matryoshka(*command(router, folder, name="places"))
    assert ended.returncode == 0, ended.stderr
    one = stored(router, "places")[0]
    os.unlink(tmp_path / "places.index-state")
    more = ["--engine", "ray", "--part-mb", "1"]
    ended = matryoshka(*command(router, folder, *more, name="places"))
    assert "152 documents in" in ended.stdout, ended.stderr
    assert stored(router, "places")[0] == one
    assert len(one) == 152
