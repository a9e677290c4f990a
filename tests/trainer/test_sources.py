"""Where data may come from: the operator's list, and nothing else."""

import os

import fsspec
import pytest

from services.shared.blobs import Blobs
from services.shared.database import Database
from services.shared.errors import InvalidRequest, PermissionDenied, TooLarge, TooSlow
from services.shared.files import File, Files
from services.trainer.data.allowed import read_address, read_list
from services.trainer.data.bucket import Buckets
from services.trainer.data.dataset import read_dataset
from services.trainer.data.folder import list_folder
from services.trainer.data.sources import Sources, without_query
from services.trainer.jobs.spec import Mining
from services.trainer.openai_body import read_create
from services.trainer.settings import TrainerSettings
from tests.trainer.test_download import answer, serving

LINES = b'{"anchor": "a", "positive": "b"}\n' * 4


@pytest.fixture
def files(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'files.sqlite'}")
    database.open()
    yield Files(database, Blobs(str(tmp_path / "blobs"), 1000))
    database.close()


@pytest.fixture
def sources(tmp_path, files):
    def make(*listed, **settings):
        settings = TrainerSettings(
            data_dir=tmp_path, sources=",".join(map(str, listed)), max_file_bytes=1000, **settings
        )
        return Sources(files, settings)

    return make


def test_a_path_is_read_below_a_listed_folder_only(tmp_path, sources):
    """Not beside it, not through a link, not through steps up."""
    listed, beside = tmp_path / "sets", tmp_path / "sets-secret"
    for folder in (listed, beside):
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(LINES)
    (listed / "link.jsonl").symlink_to(beside / "a.jsonl")
    (listed / "folder").symlink_to(beside)
    os.mkfifo(listed / "pipe.jsonl")
    found = sources(listed)
    (file,) = found.files(f"{listed}/a.jsonl", tmp_path, "training_file")
    assert file.path.read_bytes() == LINES
    assert file.name == found.name(f"{listed}/a.jsonl", "training_file") == "a.jsonl"
    for path in (
        f"{beside}/a.jsonl", f"{listed}/../sets-secret/a.jsonl", f"{listed}/link.jsonl",
        f"{listed}/folder", f"{listed}/gone.jsonl", "/etc/passwd", f"{listed}/\0", "/" + "x" * 300,
    ):  # fmt: skip
        with pytest.raises(PermissionDenied, match="MATRYOSHKA_TRAINER_SOURCES"):
            found.files(path, tmp_path, "training_file")
    with pytest.raises(InvalidRequest, match="plain file"):
        found.files(f"{listed}/pipe.jsonl", tmp_path, "training_file")
    with pytest.raises(InvalidRequest, match="at most 4096"):
        found.files("/" + "x" * 5000, tmp_path, "training_file")
    (listed / "a.jsonl").write_bytes(LINES * 20)
    for path in (f"{listed}/a.jsonl", str(listed)):
        (listed / "link.jsonl").unlink(missing_ok=True)
        with pytest.raises(TooLarge, match="1000 bytes"):
            found.files(path, tmp_path, "training_file")


def test_nothing_is_listed_by_default(tmp_path, files):
    """Only uploads."""
    found = Sources(files, TrainerSettings(data_dir=tmp_path))
    for reference in (str(tmp_path), "https://example.com/a", "s3://bucket/a"):
        with pytest.raises(PermissionDenied):
            found.files(reference, tmp_path, "training_file")


def test_a_file_of_a_listed_server_is_fetched(tmp_path, sources):
    """Its name is the path's last part, never its query."""
    with serving(lambda path, c: c.sendall(answer(body=LINES))) as (port, requests):
        found = sources(f"http://127.0.0.1:{port}/sets", source_networks="127.0.0.1/32")
        url = f"http://127.0.0.1:{port}/sets/my%20a.jsonl?key=secret"
        (file,) = found.files(url, tmp_path, "training_file")
        assert (file.name, file.path.read_bytes()) == ("my a.jsonl", LINES)
        for url in (
            f"http://127.0.0.1:{port}/setsx/a", f"http://127.0.0.1:{port}/",
            f"https://127.0.0.1:{port}/sets/a", "http://127.0.0.1/sets/a",
        ):  # fmt: skip
            with pytest.raises(PermissionDenied):
                found.files(url, tmp_path, "training_file")
        for url in (
            f"http://127.0.0.1:{port}/sets/../a", f"http://127.0.0.1:{port}/sets/%2E%2e/a",
            f"http://me:secret@127.0.0.1:{port}/sets/a", f"ftp://127.0.0.1:{port}/sets/a",
            f"http://127.0.0.1:{port}/sets/a#b", "http://127.0.0.1:x/sets/a", "http://[::1/sets",
            f"http://127.0.0.1:{port}/sets/\\..\\a", f"http://127.0.0.1:{port}/sets/\r\nX: y",
        ):  # fmt: skip
            with pytest.raises(InvalidRequest, match="plain http, https or s3") as caught:
                found.files(url, tmp_path, "training_file")
            assert "secret" not in caught.value.message
    assert len(requests) == 1


def test_addresses_are_compared_part_by_part():
    """A bucket's name counts with its capitals, a host's without; the port is the scheme's."""
    allowed = read_list("https://Data.Example.com/a/, s3://Bucket/train", None)
    assert allowed.has_address(read_address("https://data.example.com:443/a/b.csv"))
    assert allowed.has_address(read_address("s3://Bucket/train/"))
    for url in (
        "https://data.example.com:444/a/b", "https://data.example.com.evil.com/a/b",
        "http://data.example.com/a/b", "s3://bucket/train/a", "s3://Bucket/trains",
    ):  # fmt: skip
        assert not allowed.has_address(read_address(url))


@pytest.fixture
def store():
    files = fsspec.filesystem("memory")
    files.pipe({"/bucket/set/train-0.jsonl": LINES, "/bucket/set/data/test.jsonl": LINES})
    yield files
    files.rm("/bucket", recursive=True)


def test_files_of_a_bucket_are_fetched(tmp_path, store):
    """One, or a folder of them, through fsspec; within the bounds of size and time."""
    buckets = Buckets(1000, 10.0, lambda: store)
    buckets.fetch(read_address("s3://bucket/set/train-0.jsonl"), tmp_path / "x", "training_file")
    assert (tmp_path / "x").read_bytes() == LINES
    (tmp_path / "all").mkdir()
    buckets.fetch(read_address("s3://bucket/set/"), tmp_path / "all", "training_file")
    files = list_folder(tmp_path / "all", "training_file")
    assert [file.name for file in files] == ["train-0.jsonl"]
    assert len(read_dataset(files, {}, "training_file").examples) == 4
    for gone in ("s3://bucket/gone", "s3://bucket/set"):  # the other is a folder
        with pytest.raises(InvalidRequest, match="no such file"):
            buckets.fetch(read_address(gone), tmp_path / "y", "training_file")
    with pytest.raises(TooLarge, match="200 bytes"):
        Buckets(200, 10.0, lambda: store).fetch(
            read_address("s3://bucket/set/"), tmp_path / "all", "training_file"
        )
    with pytest.raises(TooSlow, match="within 1e-09 s"):
        Buckets(1000, 1e-9, lambda: store).fetch(
            read_address("s3://bucket/set/train-0.jsonl"), tmp_path / "y", "training_file"
        )


def test_a_trainer_without_s3fs_says_so(tmp_path):
    """To the caller, who can ask the operator."""

    def missing():
        raise ImportError

    with pytest.raises(InvalidRequest, match="install s3fs"):
        Buckets(1000, 1.0, missing).fetch(read_address("s3://b/x"), tmp_path / "x", "training_file")


def test_an_error_of_the_store_is_told_without_its_words(tmp_path):
    """As those of botocore, which derive from nothing but Exception."""

    class NoCredentials(Exception):
        pass

    def without_keys():
        raise NoCredentials("https://secret")

    with pytest.raises(InvalidRequest, match="cannot be read .NoCredentials.") as caught:
        Buckets(9, 1.0, without_keys).fetch(
            read_address("s3://b/x"), tmp_path / "x", "training_file"
        )
    assert "secret" not in caught.value.message


async def test_an_upload_is_found_by_its_id(tmp_path, sources, files):
    """Under the name that it came with, which tells its format."""

    async def pieces():
        yield b"query,answer\n" + b"a,b\n" * 4

    blob = await files.blobs.store(pieces())
    await files.add(
        File(id=blob.id, filename="a.csv", purpose="fine-tune", num_bytes=1, created_at=0)
    )
    found = sources().files(blob.id, tmp_path, "training_file")
    assert len(read_dataset(found, {}, "training_file").examples) == 4
    assert found[0].name == "a.csv"


def test_what_is_shown_of_an_address_holds_no_signature():
    """Only its path."""
    assert without_query("https://host/a?key=secret") == "https://host/a"
    assert without_query("/sets/what?") == "/sets/what?"


def test_openais_body_takes_columns_and_mining():
    """As OpenAI's SDK sends them from `extra_body`; what is wrong is refused with its field."""
    body = {"model": "", "training_file": "https://host/a?key=s"}
    wanted = read_create(
        body | {"columns": {"q": "anchor", "a": "positive"}, "mine_negatives": {"margin": 0.9}}
    )
    assert wanted.columns == {"q": "anchor", "a": "positive"}
    assert wanted.mining == Mining(negatives=4, margin=0.9)
    assert read_create(body).mining is None
    assert read_create(body).digest() != wanted.digest()
    for field, value in (
        ("columns", {"q": 1}),
        ("columns", ["q"]),
        ("mine_negatives", {"negatives": 0}),
        ("mine_negatives", {"margin": 1.5}),
        ("mine_negatives", {"depth": 3}),
        ("mine_negatives", 4),
    ):
        with pytest.raises(InvalidRequest, match=field) as caught:
            read_create(body | {field: value})
        assert caught.value.param == field
    with pytest.raises(InvalidRequest, match="unknown setting 'depth'; there are: negatives and"):
        read_create(body | {"mine_negatives": {"margin": 0.9, "depth": 3}})
