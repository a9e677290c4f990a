"""Fine-tuning by OpenAI's own client, unchanged, against a real trainer."""

import csv
import io
import json
import time

import httpx
import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.conftest import serve
from tests.trainer.conftest import make_tiny_pairs, write_pairs
from tests.trainer.test_graded import scored_pairs
from tests.trainer.test_service import SETTINGS, job_processes

TINY = {"method": "full", "steps": 12, "batch_size": 8}
SLOW = TINY | {"steps": 100_000}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    settings = SETTINGS | {"MATRYOSHKA_TRAINER_MAX_QUEUED_JOBS": "30"}
    started = serve(tmp_path_factory.mktemp("service"), "serve", "trainer", **settings)
    yield started
    assert started.stop() == 0


@pytest.fixture
def client(process):
    with openai.OpenAI(base_url=f"{process.http}/v1", api_key="none", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def file_id(process, tmp_path_factory):
    return upload(process, tmp_path_factory.mktemp("data"), make_tiny_pairs()[:-8])


@pytest.fixture(scope="module")
def held_out_id(process, tmp_path_factory):
    return upload(process, tmp_path_factory.mktemp("data"), make_tiny_pairs()[-8:])


def upload(process, folder, pairs):
    path = write_pairs(folder / "pairs.jsonl", pairs)
    with openai.OpenAI(base_url=f"{process.http}/v1", api_key="none") as client:
        return client.files.create(file=path, purpose="fine-tune").id


def create(client, file_id, model, settings=TINY, **more):
    return client.fine_tuning.jobs.create(
        model=str(model), training_file=file_id,
        method={"type": "matryoshka", "matryoshka": settings}, **more,
    )  # fmt: skip


def wait(client, job_id, *states):
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in states:
        assert job.status not in ("succeeded", "failed", "cancelled"), job
        time.sleep(0.05)
    return job


def first_checkpoint(client, job_id):
    while not (page := client.fine_tuning.jobs.checkpoints.list(job_id)).data:
        time.sleep(0.05)
    return page.data[0]


def test_a_job_from_upload_to_its_results(client, process, file_id, held_out_id, tiny_model):
    """Every call of client.fine_tuning.jobs and client.files, and each field of its own type."""
    job = create(
        client, file_id, tiny_model, suffix="docs", seed=7, validation_file=held_out_id,
        metadata={"user": "ann", "team": "a b"},
    )  # fmt: skip
    assert (job.object, job.status, job.seed) == ("fine_tuning.job", "queued", 7)
    assert job.model == str(tiny_model), "what was asked for, not a part of it"
    assert (job.training_file, job.validation_file) == (file_id, held_out_id)
    assert job.fine_tuned_model is job.finished_at is job.error is None
    job = wait(client, job.id, "succeeded")
    assert job.fine_tuned_model == f"ft:model:docs:{job.id[4:12]}"
    assert [row["dim"] for row in job.quality] == [16, 32]
    assert job.metadata == {"user": "ann", "team": "a b"}
    table, picture, page, report = [client.files.content(id_).read() for id_ in job.result_files]
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert rows[-1]["step"] == "12"
    assert set(rows[0]) == {"step", "train_loss", "train_loss_16", "train_loss_32"}
    assert picture.startswith(b"\x89PNG")
    assert page.startswith(b"<!doctype html>")
    assert json.loads(report)["model_id"] == job.fine_tuned_model
    caution = json.loads(report)["caution"]
    assert caution.startswith("too few held-out queries (8): with fewer than 30 any change may be")
    assert caution in page.decode()
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert said.index("queued") + 1 == said.index(f"data: {caution}"), "told before it waits"
    assert {file.id for file in client.files.list(purpose="fine-tune-results")} >= set(
        job.result_files
    )
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    numbers = [int(event.id.rpartition("-")[2]) for event in events]
    assert numbers == list(range(len(numbers), 0, -1)), "all pages, newest first"
    assert events[0].data["quality"] == job.quality
    assert {event.type for event in events} == {"message", "metrics"}
    raw = httpx.get(f"{process.http}/v1/fine_tuning/jobs/{job.id}").json()
    beyond = {"quality", "data", "columns", "mine_negatives"}
    assert set(FineTuningJob.model_fields) | beyond == set(raw)
    assert (raw["data"]["kind"], raw["data"]["duplicates"]) == ("pairs", 0)
    page = httpx.get(f"{process.http}/v1/fine_tuning/jobs/{job.id}/events").json()
    assert set(FineTuningJobEvent.model_fields) == set(page["data"][0])
    kept = httpx.get(f"{process.http}/v1/fine_tuning/jobs/{job.id}/checkpoints").json()
    assert set(FineTuningJobCheckpoint.model_fields) == set(kept["data"][0])
    found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in found] == [12, 10]
    assert found[0].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-12"
    again = create(client, file_id, job.fine_tuned_model)
    assert again.model == job.fine_tuned_model, "a model that was made is a base for another"
    client.fine_tuning.jobs.cancel(again.id)


def test_a_job_is_paused_resumed_and_cancelled(client, file_id, tiny_model):
    """Paused, it has no process and keeps its step; each call may be repeated."""
    job = create(client, file_id, tiny_model, SLOW, metadata={"kind": "slow"})
    first_checkpoint(client, job.id)
    for _ in range(2):
        assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert not job_processes(job.id)
    saved = first_checkpoint(client, job.id).step_number
    other = create(client, file_id, tiny_model)
    assert wait(client, other.id, "succeeded"), "a paused job gives its place to others"
    for _ in range(2):
        assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    while first_checkpoint(client, job.id).step_number == saved:
        time.sleep(0.05)
    for _ in range(2):
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert [s for s in said if s in ("cancelled", "queued again", "paused", "queued")] == [
        "cancelled", "queued again", "paused", "queued"
    ]  # fmt: skip
    for action in ("pause", "resume"):
        refused(getattr(client.fine_tuning.jobs, action), job.id, part="job")
    refused(client.fine_tuning.jobs.cancel, other.id, part="has succeeded")


def refused(call, *args, status=400, part="", **more):
    """Told once, in OpenAI's shape: the client does not try again."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(*args, **more)
    assert caught.value.status_code == status, caught.value
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert part in caught.value.body["message"]
    return caught.value


def test_lists_are_paged_and_filtered_by_metadata(client, process, file_id, tiny_model):
    """By pairs, by none at all, and across pages."""
    made = [
        create(client, file_id, tiny_model, metadata={"set": "x", "odd \"[k]'": str(number % 2)})
        for number in range(4)
    ]
    bare = create(client, file_id, tiny_model)
    jobs = client.fine_tuning.jobs.list
    assert [job.id for job in jobs(limit=2, metadata={"set": "x"})] == [
        job.id for job in reversed(made)
    ]
    assert [job.id for job in jobs(metadata={"odd \"[k]'": "1", "set": "x"})] == [
        made[3].id, made[1].id,
    ]  # fmt: skip
    assert not jobs(metadata={"set": "y"}).data
    answer = httpx.get(f"{process.http}/v1/fine_tuning/jobs?metadata=null").json()
    assert bare.id in {job["id"] for job in answer["data"]}
    assert made[0].id not in {job["id"] for job in answer["data"]}
    for job in (bare, *reversed(made)):
        if client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running"):
            client.fine_tuning.jobs.cancel(job.id)


def test_settings_may_stand_wherever_a_client_can_put_them(client, file_id, tiny_model):
    """In hyperparameters, in supervised's own, in extra_body; "auto" leaves the choice."""
    jobs = client.fine_tuning.jobs
    common = {"model": str(tiny_model), "training_file": file_id}
    supervised = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}},
    }
    made = [
        jobs.create(**common, hyperparameters={"steps": 9, "batch_size": "auto"}),
        jobs.create(**common, method=supervised, seed=3),
        jobs.create(**common, extra_body={"matryoshka": {"steps": 9, "matryoshka_dims": [8]}}),
        jobs.create(**common, hyperparameters={"learning_rate_multiplier": 2, "n_epochs": "auto"}),
    ]
    settings = [job.method.matryoshka for job in made]
    uploaded = len(make_tiny_pairs()) - 8
    num_pairs = uploaded - uploaded // 10
    assert settings[0]["steps"] == 9
    assert (settings[1]["steps"], settings[1]["seed"]) == (-(-3 * num_pairs // 8), 3)
    assert [job.hyperparameters.n_epochs for job in made] == ["auto", 3, "auto", "auto"]
    again = jobs.create(
        **common, extra_body={"hyperparameters": made[1].to_dict()["hyperparameters"]}
    )
    assert again.method.matryoshka == settings[1]
    made.append(again)
    said = ["\n".join(event.message for event in jobs.list_events(job.id)) for job in made]
    few = "settings: few steps (9 of 8 examples each): the method 'adaptor' takes 160 where nothing"
    assert few in said[1]
    assert ["settings: few" in text for text in said] == [True, True, True, False, True]
    assert settings[2]["matryoshka_dims"] == [8]
    assert settings[3]["learning_rate"] == 2 * settings[0]["learning_rate"]
    for job in reversed(made):
        if client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running"):
            jobs.cancel(job.id)


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"matryoshka": []}, "matryoshka", "object"),
        ({"color": 1}, "color", "the fields are: model"),
        ({"training_file": 3}, "training_file", "string"),
        ({"training_file": "file-" + "0" * 32}, "training_file", "upload it first"),
        ({"validation_file": "x"}, "validation_file", "upload it first"),
        ({"model": "/no/such"}, "model", "model: no model folder"),
        ({"suffix": "a b"}, "suffix", "letters"),
        ({"seed": -1}, "seed", "0 to"),
        ({"seed": True}, "seed", "0 to"),
        ({"metadata": {"a": 1}}, "metadata", "16 pairs"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "16 pairs"),
        ({"metadata": {"a\0": "x"}}, "metadata", "null"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "empty"),
        ({"method": {"type": "dpo"}}, "method", "'matryoshka'"),
        ({"method": {"type": "matryoshka", "dpo": {}}}, "method", "'matryoshka'"),
        ({"method": {"type": "matryoshka", "matryoshka": {"x": 1}}}, "method.matryoshka", "steps"),
        ({"matryoshka": {"steps": "9"}}, "method.matryoshka.steps", "integer"),
        ({"matryoshka": {"steps": -9}}, "hyperparameters.steps", "from 0"),
        ({"matryoshka": {"method": "nest"}}, "model", "'nest'"),
        pytest.param(
            {"matryoshka": {"method": "full", "loss_kernel": True}},
            "hyperparameters.loss_kernel",
            "there is no accelerator",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator"),
        ),
        ({"matryoshka": {"seed": 1}, "seed": 2}, "seed", "the same"),
        ({"hyperparameters": 3}, "hyperparameters", "object"),
        ({"hyperparameters": {"n_epochs": 2, "steps": 3}}, "hyperparameters.n_epochs", "steps"),
    ],
)
def test_what_cannot_work_is_refused_in_openais_shape(
    process, file_id, tiny_model, body, param, part
):
    """In OpenAI's shape: one sentence, the field's name, and no second try."""
    given = {"model": str(tiny_model), "training_file": file_id} | body
    answer = httpx.post(f"{process.http}/v1/fine_tuning/jobs", json=given)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404), error
    assert answer.headers["x-should-retry"] == "false"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert part in error["message"]


def test_lists_refuse_what_they_do_not_know(client, process):
    """Strange parameters, cursors of nobody, jobs that are not there."""
    jobs = client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events):
        refused(call, "ftjob-x", status=404, part="no job")
    refused(jobs.list, status=404, part="no job", after="ftjob-x")
    refused(jobs.list, part="limit", limit=0)
    for query in ("metadata=x", "metadata[a=x", "metadata=null&metadata[a]=b", "color=red"):
        assert httpx.get(f"{process.http}/v1/fine_tuning/jobs?{query}").status_code == 400


def test_a_key_makes_one_job(client, file_id, tiny_model):
    """A client that lost the answer may ask again."""
    headers = {"Idempotency-Key": "one"}
    first, second = (create(client, file_id, tiny_model, extra_headers=headers) for _ in range(2))
    assert first.id == second.id
    refused(
        create, client, file_id, tiny_model, suffix="other", extra_headers=headers, status=409,
        part="different request",
    )  # fmt: skip


def test_scored_pairs_are_trained_on(client, tiny_model):
    """Their own two correlations at each size; the loss in all has the weights of the sizes."""
    rows = [
        json.dumps({"text1": pair.first, "text2": pair.second, "similarity": pair.score})
        for pair in scored_pairs()[:80]
    ]
    file = client.files.create(
        file=("likeness.jsonl", "\n".join(rows).encode()), purpose="fine-tune"
    )
    settings = TINY | {"matryoshka_dims": [16, 32], "dim_weights": [3.0, 0.5]}
    job = wait(client, create(client, file.id, tiny_model, settings).id, "succeeded")
    assert [set(row["after"]) for row in job.quality] == [{"spearman", "pearson"}] * 2
    table = client.files.content(job.result_files[0]).read()
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    for row in rows:
        in_all = 3 * float(row["train_loss_16"]) + 0.5 * float(row["train_loss_32"])
        assert float(row["train_loss"]) == pytest.approx(in_all)
    (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.metrics.train_loss == pytest.approx(float(rows[-1]["train_loss"]))
