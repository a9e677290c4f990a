"""`matryoshka index` on real services: each document once, whatever is killed on the way."""

import json
import re
import signal
import subprocess
import sys
import time

import grpc
import httpx
import pytest

from services.cli.bulk.journal import Journal
from services.cli.corpus import read_corpus
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka
from tests.conftest import serve

NUM_DOCUMENTS = 600
BATCH = 16
WINDOW = 16  # the command's own


@pytest.fixture(scope="module")
def documents():
    return {document.id: document.text for document in read_corpus(None, NUM_DOCUMENTS)}


@pytest.fixture
def corpus(tmp_path, documents):
    """Three files in a folder, of which two have ids."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    rows = [
        {"id": id_, "text": text, "attributes": {"place": place, "package": id_.split(".")[0]}}
        for place, (id_, text) in enumerate(documents.items())
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:400]))
    (folder / "deep" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[400:]))
    (folder / "picture.png").write_bytes(b"no text")
    return folder


@pytest.fixture(scope="module")
def router(encoder_process, tmp_path_factory):
    """A router for all tests that kill nothing."""
    folder = tmp_path_factory.mktemp("index")
    address = {"MATRYOSHKA_ROUTER_ENCODER_ADDRESS": encoder_process.grpc}
    process = serve(folder, "serve", "router", **address)
    yield process
    assert process.stop() == 0


def command(process, corpus, *more, name="docs"):
    state = corpus.parent / f"{name}.index-state"
    return [
        "index", name, str(corpus), "--router", process.grpc, "--state", str(state),
        "--create", "--dims", "64", "--batch", str(BATCH), *more,
    ]  # fmt: skip


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_acknowledged(corpus, number, running):
    """Wait until the progress file says that so many are; return how many it says."""
    path = corpus.parent / "docs.index-state"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert running.poll() is None, running.stdout.read()
        if path.exists():
            journal = Journal(path, "docs")
            journal._read(path.read_bytes())
            if journal.num_documents >= number:
                return journal.num_documents
        time.sleep(0.02)
    raise AssertionError("too few documents were acknowledged")


def stored(process, name="docs"):
    """All points of a collection: {id: text}, and {id: attributes}."""
    with grpc.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.RouterServiceStub(channel)
        answer = stub.Search(
            pb.SearchRequest(
                collection=name, text="x", limit=1000,
                plan=pb.Plan(stages=[pb.Stage(dim=384, exact=True)]),
            )
        )  # fmt: skip
        num_points = stub.GetCollection(pb.GetCollectionRequest(name=name)).collection.num_points
    assert len(answer.hits) == num_points
    return {hit.id: hit.text for hit in answer.hits}, {
        hit.id: {k: getattr(v, v.WhichOneof("value")) for k, v in hit.attributes.items()}
        for hit in answer.hits
    }


def num_written(process):
    metrics = httpx.get(f"{process.http}/metrics").text
    return float(re.search(r"^matryoshka_router_written_points_total (\S+)", metrics, re.M)[1])


def stay_at(process):
    """Let a process that is started again be where it was."""
    ports = {"--http-port": process.http, "--grpc-port": process.grpc}
    for option, address in ports.items():
        process.arguments[process.arguments.index(option) + 1] = address.rpartition(":")[2]


def test_a_corpus_is_indexed_and_found_unchanged_by_the_next_run(router, corpus, documents):
    """Texts and attributes are all there; a second run sends nothing; a changed file is noticed."""
    ended = matryoshka(*command(router, corpus, name="whole"))
    assert ended.returncode == 0, ended.stderr
    assert "1 files of other kinds are left out" in ended.stdout
    made = "whole is made, with the model matryoshka-MiniLM-L6-v2 at 64, 384\n"
    assert made in ended.stdout
    assert "600 documents in" in ended.stdout
    texts, attributes = stored(router, "whole")
    assert texts == documents
    first = next(iter(documents))
    assert attributes[first] == {"place": 0, "package": first.split(".")[0]}

    ended = matryoshka(*command(router, corpus, name="whole"))
    assert "600 documents are acknowledged already\n0 documents in" in ended.stdout
    assert made not in ended.stdout

    with (corpus / "deep" / "b.jsonl").open("a") as file:
        file.write('{"id": "new", "text": "one more"}\n')
    ended = matryoshka(*command(router, corpus, name="whole"))
    assert "corpus/deep/b.jsonl has changed: it is read from the beginning" in ended.stdout
    assert "201 documents in" in ended.stdout
    assert stored(router, "whole")[0] == documents | {"new": "one more"}

    ended = matryoshka(*command(router, corpus, "--id-field", "id", name="whole"))
    assert "has changed" not in ended.stdout
    assert (
        "2 files were read with no options for fields before, and now with --id-field id: read "
        "from the beginning" in ended.stdout
    )


def test_kill_9_of_the_command_loses_and_doubles_nothing(router, corpus, documents):
    """The next run goes on behind the last acknowledged batch."""
    before = num_written(router)
    running = start(command(router, corpus))
    wait_acknowledged(corpus, 100, running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    journal = Journal.open(corpus.parent / "docs.index-state", "docs")
    acknowledged = journal.num_documents
    assert 100 <= acknowledged < NUM_DOCUMENTS

    ended = matryoshka(*command(router, corpus))
    assert ended.returncode == 0, ended.stderr
    assert f"{acknowledged} documents are acknowledged already" in ended.stdout
    assert f"{NUM_DOCUMENTS - acknowledged} documents in" in ended.stdout
    assert stored(router)[0] == documents
    assert num_written(router) - before <= NUM_DOCUMENTS + WINDOW * BATCH
    assert [path.name for path in corpus.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("killed", ["router", "encoder"])
def test_kill_9_of_a_service_is_waited_for(tmp_path, corpus, documents, killed):
    """Started again at the same place, it is found, and the command goes on by itself."""
    encoder = serve(tmp_path / "services", "serve", "encoder")
    address = {"MATRYOSHKA_ROUTER_ENCODER_ADDRESS": encoder.grpc}
    router = serve(tmp_path / "services", "serve", "router", **address)
    services = {"router": router, "encoder": encoder}
    running = None
    try:
        stay_at(services[killed])
        running = start(command(router, corpus))
        wait_acknowledged(corpus, 100, running)
        services[killed].kill()
        time.sleep(1)
        assert running.poll() is None
        services[killed].start()
        output, _ = running.communicate(timeout=120)
        assert running.returncode == 0, output
        assert "trying again in" in output
        assert stored(router)[0] == documents
    finally:
        if running and running.poll() is None:
            running.kill()
            running.communicate()
        codes = [process.stop() for process in (router, encoder)]
    assert codes == [0, 0]


def test_all_that_is_wrong_is_told_before_anything_is_written(router, tmp_path):
    """File, line and reason of each; with --skip-bad the others are indexed."""
    folder = tmp_path / "bad"
    folder.mkdir()
    good = '{"id": "same", "text": "fine", "attributes": {"none": null}}'
    lines = ['{"text": " "}', "{", "[]", '{"txt": "x"}', good, '{"text": "x", "id": 1.5}', good]
    (folder / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    (folder / "b.csv").write_text('text,attributes\n"a, b",\nc\n"no end')
    arguments = command(router, folder, name="bad")
    ended = matryoshka(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == "9 rows are no documents:"
    for where, reason in {
        "a.jsonl:1": "the text is empty",
        "a.jsonl:2": "must be one JSON object",
        "a.jsonl:3": "must be an object such as",
        "a.jsonl:4": "has no field 'text' for the text; it has txt",
        "a.jsonl:6": "'id' must be a string or an integer",
        "a.jsonl:7": "the id 'same' is already that of bad/a.jsonl:5",
        "a.jsonl:8": "must be one JSON object",
        "b.csv:3": "has 1 fields, and the header 2",
        "b.csv:4": "the rest of the file cannot be read",
    }.items():
        assert re.search(rf"^  bad/{where} .*{reason}", ended.stderr, re.M), (where, ended.stderr)
    with grpc.insecure_channel(router.grpc) as channel:
        listed = pb_grpc.RouterServiceStub(channel).ListCollections(pb.ListCollectionsRequest())
    assert "bad" not in {collection.name for collection in listed.collections}

    ended = matryoshka(*arguments, "--skip-bad")
    assert ended.returncode == 0, ended.stderr
    assert "8 rows are no documents" in ended.stdout  # of two with one id the last is kept
    assert sorted(stored(router, "bad")[0].values()) == ["a, b", "fine"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody", "README.md"], "no collection 'nobody'; --create makes it"),
        (["docs", "no-such-file"], "neither a file nor a folder"),
        (["docs", "Makefile"], "files must end in .jsonl"),
        (["docs", "README.md", "--create", "--dims", "64:int9"], "codes are none, int8"),
        (["docs", "README.md", "--state", "README.md"], "is not a progress file"),
        (["docs", "README.md", "./README.md"], "are both known as README.md"),
        (["new", "README.md", "--create", "--attribute", "yeer:int"], "has a field named 'yeer'"),
        (["new", "README.md", "--create", "--attribute", "year:date"], "FIELD or FIELD:string"),
        (["new/one", "README.md"], "the collection's name must be 1 to 255 letters"),
        (["new", "README.md", "--create", "--dims", "64,9999"], "between 1 and 384"),
        (["new", "README.md", "--create", "--words", "klingon"], "must be one of any, arabic"),
        (["new", "README.md", "--state", "nowhere/x"], "--state: there is no folder nowhere"),
        (["new", "README.md", "--router", "localhost"], "--router must be host:port of gRPC"),
    ],
)
def test_a_mistake_is_one_sentence(router, tmp_path, arguments, says):
    """Not a traceback, nothing is written over, and no progress file is left behind."""
    if "--state" not in arguments:
        arguments = [*arguments, "--state", str(tmp_path / "state")]
    ended = matryoshka("index", "--router", router.grpc, *arguments, *create(arguments))
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def create(arguments):
    return [] if "nobody" in arguments or "--create" in arguments else ["--create"]


def test_a_router_that_is_not_there_is_told_at_once(tmp_path):
    """A wrong address is found before the corpus is read."""
    (tmp_path / "a.txt").write_text("a paragraph")
    ended = matryoshka("index", "docs", str(tmp_path), "--router", "127.0.0.1:9")
    assert ended.returncode == 1
    assert "the router at 127.0.0.1:9 cannot be reached" in ended.stderr
