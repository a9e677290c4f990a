"""The trainer over real gRPC: a real process, real jobs, real kills."""

import asyncio
import hashlib
import io
import os
import shutil
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from safetensors.numpy import load
from sentence_transformers import SentenceTransformer

from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc
from tests.conftest import serve
from tests.spans import read_spans
from tests.trainer.conftest import write_pairs
from tests.trainer.test_graded import labelled_texts, scored_pairs

SLOW = {"method": pb.METHOD_FULL, "steps": 100_000, "batch_size": 8}
QUICK = {"method": pb.METHOD_FULL, "steps": 12, "batch_size": 8}
SETTINGS = {
    "MATRYOSHKA_TRAINER_CHECKPOINT_STEPS": "5",
    "MATRYOSHKA_TRAINER_THREADS": "1",
    "MATRYOSHKA_TRAINER_MAX_QUEUED_JOBS": "3",
    "MATRYOSHKA_TRAINER_MAX_FILE_BYTES": "200000",
    "MATRYOSHKA_TRAINER_DRAIN_S": "0",
}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    spans = {"MATRYOSHKA_TRAINER_TRACE_TO": (folder / "spans.jsonl").as_uri()}
    started = serve(folder, "serve", "trainer", **SETTINGS | spans)
    yield started
    assert started.stop() == 0


@pytest.fixture
async def stub(process):
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        yield pb_grpc.TrainerServiceStub(channel)


async def upload(stub, data: bytes, filename="my pairs.jsonl", piece=1000) -> str:
    async def parts():
        yield pb.UploadFileRequest(filename=filename)
        for begin in range(0, len(data), piece):
            yield pb.UploadFileRequest(data=data[begin : begin + piece])
        yield pb.UploadFileRequest(num_bytes=len(data))

    answer = await stub.UploadFile(parts())
    assert answer.num_bytes == len(data)
    return answer.file_id


@pytest.fixture
async def file_id(stub, tiny_pairs, tmp_path):
    return await upload(stub, write_pairs(tmp_path / "pairs", tiny_pairs).read_bytes())


def request(file_id, base: Path, hyperparameters=QUICK, **fields):
    hyper = pb.Hyperparameters(**hyperparameters)
    return pb.CreateJobRequest(
        training_file=file_id, base_model=str(base), hyperparameters=hyper, **fields
    )


async def create(stub, *args, **fields) -> pb.Job:
    return (await stub.CreateJob(request(*args, **fields))).job


async def watch(stub, job_id, after=0, until=lambda event: False) -> list[pb.Event]:
    events = []
    call = stub.WatchJob(pb.WatchJobRequest(id=job_id, after=after))
    async for answer in call:
        events.append(answer.event)
        if until(answer.event):
            call.cancel()
            break
    return events


async def get(stub, job_id) -> pb.Job:
    return (await stub.GetJob(pb.GetJobRequest(id=job_id))).job


async def refused(call, code, *parts):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == code, caught.value.details()
    for part in parts:
        assert part in caught.value.details()


async def test_a_jobs_stages_are_in_the_trace_of_the_call_that_created_it(
    process, stub, file_id, tiny_model
):
    """Its process tells them by itself; a call that is not sampled has none."""
    file = process.log_path.parent / "spans.jsonl"
    trace, unseen = "1b" * 16, "2c" * 16
    for sent in (f"00-{unseen}-{'b7' * 8}-00", f"00-{trace}-{'b7' * 8}-01"):
        made = await stub.CreateJob(
            request(file_id, tiny_model, {"steps": 2}), metadata=(("traceparent", sent),)
        )
        await watch(stub, made.job.id)
    async with asyncio.timeout(30):  # the service writes every few seconds
        while not (calls := [one for one in read_spans(file) if one.name == "CreateJob"]):
            await asyncio.sleep(0.2)
    (call,) = calls
    assert (call.trace, call.parent) == (trace, "b7" * 8)
    of_job = {one.name: one for one in read_spans(file) if one.process == "training"}
    job = of_job.pop("Job")
    assert (job.trace, job.parent) == (call.trace, call.id)
    assert list(of_job) == ["prepare", "train", "evaluate", "export"]
    assert {one.parent for one in of_job.values()} == {job.id}
    assert unseen not in file.read_text()


def is_training(event):
    return event.phase == "train"


async def test_a_job_from_upload_to_model(stub, file_id, tiny_model):
    """Every part of the answer is filled, and the folder loads anywhere."""
    job = await create(stub, file_id, tiny_model, {"steps": 15}, suffix="docs-1")
    assert job.status == pb.JOB_STATUS_QUEUED
    assert job.hyperparameters.method == pb.METHOD_ADAPTOR
    assert job.hyperparameters.head == pb.HEAD_ROTATION
    assert list(job.hyperparameters.matryoshka_dims) == [16]
    assert job.hyperparameters.batch_size > 2
    events = await watch(stub, job.id)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert events[0].status == pb.JOB_STATUS_QUEUED
    assert events[-1].status == pb.JOB_STATUS_SUCCEEDED
    assert {"encode", "train", "evaluate"} <= {event.phase for event in events}
    assert any(set(event.loss) == {16} for event in events)
    assert await watch(stub, job.id, after=len(events) - 1) == events[-1:]
    job = await get(stub, job.id)
    assert job.status == pb.JOB_STATUS_SUCCEEDED
    assert job.created_at <= job.started_at <= job.finished_at
    assert [row.dim for row in job.quality] == [16, 32]
    assert job.quality[1].before.ndcg10 == pytest.approx(job.quality[1].after.ndcg10)
    assert job.plot_png.startswith(b"\x89PNG")
    assert job.step == 15
    assert job.model_id == f"ft:model:docs-1:{job.id[4:12]}"
    vectors = SentenceTransformer(job.model_dir, device="cpu").encode(["red cat"])
    assert vectors.shape == (1, 32)


async def test_the_same_key_is_the_same_job(stub, file_id, tiny_model):
    """Also when both come at once; another request under the key is refused."""
    jobs = await asyncio.gather(
        *(create(stub, file_id, tiny_model, idempotency_key="k1") for _ in range(3))
    )
    assert len({job.id for job in jobs}) == 1
    await refused(
        create(stub, file_id, tiny_model, idempotency_key="k1", suffix="other"),
        grpc.StatusCode.ALREADY_EXISTS,
        "different request",
    )
    events = await watch(stub, jobs[0].id)
    assert events[-1].status == pb.JOB_STATUS_SUCCEEDED
    again = await create(stub, file_id, tiny_model, idempotency_key="k1")
    assert again.id == jobs[0].id
    assert again.status == pb.JOB_STATUS_SUCCEEDED


async def test_running_and_waiting_jobs_can_be_cancelled(stub, process, file_id, tiny_model):
    """A full queue refuses at once; cancelling frees it, ends the process, and is repeatable."""
    running = await create(stub, file_id, tiny_model, SLOW)
    await watch(stub, running.id, until=is_training)
    waiting = [await create(stub, file_id, tiny_model, SLOW) for _ in range(3)]
    await refused(
        create(stub, file_id, tiny_model), grpc.StatusCode.RESOURCE_EXHAUSTED, "3 jobs are waiting"
    )
    page = httpx.get(f"{process.http}/metrics").text
    assert 'matryoshka_trainer_jobs_count{state="queued"} 3.0' in page
    listed = await stub.ListJobs(pb.ListJobsRequest(limit=2))
    assert [job.id for job in listed.jobs] == [waiting[2].id, waiting[1].id]
    assert listed.has_more
    rest = await stub.ListJobs(pb.ListJobsRequest(after=waiting[1].id, limit=2))
    assert [job.id for job in rest.jobs] == [waiting[0].id, running.id]
    for job in (*reversed(waiting), running, running):
        cancelled = (await stub.CancelJob(pb.CancelJobRequest(id=job.id))).job
        assert cancelled.status == pb.JOB_STATUS_CANCELLED
        assert cancelled.finished_at > 0
    events = await watch(stub, running.id)
    assert events[-1].status == pb.JOB_STATUS_CANCELLED
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert not job_processes(running.id)


async def test_a_failed_job_names_its_field_on_both_wires(
    stub, process, file_id, tiny_model, tmp_path
):
    """Each in its own words: here the base model went away while the job waited for its turn."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    running = await create(stub, file_id, tiny_model, SLOW)
    job = await create(stub, file_id, base)
    shutil.rmtree(base)
    await stub.CancelJob(pb.CancelJobRequest(id=running.id))
    assert (await watch(stub, job.id))[-1].status == pb.JOB_STATUS_FAILED
    failed = await get(stub, job.id)
    assert (failed.error_code, failed.error_param) == ("invalid_data", "base_model")
    error = httpx.get(f"{process.http}/v1/fine_tuning/jobs/{job.id}").json()["error"]
    assert (error["code"], error["param"]) == ("invalid_data", "model")
    assert (await get(stub, running.id)).error_param == ""


@pytest.mark.parametrize(
    ("fields", "code", "part"),
    [
        ({"suffix": "no spaces"}, "INVALID_ARGUMENT", "letters, digits"),
        ({"idempotency_key": "x" * 129}, "INVALID_ARGUMENT", "128"),
        ({"training_file": ""}, "INVALID_ARGUMENT", "uploaded"),
        ({"training_file": "../../etc/passwd"}, "NOT_FOUND", "training_file"),
        ({"training_file": "file-" + "0" * 32}, "NOT_FOUND", "upload it first"),
        ({"validation_file": "file-" + "0" * 32}, "NOT_FOUND", "validation_file"),
        ({"base_model": "no/such/folder"}, "INVALID_ARGUMENT", "base_model"),
        ({"hyperparameters": {"matryoshka_dims": [16, 8]}}, "INVALID_ARGUMENT", "ascending"),
        ({"hyperparameters": {"matryoshka_dims": [16, 64]}}, "INVALID_ARGUMENT", "1 and 32"),
        ({"hyperparameters": {"matryoshka_dims": [0, 16]}}, "INVALID_ARGUMENT", "1 and 32"),
        ({"hyperparameters": {"batch_size": 1}}, "INVALID_ARGUMENT", "batch_size"),
        ({"hyperparameters": {"learning_rate": -1}}, "INVALID_ARGUMENT", "learning_rate"),
        ({"hyperparameters": {"learning_rate": float("nan")}}, "INVALID_ARGUMENT", "learning"),
        ({"hyperparameters": {"steps": 10**7}}, "INVALID_ARGUMENT", "steps"),
        ({"hyperparameters": {"method": 2, "head": 1}}, "INVALID_ARGUMENT", "head"),
        ({"hyperparameters": {"method": 9}}, "INVALID_ARGUMENT", "METHOD_ADAPTOR"),
        ({"hyperparameters": {"head": 9}}, "INVALID_ARGUMENT", "HEAD_RESIDUAL"),
        (
            {"hyperparameters": {"method": 4, "lora": {"targets": ["nonsense"]}}},
            "INVALID_ARGUMENT",
            "none called 'nonsense'",
        ),
        (
            {"hyperparameters": {"method": 6, "distillation": {"teacher": "no/such/folder"}}},
            "INVALID_ARGUMENT",
            "distillation.teacher",
        ),
        ({"hyperparameters": {"method": 3}}, "INVALID_ARGUMENT", "base_model must be empty"),
        ({"hyperparameters": {"method": 3}, "base_model": ""}, "INVALID_ARGUMENT", "not an .npy"),
    ],
)
async def test_what_cannot_work_is_refused_at_the_door(
    stub, file_id, tiny_model, fields, code, part
):
    """The message names the field; no job is made."""
    before = await stub.ListJobs(pb.ListJobsRequest(limit=100))
    values = {"training_file": file_id, "base_model": str(tiny_model)} | fields
    if "hyperparameters" in values:
        values["hyperparameters"] = pb.Hyperparameters(**values["hyperparameters"])
    call = stub.CreateJob(pb.CreateJobRequest(**values))
    await refused(call, getattr(grpc.StatusCode, code), part)
    assert await stub.ListJobs(pb.ListJobsRequest(limit=100)) == before


async def test_wrong_data_is_refused_with_file_and_line(stub, tiny_model):
    """Before a job is queued, under the name that the user gave."""
    lines = b'{"anchor": "a", "positive": "b"}\n' * 9 + b'{"anchor": "a"}\n'
    wrong = await upload(stub, lines)
    await refused(
        create(stub, wrong, tiny_model),
        grpc.StatusCode.INVALID_ARGUMENT,
        'my pairs.jsonl:10: "positive" is missing',
    )


NEST = {"method": pb.METHOD_NEST, "steps": 5, "batch_size": 32}


def npy(rows, full=32) -> bytes:
    vectors = np.random.default_rng(rows).normal(size=(rows, full)) / np.arange(1, full + 1)
    data = io.BytesIO()
    np.save(data, vectors.astype(np.float32))
    return data.getvalue()


async def download(stub, file_id) -> bytes:
    call = stub.DownloadFile(pb.DownloadFileRequest(file_id=file_id))
    *pieces, last = [answer async for answer in call]
    data = b"".join(piece.data for piece in pieces)
    assert last.num_bytes == len(data)
    return data


async def test_a_nest_job_from_vectors_to_a_rotation(stub, process):
    """No model and no text: vectors of documents and queries go up, a rotation comes down."""
    documents = await upload(stub, npy(1200), "vectors.npy", piece=100_000)
    queries = await upload(stub, npy(50), "queries.npy")
    job = await create(stub, documents, "", NEST, validation_file=queries, suffix="docs")
    assert list(job.hyperparameters.matryoshka_dims) == [16]
    assert job.result_file == ""
    assert (await watch(stub, job.id))[-1].status == pb.JOB_STATUS_SUCCEEDED
    job = await get(stub, job.id)
    assert (job.model_dir, job.base_model, len(job.quality)) == ("", "", 0)
    assert job.model_id == f"nest:docs:{job.id[4:12]}"
    assert [row.dim for row in job.nest_quality] == [16, 32]
    full = job.nest_quality[1]
    assert full.plain == full.pca == full.nested == 1
    assert 0 < job.nest_quality[0].nested <= 1
    assert job.plot_png.startswith(b"\x89PNG")
    rotation = load(await download(stub, job.result_file))["rotation"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(32), atol=1e-6)
    jobs = process.log_path.parent / "serve-trainer" / "jobs"
    assert not list((jobs / job.id).glob("*.npy")), "what it learned from has gone"


async def test_a_file_is_deleted_and_its_job_goes_on(stub, process):
    """It is gone for everybody, once and again; a job that waits has what it needs."""
    documents = await upload(stub, npy(1200), "vectors.npy", piece=100_000)
    job = await create(stub, documents, "", NEST)
    for _ in range(2):
        await stub.DeleteFile(pb.DeleteFileRequest(file_id=documents))
    await refused(download(stub, documents), grpc.StatusCode.NOT_FOUND, "no file")
    await refused(create(stub, documents, "", NEST), grpc.StatusCode.NOT_FOUND, "no file")
    files = process.log_path.parent / "serve-trainer" / "files"
    assert not (files / documents).exists()
    assert (await watch(stub, job.id))[-1].status == pb.JOB_STATUS_SUCCEEDED
    other = stub.DeleteFile(pb.DeleteFileRequest(file_id="../jobs.sqlite"))
    await refused(other, grpc.StatusCode.INVALID_ARGUMENT, "file_id must be an id")


async def test_what_was_uploaded_can_be_downloaded(stub):
    """Byte for byte, in several pieces; what is not there is an error, not an empty file."""
    data = os.urandom(150_000)
    answer = await download(stub, await upload(stub, data, piece=50_000))
    assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
    await refused(download(stub, "file-" + "0" * 32), grpc.StatusCode.NOT_FOUND, "no file")
    await refused(download(stub, "../jobs.sqlite"), grpc.StatusCode.INVALID_ARGUMENT, "file_id")


@pytest.mark.parametrize(
    ("queries", "dims", "part"),
    [
        (npy(50, 16), [], "vectors of 32 numbers"),
        (npy(10), [], "holds 10 vectors"),
        (npy(50), [12], "multiples of 8 below 32"),
        (npy(50), [16, 40], "1 and 32"),
    ],
)
async def test_a_nest_job_that_cannot_work_is_refused(stub, queries, dims, part):
    """Queries of another width, too few of them, sizes that are none: before it is queued."""
    file = await upload(stub, npy(1000), "vectors.npy", piece=100_000)
    asked = await upload(stub, queries, "queries.npy")
    call = create(stub, file, "", NEST | {"matryoshka_dims": dims}, validation_file=asked)
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, part)


async def test_uploads_are_whole_or_not_there(stub, process):
    """Too long, empty, nameless or cut off: nothing is left."""
    files = process.log_path.parent / "serve-trainer" / "files"
    before = sorted(files.iterdir())
    with pytest.raises(grpc.aio.AioRpcError, match="at most 200000 bytes"):
        await upload(stub, b"x" * 200_001, piece=50_000)
    with pytest.raises(grpc.aio.AioRpcError, match="empty"):
        await upload(stub, b"")
    with pytest.raises(grpc.aio.AioRpcError, match="filename"):
        await upload(stub, b"x", filename="")
    await refused(stub.UploadFile(iter([])), grpc.StatusCode.INVALID_ARGUMENT, "filename")

    for parts in (
        [pb.UploadFileRequest(data=b"x")],
        [pb.UploadFileRequest(data=b"x"), pb.UploadFileRequest(num_bytes=2)],
    ):
        parts.insert(0, pb.UploadFileRequest(filename="x"))
        call = stub.UploadFile(iter(parts))
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "num_bytes")

    async def endless():
        yield pb.UploadFileRequest(filename="x")
        while True:
            yield pb.UploadFileRequest(data=b"x")
            await asyncio.sleep(0.01)

    call = stub.UploadFile(endless())
    await asyncio.sleep(0.3)
    assert len(sorted(files.iterdir())) == len(before) + 1
    call.cancel()
    deadline = time.monotonic() + 5
    while sorted(files.iterdir()) != before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_unknown_jobs_are_not_found(stub):
    """In every call that names one."""
    for call in (
        stub.GetJob(pb.GetJobRequest(id="job-x")),
        stub.CancelJob(pb.CancelJobRequest(id="../x")),
        stub.ListJobs(pb.ListJobsRequest(after="job-x")),
        watch(stub, "job-x"),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND, "there is no job")
    await refused(stub.ListJobs(pb.ListJobsRequest(limit=101)), grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_killed_service_forgets_nothing(tmp_path, pairs, default_model, tiny_model):
    """kill -9 in the middle of a job: the job is known, goes on, succeeds, and tells all of it."""
    process = serve(tmp_path, "serve", "trainer", **SETTINGS)
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.TrainerServiceStub(channel)
        file = await upload(stub, write_pairs(tmp_path / "pairs", pairs).read_bytes())
        hyper = {"steps": 60, "matryoshka_dims": [32, 128]}
        job = await create(stub, file, default_model, hyper, idempotency_key="one")
        other = await create(stub, file, tiny_model, {"steps": 5})
        seen = await watch(stub, job.id, until=lambda e: e.phase == "train" and e.step > 5)
        (orphan,) = job_processes(job.id)
    process.kill()
    started = time.monotonic()
    process.start()
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.TrainerServiceStub(channel)
            again = await create(stub, file, default_model, hyper, idempotency_key="one")
            assert again.id == job.id
            later = await watch(stub, job.id, after=seen[-1].number)
            assert later[-1].status == pb.JOB_STATUS_SUCCEEDED
            numbers = [event.number for event in (*seen, *later)]
            assert numbers == list(range(1, len(numbers) + 1))
            steps = [event.step for event in later if event.phase == "train"]
            assert steps[-1] == 60
            assert steps[0] > 5  # from its checkpoint, not from the start
            assert not Path(f"/proc/{orphan}").exists()
            assert (await get(stub, job.id)).status == pb.JOB_STATUS_SUCCEEDED
            assert (await watch(stub, other.id))[-1].status == pb.JOB_STATUS_SUCCEEDED
            assert time.monotonic() - started < 90
    finally:
        assert process.stop() == 0


async def test_a_stopped_service_leaves_no_process(tmp_path, tiny_pairs, tiny_model):
    """SIGTERM: the job's process writes a checkpoint and ends; the next service goes on."""
    process = serve(tmp_path, "serve", "trainer", **SETTINGS)
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.TrainerServiceStub(channel)
        file = await upload(stub, write_pairs(tmp_path / "pairs", tiny_pairs).read_bytes())
        job = await create(stub, file, tiny_model, SLOW | {"steps": 150})
        await watch(stub, job.id, until=is_training)
    assert process.stop() == 0
    assert not job_processes(job.id)
    process.start()
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        events = await watch(pb_grpc.TrainerServiceStub(channel), job.id)
    assert events[-1].status == pb.JOB_STATUS_SUCCEEDED
    assert process.stop() == 0


async def test_a_watcher_does_not_hold_the_shutdown(tmp_path, tiny_pairs, tiny_model):
    """SIGTERM: who watches a job is told to try again shortly, long before the grace is over."""
    patient = SETTINGS | {"MATRYOSHKA_TRAINER_GRACE_S": "100"}
    process = serve(tmp_path, "serve", "trainer", **patient)
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.TrainerServiceStub(channel)
            file = await upload(stub, write_pairs(tmp_path / "pairs", tiny_pairs).read_bytes())
            job = await create(stub, file, tiny_model, SLOW)
            watching = asyncio.create_task(watch(stub, job.id))
            await watch(stub, job.id, until=is_training)
            process.popen.terminate()
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE.*stopping") as caught:
                await asyncio.wait_for(watching, 30)
            assert dict(caught.value.trailing_metadata())["retry-after"] == "1"
        assert await asyncio.to_thread(process.popen.wait, 30) == 0
    finally:
        process.kill()


def job_processes(job_id: str) -> list[int]:
    """Processes whose command line names the job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if job_id.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


async def test_data_is_checked_and_what_was_found_is_told(stub, tiny_pairs, tiny_model, tmp_path):
    """Duplicates and leaks are left out of the job, and said in its first event."""
    lines = [f"{pair.anchor},{pair.positive}" for pair in tiny_pairs]
    lines[7] += " long" * 60
    table = "\n".join(["frage,antwort", *lines, lines[0].upper(), lines[1], ""])
    training = await upload(stub, table.encode(), "t.csv")
    validation = await upload(stub, "\n".join(["frage,antwort", *lines[:6]]).encode(), "v.csv")
    columns = {"frage": "anchor", "antwort": "positive"}
    job = await create(
        stub, training, tiny_model, {"steps": 2}, validation_file=validation, columns=columns
    )
    assert job.data.kind == pb.DATA_KIND_PAIRS
    assert (job.data.rows, job.data.kept) == (len(lines) + 2, len(lines) - 6)
    assert (job.data.duplicates, job.data.leaks) == (2, 6)
    assert job.data.leak_places[2] == "t.csv:4 is in v.csv:4"
    assert (job.data.validation_rows, job.data.validation_kept) == (6, 6)
    events = await watch(stub, job.id)
    assert events[0].message.startswith(f"data: {len(lines) - 6} of {len(lines) + 2} examples kept")
    assert events[-1].status == pb.JOB_STATUS_SUCCEEDED
    assert not job.data.HasField("too_long")
    assert (await get(stub, job.id)).data.too_long == 1
    assert any("1 texts are longer" in event.message for event in events)
    await refused(
        create(stub, training, tiny_model, columns={"frage": "anker"}),
        grpc.StatusCode.INVALID_ARGUMENT,
        "columns must map",
    )
    for training_file in ("/etc/passwd", "http://127.0.0.1/x", "s3://bucket/x"):
        await refused(
            create(stub, training_file, tiny_model),
            grpc.StatusCode.PERMISSION_DENIED,
            "MATRYOSHKA_TRAINER_SOURCES",
        )


async def test_scored_pairs_and_labelled_texts_are_trained_on(stub, process, tiny_model, tmp_path):
    """Each told by its own metric, also in the metrics; two of different ones are not compared."""
    rows = [f"{pair.first},{pair.second},{pair.score}" for pair in scored_pairs()[:120]]
    table = "\n".join(["sentence1,sentence2,score", *rows])
    likeness = await upload(stub, table.encode(), "likeness.csv")
    classes = write_pairs(tmp_path / "classes", labelled_texts()).read_bytes()
    stopping = pb.EarlyStopping(dim=16, every_steps=2, patience=1)
    scored = await create(stub, likeness, tiny_model, QUICK | {"early_stopping": stopping})
    labelled = await create(stub, await upload(stub, classes), tiny_model, {"steps": 4})
    assert scored.data.kind == pb.DATA_KIND_SCORED
    assert labelled.data.kind == pb.DATA_KIND_LABELLED
    events = await watch(stub, scored.id)
    assert any("Spearman at 16 is" in event.message for event in events)
    await watch(stub, labelled.id)
    scored, labelled = await get(stub, scored.id), await get(stub, labelled.id)
    assert scored.status == labelled.status == pb.JOB_STATUS_SUCCEEDED
    assert [row.dim for row in scored.quality] == [16, 32]
    after = scored.quality[0].after
    assert 0 < abs(after.spearman) <= 1
    assert after.HasField("pearson")
    assert after.ndcg10 == 0
    assert labelled.quality[0].after.ndcg10 > 0
    assert not labelled.quality[0].after.HasField("spearman")
    page = httpx.get(f"{process.http}/metrics").text
    assert 'matryoshka_trainer_spearman_ratio{dim="16",side="after"}' in page
    await refused(
        stub.CompareVersions(
            pb.CompareVersionsRequest(before=labelled.model_id, after=scored.model_id)
        ),
        grpc.StatusCode.FAILED_PRECONDITION,
        "was measured by nDCG@10",
        "by Spearman",
    )
    mining = {"mine_negatives": pb.Mining(negatives=2)}
    for wanted, fields, part in (
        ({"method": pb.METHOD_DISTILL}, {}, "must hold pairs for METHOD_DISTILL"),
        ({}, mining, "only pairs have negatives"),
    ):
        await refused(
            create(stub, likeness, tiny_model, wanted, **fields),
            grpc.StatusCode.INVALID_ARGUMENT,
            part,
        )
