"""Keys of tenants against `matryoshka up`: the official client, gRPC, and keys that change."""

import hashlib
import json
import subprocess
import sys
import time

import grpc
import httpx
import openai
import pytest

from services.shared.pb import router_pb2, router_pb2_grpc, trainer_pb2, trainer_pb2_grpc
from tests.conftest import serve
from tests.e2e.planted import TEXT, WRONG_KEY, ask_over_grpc, ask_over_http

PLANTED_KEY = "k_planted_5f0c"


def write(path, **tenants):
    """A key for each name: its tenant, or None for an operator's."""
    new = path.with_suffix(".new")
    new.write_text("".join(
        json.dumps({"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()}
                   | ({"tenant": tenant} if tenant else {})) + "\n"
        for name, tenant in tenants.items()
    ))  # fmt: skip
    new.replace(path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    write(path, ops=None, k_acme="acme", k_globex="globex", **{PLANTED_KEY: None})
    return path


@pytest.fixture(scope="module")
def process(keys, tmp_path_factory):
    # No key of the operator's own: the router still reaches the encoder beside it.
    folder = tmp_path_factory.mktemp("up")
    started = serve(folder, "up", MATRYOSHKA_UP_KEYS_FILE=str(keys))
    yield started
    assert started.stop() == 0


def connect(process, key):
    return openai.OpenAI(base_url=f"{process.http}/v1", api_key=key, max_retries=0)


def test_each_tenant_has_its_own_files_and_stores(process):
    """Uploaded, put into a store and searched by one; not there for the other."""
    with connect(process, "k_acme") as acme, connect(process, "k_globex") as globex:
        assert acme.embeddings.create(model="default", input="x", dimensions=64).data
        store = acme.vector_stores.create(name="docs")
        file = acme.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("a.txt", b"A wooden doll."), poll_interval_ms=50
        )
        assert file.status == "completed"
        assert acme.vector_stores.search(store.id, query="doll").data[0].filename == "a.txt"
        assert not globex.files.list().data
        assert not globex.vector_stores.list().data
        for call in (
            lambda: globex.vector_stores.search(store.id, query="doll"),
            lambda: globex.files.content(file.id),
            lambda: globex.vector_stores.delete(store.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
    with connect(process, "ops") as ops:
        assert ops.vector_stores.search(store.id, query="doll").data
    with connect(process, "none") as nobody, pytest.raises(openai.AuthenticationError):
        nobody.files.list()


def test_operators_calls_are_refused_to_tenants(process):
    """Of the router and of the trainer, over gRPC."""
    metadata = (("authorization", "Bearer k_acme"),)
    with grpc.insecure_channel(process.grpc) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
        for call, request in (
            (router.CreateCollection, router_pb2.CreateCollectionRequest(name="mine")),
            (trainer.ListJobs, trainer_pb2.ListJobsRequest()),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, metadata=metadata)
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_what_is_planted_is_told_nowhere(process):
    """A key and a text go to every service, right and wrong: no log, metric or error has them."""
    planted = (("authorization", f"Bearer {PLANTED_KEY}"),)
    said = []
    with httpx.Client(base_url=process.http, headers=dict(planted), timeout=120) as http:
        for answer in ask_over_http(http):
            if not isinstance(answer, httpx.Response):
                said.append(json.dumps(answer))
            elif answer.status_code >= 400:
                said.append(f"{answer.text} {answer.headers}")
        said.append(http.get("/metrics").text)
    with grpc.insecure_channel(process.grpc) as channel:
        said += ask_over_grpc(channel, planted)
    logs = [process.log_path, *process.log_path.parent.rglob("log.txt")]
    assert len(logs) >= 2, "the service's and the job's"
    said += [path.read_text() for path in logs]
    assert len(said) >= 40
    for secret in (PLANTED_KEY, WRONG_KEY):
        digest = hashlib.sha256(secret.encode()).hexdigest()
        assert not [text for text in said if secret in text or digest in text]
    assert not [text for text in said if TEXT in text]


THINGS = ("house", "river", "stone", "tree", "bird", "lamp", "cloud", "shoe")


@pytest.fixture(scope="module")
def library(process):
    """A collection that the operator and a tenant have written points to."""
    with grpc.insecure_channel(process.grpc) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        keys = {key: (("authorization", f"Bearer {key}"),) for key in ("ops", "k_acme")}
        request = router_pb2.CreateCollectionRequest(name="library", model="default")
        router.CreateCollection(request, metadata=keys["ops"])
        for key, count in (("ops", 12), ("k_acme", 7)):
            points = [
                router_pb2.Point(id=str(i), text=f"{key} tells of {i} birds") for i in range(count)
            ]
            request = router_pb2.UpsertRequest(collection="library", points=points)
            list(router.Upsert(iter([request]), metadata=keys[key]))
    return "library"


def start_job(client, **mining):
    lines = [
        json.dumps({"anchor": f"where is the {colour} {thing}", "positive": f"{thing}, {colour}"})
        for colour in ("red", "green", "blue")
        for thing in THINGS
    ]
    file = client.files.create(file=("pairs.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    return client.fine_tuning.jobs.create(
        model="", training_file=file.id,
        extra_body={"matryoshka": {"steps": 2}, "mine_negatives": mining},
    )  # fmt: skip


def wait_for_events(client, job):
    while (found := client.fine_tuning.jobs.retrieve(job.id)).status in ("queued", "running"):
        time.sleep(0.2)
    assert found.status == "succeeded", found.error
    return [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data]


@pytest.mark.parametrize(("key", "looked_at"), [("ops", 19), ("k_acme", 7)])
def test_negatives_come_from_a_collection(process, library, key, looked_at):
    """An operator's from all points, a tenant's from its own."""
    with connect(process, key) as client:
        job = start_job(client, collection=library, negatives=3, margin=1.0)
        told = wait_for_events(client, job)
        (mined,) = (message for message in told if "negatives mined" in message)
        assert f"of {looked_at} texts found in the collection were taken" in mined
        assert any(message.startswith("searched the collection: ") for message in told)
        again = client.fine_tuning.jobs.retrieve(job.id)
        assert again.mine_negatives == {"negatives": 3, "margin": 1.0, "collection": library}


def test_a_collection_that_is_not_there_is_refused_at_once(process):
    """With the field's name."""
    with connect(process, "ops") as client:
        with pytest.raises(openai.BadRequestError, match="there is no 'nowhere'") as caught:
            start_job(client, collection="nowhere")
        assert caught.value.param == "mine_negatives.collection"


def test_keys_are_given_and_taken_while_it_runs(process, keys):
    """Within seconds, without a restart; a file that turned bad changes nothing."""

    def status(key):
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{process.http}/v1/files", headers=headers).status_code

    def wait_for(key, wanted):
        deadline = time.monotonic() + 30
        while status(key) != wanted:
            assert time.monotonic() < deadline, (key, wanted)
            time.sleep(0.1)

    assert status("k_new") == 401
    write(keys, ops=None, k_acme="acme", k_new="globex")
    wait_for("k_new", 200)
    assert status("k_globex") == 401
    keys.write_text("{")
    while "the keys stay as they were" not in process.log_path.read_text():
        time.sleep(0.1)
    assert (status("k_new"), status("k_acme"), status("k_globex")) == (200, 200, 401)
    log = process.log_path.read_text()
    assert not any(secret in log for secret in ("k_acme", hashlib.sha256(b"k_acme").hexdigest()))


def test_a_bad_file_ends_the_start(tmp_path):
    """With what is wrong, and the exit code of a wrong setting."""
    path = tmp_path / "keys"
    path.write_text('{"name": "a", "sha256": "1"}\n{"name": "b", "tenat": "acme"}')
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "serve", "router", "--data", str(tmp_path)],
        env={"MATRYOSHKA_ROUTER_KEYS_FILE": str(path), "PATH": ""}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "line 1: sha256 must be" in ended.stderr
    assert "line 2: there is no field 'tenat'" in ended.stderr
