"""The official `openai` package drives files, vector stores and search unchanged."""

import sqlite3
import time
from pathlib import Path

import openai
import pytest

from tests.conftest import serve
from tests.router.pdfs import write_pdf

DOLLS = b"# Nested dolls\n\nA matryoshka is a wooden doll with smaller dolls inside.\n"
CARS = b"# Cars\n\nAn engine turns the four wheels of a car.\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def router_process(encoder_process, tmp_path_factory):
    process = serve(
        tmp_path_factory.mktemp("router"),
        "serve",
        "router",
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder_process.grpc,
        MATRYOSHKA_ROUTER_SWEEP_S="0.2",
        MATRYOSHKA_ROUTER_MAX_FILE_BYTES="3000000",
    )
    yield process
    assert process.stop() == 0
    log = process.log_path.read_text()
    assert "Traceback" not in log
    assert "wooden" not in log, "what users send stands in no log"


@pytest.fixture
def client(router_process):
    with openai.OpenAI(
        base_url=f"{router_process.http}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
def store(client):
    created = client.vector_stores.create(name="docs")
    yield created
    client.vector_stores.delete(created.id)


def put(client, store, filename, data, **options):
    return client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=(filename, data), poll_interval_ms=50, **options
    )


def names(results):
    return [result.filename for result in results]


def test_a_text_is_uploaded_polled_and_found(client, store):
    """The first thing that a user does works, and the best answer comes first."""
    cars = put(client, store, "cars.md", CARS)
    dolls = put(client, store, "dolls.md", DOLLS)
    assert (cars.status, dolls.status, dolls.last_error) == ("completed", "completed", None)
    found = client.vector_stores.search(store.id, query="wooden toy")
    assert names(found) == ["dolls.md", "cars.md"]
    assert found.data[0].file_id == dolls.id
    assert found.data[0].content[0].text == DOLLS.decode().strip("\n") + "\n"
    assert 1 >= found.data[0].score > found.data[1].score >= 0
    assert found.to_dict()["search_query"] == ["wooden toy"]
    assert found.to_dict()["has_more"] is False


@pytest.mark.parametrize(
    ("filename", "data", "says"),
    [
        ("a.html", b"<p>A <b>wooden</b> doll</p><script>var car</script>", "A wooden doll"),
        ("a.json", b'{"toy": {"name": "wooden doll"}}', "toy.name: wooden doll"),
        ("a.jsonl", b'{"a": "doll"}\n{"a": "car"}', "a: doll\n\na: car"),
        ("a.py", b"def doll():\n    return 'wood'\n", "def doll():\n    return 'wood'\n"),
        ("a.pdf", write_pdf("A wooden doll", "A car"), "A wooden doll\fA car"),
    ],
)
def test_every_kind_of_file_becomes_text(client, store, filename, data, says):
    """What is searched is what a reader would see; PDFs page by page."""
    file = put(client, store, filename, data)
    assert (file.status, file.last_error) == ("completed", None)
    (found,) = client.vector_stores.search(store.id, query="wooden doll")
    assert found.content[0].text == says
    content = client.vector_stores.files.content(file.id, vector_store_id=store.id)
    assert "\f".join(part.text for part in content) == says


@pytest.mark.parametrize(
    ("filename", "data", "code"),
    [
        ("a.docx", b"PK\x03\x04", "unsupported_file"),
        ("a.pdf", b"%PDF-1.4 broken", "invalid_file"),
        ("a.txt", b"\xff\xff", "invalid_file"),
        ("a.json", b"{", "invalid_file"),
    ],
)
def test_a_file_that_cannot_be_read_fails_with_its_reason(client, store, filename, data, code):
    """The code is OpenAI's; the store goes on, and counts it as failed."""
    file = put(client, store, filename, data)
    assert (file.status, file.last_error.code) == ("failed", code)
    assert file.last_error.message
    seen = client.vector_stores.retrieve(store.id)
    assert (seen.status, seen.file_counts.failed, seen.file_counts.total) == ("completed", 1, 1)


def test_filters_choose_by_attributes(client, store):
    """Comparisons, nesting, and keys of any letters."""
    put(client, store, "cars.md", CARS, attributes={"lang": "en", "year": 1999, "in stock": True})
    put(client, store, "dolls.md", DOLLS, attributes={"lang": "ru", "year": 1890})

    def found(filters):
        return sorted(names(client.vector_stores.search(store.id, query="toy", filters=filters)))

    def compare(kind, key, value):
        return {"type": kind, "key": key, "value": value}

    assert found(compare("eq", "lang", "en")) == ["cars.md"]
    assert found(compare("ne", "lang", "en")) == ["dolls.md"]
    assert found(compare("gte", "year", 1890)) == ["cars.md", "dolls.md"]
    assert found(compare("lt", "year", 1890)) == []
    assert found(compare("in", "lang", ["ru", "de"])) == ["dolls.md"]
    assert found(compare("nin", "lang", ["ru", "de"])) == ["cars.md"]
    assert found(compare("eq", "in stock", True)) == ["cars.md"]
    either = {"type": "or", "filters": [compare("gt", "year", 1990), compare("eq", "lang", "ru")]}
    assert found({"type": "and", "filters": [either, compare("lte", "year", 1900)]}) == ["dolls.md"]


def test_attributes_can_be_changed(client, store):
    """The file shows them at once, and searches filter by them shortly after."""
    file = put(client, store, "dolls.md", DOLLS, attributes={"lang": "ru"})
    for attributes in ({"lang": "en", "new": 1}, {"lang": "en", "new": True}):
        changed = client.vector_stores.files.update(
            file.id, vector_store_id=store.id, attributes=attributes
        )
        assert changed.attributes == attributes
    is_new = {"type": "eq", "key": "new", "value": True}
    wait_until(lambda: client.vector_stores.search(store.id, query="x", filters=is_new).data)
    is_english = {"type": "eq", "key": "lang", "value": "en"}
    wait_until(lambda: client.vector_stores.search(store.id, query="x", filters=is_english).data)
    not_english = {"type": "ne", "key": "lang", "value": "en"}
    assert not client.vector_stores.search(store.id, query="x", filters=not_english).data
    assert client.vector_stores.files.retrieve(file.id, vector_store_id=store.id) == changed


def wait_until(happens, wait_s=10.0):
    deadline = time.monotonic() + wait_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_several_queries_threshold_and_number(client, store):
    """A chunk has its best score of all queries; too far ones and too many are left out."""
    put(client, store, "cars.md", CARS)
    put(client, store, "dolls.md", DOLLS)
    queries = ["wooden toy", "engine and wheels"]
    both = client.vector_stores.search(store.id, query=queries, rewrite_query=True)
    assert sorted(names(both)) == ["cars.md", "dolls.md"]
    for query in queries:
        best = client.vector_stores.search(store.id, query=query).data[0]
        assert any(abs(best.score - result.score) < 1e-6 for result in both)
    one = client.vector_stores.search(store.id, query=queries, max_num_results=1)
    assert names(one) == names(both)[:1]
    options = {"score_threshold": both.data[0].score - 1e-6, "ranker": "none"}
    near = client.vector_stores.search(store.id, query=queries, ranking_options=options)
    assert names(near) == names(both)[:1]


def test_routing_says_how_a_search_went(client, store):
    """With `extra_body` a caller gives a plan, and sees its stages, times and recall."""
    put(client, store, "readme.md", (ROOT / "README.md").read_bytes())
    plan = [{"dim": 96, "candidates": 20}, {"dim": 384}]
    routing = {"plan": plan, "explain": True, "measure_recall": True}
    found = client.vector_stores.search(
        store.id, query="train", max_num_results=5, extra_body={"routing": routing}
    )
    said = found.to_dict()["routing"]
    assert [stage["dim"] for stage in said["plan"]] == [96, 384]
    assert [stage["candidates"] for stage in said["stages"]] == [20, 5]
    assert 0 < said["recall"] <= 1
    assert said["search_seconds"] > 0
    assert said["encode_seconds"] > 0
    target = {"recall_target": 1.0, "slice": "tenant-a"}
    certain = client.vector_stores.search(store.id, query="x", extra_body={"routing": target})
    promise = certain.to_dict()["routing"]["promise"]
    assert (promise["recall"], promise["met"]) == (1.0, True)
    plain = client.vector_stores.search(store.id, query="train", max_num_results=5)
    assert "routing" not in plain.to_dict()


def test_words_are_searched_beside_vectors(client, store):
    """OpenAI's `hybrid_search`, and `routing.hybrid`: a part's number, which no vector knows."""
    put(client, store, "cars.md", CARS + b"\n\nAsk for part QX-4471 at the counter.")
    put(client, store, "dolls.md", DOLLS)
    words_only = {"hybrid_search": {"embedding_weight": 0.0, "text_weight": 2.0}}
    found = client.vector_stores.search(store.id, query="QX-4471", ranking_options=words_only)
    assert found.data[0].filename == "cars.md"
    assert found.data[0].score == pytest.approx(1.0)
    routing = {"hybrid": {"fusion": "score", "weight": 0.5}}
    both = client.vector_stores.search(
        store.id, query="wooden QX-4471", extra_body={"routing": routing}
    )
    assert sorted(set(names(both))) == ["cars.md", "dolls.md"]
    assert both.to_dict()["routing"]["text"]["candidates"] >= 1


def test_batches_of_files(client, store):
    """Uploaded together, polled, counted and listed."""
    files = [("one.txt", b"one doll"), ("two.txt", b"two dolls"), ("bad.exe", b"MZ")]
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=files, poll_interval_ms=50
    )
    assert batch.status == "completed"
    assert (batch.file_counts.completed, batch.file_counts.failed, batch.file_counts.total) == (
        2, 1, 3,
    )  # fmt: skip
    listed = list(
        client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=2)
    )
    assert len(listed) == 3
    failed = client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="failed"
    )
    assert [file.last_error.code for file in failed] == ["unsupported_file"]

    uploaded = client.files.create(file=("three.txt", b"three dolls"), purpose="assistants")
    chunking = {
        "type": "static",
        "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0},
    }
    each = {"file_id": uploaded.id, "attributes": {"n": 3}, "chunking_strategy": chunking}
    more = client.vector_stores.file_batches.create_and_poll(
        store.id, files=[each], poll_interval_ms=50
    )
    assert more.file_counts.completed == 1
    file = client.vector_stores.files.retrieve(uploaded.id, vector_store_id=store.id)
    assert file.attributes == {"n": 3}
    assert file.chunking_strategy.to_dict() == chunking
    assert client.vector_stores.file_batches.cancel(more.id, vector_store_id=store.id) == more


def test_deleting_a_file_takes_its_chunks_away(client, store):
    """From the store alone, or with the upload from every store."""
    kept = put(client, store, "cars.md", CARS)
    gone = put(client, store, "dolls.md", DOLLS)
    deleted = client.vector_stores.files.delete(gone.id, vector_store_id=store.id)
    assert (deleted.id, deleted.deleted) == (gone.id, True)
    assert names(client.vector_stores.search(store.id, query="doll")) == ["cars.md"]
    assert client.vector_stores.retrieve(store.id).file_counts.total == 1
    assert client.files.retrieve(gone.id).filename == "dolls.md"
    again = client.vector_stores.files.create_and_poll(
        gone.id, vector_store_id=store.id, poll_interval_ms=50
    )
    assert again.status == "completed"
    assert len(client.vector_stores.search(store.id, query="doll").data) == 2
    client.files.delete(gone.id)
    assert names(client.vector_stores.search(store.id, query="doll")) == ["cars.md"]
    assert [file.id for file in client.vector_stores.files.list(store.id)] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        client.files.content(gone.id)


def test_putting_a_file_in_again_changes_only_what_is_asked(client, store):
    """The same again does nothing; other chunks take the place of the ones before."""
    text = b"word " * 400
    file = put(client, store, "a.txt", text)
    same = client.vector_stores.files.create(store.id, file_id=file.id)
    assert same.status == "completed"
    before = len(client.vector_stores.search(store.id, query="word", max_num_results=50).data)
    again = client.vector_stores.files.create_and_poll(
        file.id,
        vector_store_id=store.id,
        poll_interval_ms=50,
        chunking_strategy={
            "type": "static",
            "static": {"max_chunk_size_tokens": 300, "chunk_overlap_tokens": 0},
        },
    )
    assert again.status == "completed"
    after = client.vector_stores.search(store.id, query="word", max_num_results=50).data
    assert before == 3
    assert len(after) == 2


def test_a_store_is_described_changed_and_counted(client):
    """Name, description, metadata and expiry; usage is what its chunks take."""
    uploaded = client.files.create(file=("a.txt", b"a doll"), purpose="user_data")
    store = client.vector_stores.create(
        name="first",
        description="toys",
        metadata={"team": "a"},
        file_ids=[uploaded.id],
        expires_after={"anchor": "last_active_at", "days": 7},
        extra_body={"model": "matryoshka-MiniLM-L6-v2"},
    )
    assert store.expires_at == store.last_active_at + 7 * 86_400
    wait_until(lambda: client.vector_stores.retrieve(store.id).status == "completed")
    seen = client.vector_stores.retrieve(store.id)
    assert seen.usage_bytes == len(b"a doll") + 4 * 384
    assert seen.to_dict()["description"] == "toys"
    changed = client.vector_stores.update(
        store.id, name="second", metadata={"team": "b"}, expires_after=None
    )
    assert (changed.name, changed.metadata, changed.expires_at) == ("second", {"team": "b"}, None)
    assert client.vector_stores.retrieve(store.id) == changed
    client.vector_stores.delete(store.id)
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)
    assert client.files.retrieve(uploaded.id).id == uploaded.id


def test_lists_are_paged_both_ways(client):
    """Every object once, in the wanted order; `before` gives the page in front."""
    made = [client.vector_stores.create(name=f"store {number}") for number in range(5)]
    ids = [store.id for store in made]
    newest_first = [store.id for store in client.vector_stores.list(limit=2) if store.id in ids]
    assert newest_first == ids[::-1]
    oldest_first = [store.id for store in client.vector_stores.list(limit=2, order="asc")]
    assert [id_ for id_ in oldest_first if id_ in ids] == ids
    page = client.vector_stores.list(before=ids[0], limit=2)
    assert [store.id for store in page.data] == [ids[2], ids[1]]
    assert page.to_dict()["first_id"] == ids[2]
    assert page.has_more
    for store in made:
        client.vector_stores.delete(store.id)


def test_uploads_are_kept_listed_and_given_back(client):
    """Any bytes come back as they were; lists are by purpose; a file may expire."""
    data = bytes(range(256)) * 4000
    file = client.files.create(
        file=("../ünï \N{SNOWMAN}.bin", data),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.filename, file.bytes, file.purpose) == ("ünï ☃.bin", len(data), "fine-tune")
    assert file.expires_at in (file.created_at + 3600, file.created_at + 3601)
    assert client.files.wait_for_processing(file.id).status == "processed"
    answer = client.files.content(file.id)
    assert answer.read() == data
    assert answer.response.headers["x-content-type-options"] == "nosniff"
    other = client.files.create(file=("b.txt", b"b"), purpose="assistants")
    assert [f.id for f in client.files.list(purpose="fine-tune")] == [file.id]
    listed = [f.id for f in client.files.list(limit=1, order="asc")]
    assert listed.index(file.id) < listed.index(other.id)
    assert client.files.delete(file.id).deleted
    assert not client.files.list(purpose="fine-tune").data


def test_what_has_expired_is_refused(client, router_process, tmp_path):
    """A store shows that it has, keeps its list of files, and holds nothing; a file is gone."""
    store = client.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1})
    file = put(client, store, "dolls.md", DOLLS)
    expiring = client.files.create(
        file=("a.txt", b"a"),
        purpose="assistants",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    (path,) = router_process.log_path.parent.glob("*/router.sqlite")
    with sqlite3.connect(path) as database:
        database.execute(
            "update vector_stores set last_active_at = ? where id = ?",
            (time.time() - 86_401, store.id),
        )
        database.execute("update uploaded_files set expires_at = 1 where id = ?", (expiring.id,))
    database.close()
    assert client.vector_stores.retrieve(store.id).status == "expired"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(expiring.id)
    for call in (
        lambda: client.vector_stores.search(store.id, query="doll"),
        lambda: client.vector_stores.files.create(store.id, file_id=file.id),
    ):
        with pytest.raises(openai.BadRequestError, match="expired"):
            call()
    wait_until(lambda: client.vector_stores.retrieve(store.id).usage_bytes == 0)
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.vector_stores.update(store.id, expires_after={"anchor": "last_active_at", "days": 2})
    assert [f.id for f in client.vector_stores.files.list(store.id)] == [file.id]
    assert client.vector_stores.delete(store.id).deleted


async def test_the_async_client_works_too(router_process):
    """One whole way with `AsyncOpenAI`."""
    async with openai.AsyncOpenAI(
        base_url=f"{router_process.http}/v1", api_key="none", max_retries=0
    ) as client:
        store = await client.vector_stores.create()
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("dolls.md", DOLLS)
        )
        assert file.status == "completed"
        found = await client.vector_stores.search(store.id, query="toy")
        assert [result.filename for result in found.data] == ["dolls.md"]
        await client.vector_stores.delete(store.id)
