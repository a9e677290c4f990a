"""Two trainers over one database and one folder: no job runs twice, and none is forgotten."""

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from sqlalchemy import text

from services.shared.database import Database
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc
from services.trainer.jobs.jobs import Jobs
from services.trainer.jobs.leases import Leases
from services.trainer.jobs.rows import Job
from tests.conftest import Process, serve
from tests.trainer.conftest import make_job, start_job, weights, write_pairs
from tests.trainer.postgres import running as postgres_running
from tests.trainer.test_run import same
from tests.trainer.test_service import (
    SETTINGS,
    create,
    get,
    is_training,
    job_processes,
    upload,
    watch,
)

LEASE_S = 4.0
SHARED = SETTINGS | {
    "MATRYOSHKA_TRAINER_LEASE_S": str(LEASE_S),
    "MATRYOSHKA_TRAINER_STOP_S": "1.5",
}
LONG = {"method": pb.METHOD_FULL, "steps": 400, "batch_size": 8}


@pytest.fixture
def two(tmp_path):
    """Two services with one data folder."""
    processes = [
        Process(
            ["serve", "trainer", "--http-port", "0", "--grpc-port", "0", "--data",
             str(tmp_path / "data")],
            tmp_path / f"{name}.log",
            SHARED,
        ).start()
        for name in ("first", "second")
    ]  # fmt: skip
    yield processes
    for process in processes:
        if process.popen.poll() is None:
            process.popen.send_signal(signal.SIGCONT)
            assert process.stop() == 0


async def begin(process, tmp_path, tiny_pairs, tiny_model):
    """Start a long job; return its id once it trains."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.TrainerServiceStub(channel)
        file = await upload(stub, write_pairs(tmp_path / "pairs", tiny_pairs).read_bytes())
        job = await create(stub, file, tiny_model, LONG)
        await watch(stub, job.id, until=is_training)
        return job.id


async def see_end(process, job_id):
    """Return a job's events, and at each look which processes were working on it."""
    seen = set()

    async def look():
        while True:
            seen.add(frozenset(job_processes(job_id)))
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.TrainerServiceStub(channel)
        events = await watch(stub, job_id)
        job = await get(stub, job_id)
    looking.cancel()
    return events, job, seen


def owner(process_id):
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("how", ["service killed", "both killed", "service frozen"])
async def test_another_service_goes_on_and_no_two_processes_work(
    two, tmp_path, tiny_pairs, tiny_model, how
):
    """The first one's process has ended before the second's begins; the weights are the same."""
    job_id = await begin(two[0], tmp_path, tiny_pairs, tiny_model)
    (process_id,) = job_processes(job_id)
    runs_it = next(p for p in two if p.popen.pid == owner(process_id))
    other = next(p for p in two if p is not runs_it)
    runs_it.popen.send_signal(signal.SIGSTOP if how == "service frozen" else signal.SIGKILL)
    if how == "both killed":
        os.kill(process_id, signal.SIGKILL)
    events, job, seen = await see_end(other, job_id)
    if how == "service frozen":  # it wakes up, and finds that the job is no longer its own
        runs_it.popen.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.0)
    assert job.status == pb.JOB_STATUS_SUCCEEDED, job.error
    assert all(len(processes) <= 1 for processes in seen)
    begun = set().union(*seen) | {process_id}
    assert len(begun) == 2, "one process of each service"
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    calm = make_job(
        tmp_path / "calm", tiny_model, tiny_pairs, method="full", steps=400, batch_size=8
    )
    assert start_job(calm).wait() == 0
    assert same(weights(calm / "model"), weights(tmp_path / "data" / "jobs" / job_id / "model"))
    async with grpc.aio.insecure_channel(other.grpc) as channel:
        assert (await get(pb_grpc.TrainerServiceStub(channel), job_id)) == job


async def test_what_one_service_runs_the_other_can_stop(two, tmp_path, tiny_pairs, tiny_model):
    """Pause, resume and cancel work at either of them."""
    job_id = await begin(two[0], tmp_path, tiny_pairs, tiny_model)
    (process_id,) = job_processes(job_id)
    other = next(p for p in two if p.popen.pid != owner(process_id))
    async with grpc.aio.insecure_channel(other.grpc) as channel:
        stub = pb_grpc.TrainerServiceStub(channel)
        paused = (await stub.PauseJob(pb.PauseJobRequest(id=job_id))).job
        assert paused.status == pb.JOB_STATUS_PAUSED
        assert not job_processes(job_id)
        kept = (await stub.ListCheckpoints(pb.ListCheckpointsRequest(id=job_id))).checkpoints
        assert kept[0].step > 0
        assert kept[0].num_bytes > 0
        await stub.ResumeJob(pb.ResumeJobRequest(id=job_id))
        cancelled = (await stub.CancelJob(pb.CancelJobRequest(id=job_id))).job
        assert cancelled.status == pb.JOB_STATUS_CANCELLED
    assert not job_processes(job_id)


@pytest.fixture(scope="module")
def postgres():
    with postgres_running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(tmp_path, request):
    """An empty database of each kind."""
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
    database = Database(url)
    database.open()
    with database.transaction() as session:
        session.execute(text("DELETE FROM jobs"))
    yield database
    database.close()


async def test_jobs_are_kept_in_postgresql_by_url(tmp_path, postgres, tiny_pairs, tiny_model):
    """Files, metadata and states over a kill of the service; two services share them."""
    settings = SHARED | {"MATRYOSHKA_TRAINER_DATABASE_URL": postgres}
    process = serve(tmp_path, "serve", "trainer", **settings)
    assert postgres not in process.log_path.read_text(), "the URL may hold a password"
    job_id = await begin(process, tmp_path, tiny_pairs, tiny_model)
    process.kill()
    process.start()
    try:
        _, job, seen = await see_end(process, job_id)
        assert job.status == pb.JOB_STATUS_SUCCEEDED
        assert all(len(processes) <= 1 for processes in seen)
        listed = httpx.get(f"{process.http}/v1/fine_tuning/jobs?metadata[a]=b").json()["data"]
        assert listed == []
        (listed,) = httpx.get(f"{process.http}/v1/fine_tuning/jobs?metadata=null").json()["data"]
        assert (listed["id"], len(listed["result_files"])) == (job_id, 4)
    finally:
        assert process.stop() == 0
    assert not (tmp_path / "serve-trainer" / "jobs.sqlite").exists()


def test_many_claims_at_once_take_each_job_once(database):
    """From several connections at the same time."""
    jobs = Jobs(database)
    add(jobs, *"abcdefgh")
    services = [Leases(database, str(number), 30.0, 4) for number in range(4)]

    def claim(service):
        first = service.claim(())
        return [first.id, service.claim((first.id,)).id]

    with ThreadPoolExecutor(4) as threads:
        taken = [job_id for found in threads.map(claim, services) for job_id in found]
    assert len(set(taken)) == 8


def add(jobs, *owners):
    for number, name in enumerate(owners):
        job = Job(id=f"{name}{number}", base_model="m", model_id="m", hyperparameters="{}",
                  owner=name)  # fmt: skip
        jobs.add(job, None, "")


def test_owners_take_turns(database):
    """Whoever has the fewest running, then whoever was served longest ago; at most so many each."""
    jobs, leases = Jobs(database), Leases(database, "one", 30.0, max_per_owner=2)
    add(jobs, "a", "a", "a", "a", "b", "b", "c")
    order = []
    while job := leases.claim(order):
        order.append(job.id)
    assert order == ["a0", "b4", "c6", "a1", "b5"]
    leases.end("b4", "succeeded")
    assert leases.claim(order) is None, "a has two running already"
    leases.end("a0", "succeeded")
    assert leases.claim(order).id == "a2"


def test_a_lease_is_one_services_until_it_is_over(database):
    """Renewed it stays, over it goes to whoever asks, and the first cannot write any more."""
    jobs = Jobs(database)
    first, second = (Leases(database, name, 0.3, 4) for name in ("one", "two"))
    add(jobs, "a")
    assert first.claim(()).id == "a0"
    assert second.claim(()) is None
    time.sleep(0.2)
    assert first.renew("a0")
    time.sleep(0.2)
    assert second.claim(()) is None
    assert first.claim(("a0",)) is None
    time.sleep(0.2)
    assert second.claim(()).id == "a0"
    assert first.renew("a0") is None
    assert not first.end("a0", "failed")
    assert second.end("a0", "succeeded")
    assert jobs.get("a0").state == "succeeded"


def test_a_service_that_is_back_goes_on_at_once(database):
    """By its name; what it is at already it does not take twice."""
    jobs = Jobs(database)
    add(jobs, "a")
    assert Leases(database, "one", 1000.0, 4).claim(()).id == "a0"
    back = Leases(database, "one", 1000.0, 4)
    assert back.claim(("a0",)) is None
    assert back.claim(()).id == "a0"


def test_who_changes_their_mind_is_heard(database):
    """Resumed or cancelled while the process stops for a pause: queued, or cancelled."""
    jobs, leases = Jobs(database), Leases(database, "one", 30.0, 4)
    add(jobs, "a", "b")
    assert {leases.claim(("a0",)).id, leases.claim(("a0",)).id} == {"a0", "b1"}
    for job_id in ("a0", "b1"):
        jobs.wish(job_id, "paused")
    jobs.resume("a0")
    jobs.wish("b1", "cancelled")
    for job_id, state in (("a0", "queued"), ("b1", "cancelled")):
        leases.end(job_id, "paused")
        assert jobs.get(job_id).state == state
