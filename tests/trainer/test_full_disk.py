"""A real full disk, a small tmpfs: jobs wait, say so, and lose nothing. Needs to mount one."""

import contextlib
import subprocess
import time

import grpc
import pytest

from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc
from services.trainer.jobs.events import read_events
from services.trainer.jobs.spec import failure_path, result_path
from services.trainer.training.checkpoint import saved
from services.trainer.training.interrupt import DISK_FULL
from tests.conftest import Process
from tests.trainer.conftest import make_job, start_job, weights, write_pairs
from tests.trainer.test_run import same, wait_for_step
from tests.trainer.test_service import SETTINGS, create, get, is_training, upload, watch

OPTIONS = {"method": "full", "steps": 200, "batch_size": 8}


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk):
    """Leave no byte; return the file that takes them."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
    return path


def test_a_process_on_a_full_disk_ends_and_goes_on_with_the_same_weights(
    disk, tmp_path, tiny_model, tiny_pairs
):
    """Full before the first checkpoint, and again after one: never half of anything."""
    calm = make_job(tmp_path / "calm", tiny_model, tiny_pairs, **OPTIONS)
    folder = make_job(disk / "job", tiny_model, tiny_pairs, **OPTIONS)
    for step in (0, 20):
        process = start_job(folder)
        if step:
            wait_for_step(folder, step, process)
        filler = fill(disk)
        assert process.wait() == DISK_FULL, (folder / "log.txt").read_text()
        assert not failure_path(folder).exists()
        assert not result_path(folder).exists()
        assert not list((folder / "checkpoints").glob(".writing-*"))
        assert [one.step for one in saved(folder / "checkpoints")][:1] >= ([step] if step else [])
        filler.unlink()
    assert start_job(folder).wait() == 0, (folder / "log.txt").read_text()
    assert start_job(calm).wait() == 0
    assert same(weights(folder / "model"), weights(calm / "model"))
    numbers = [event.number for event in read_events(folder, 0)[0]]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_service_on_a_full_disk_waits_says_so_and_goes_on(
    disk, tmp_path, tiny_model, tiny_pairs
):
    """Database, folders and files on it: events tell of it, and the job succeeds in the end."""
    # SQLite, too, must write to say that the job is still this service's.
    more = {"MATRYOSHKA_TRAINER_DISK_WAIT_S": "72", "MATRYOSHKA_TRAINER_CHECKPOINT_STEPS": "2"}
    command = ["serve", "trainer", "--http-port", "0", "--grpc-port", "0", "--data"]
    log_path = tmp_path / "log"
    process = Process([*command, str(disk / "data")], log_path, SETTINGS | more).start()
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.TrainerServiceStub(channel)
            file = await upload(stub, write_pairs(disk / "pairs", tiny_pairs).read_bytes())
            slow = {"method": pb.METHOD_FULL, "steps": 400, "batch_size": 8}
            job = await create(stub, file, tiny_model, slow)
            await watch(stub, job.id, until=is_training)
            filler = fill(disk)
            told = await watch(stub, job.id, until=lambda event: "disk is full" in event.message)
            assert "goes on when there is room" in told[-1].message
            assert (await get(stub, job.id)).status == pb.JOB_STATUS_RUNNING
            time.sleep(1.0)
            filler.unlink()
            events = await watch(stub, job.id)
            assert events[-1].status == pb.JOB_STATUS_SUCCEEDED, events[-1]
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            assert (await get(stub, job.id)).quality
    finally:
        assert process.stop() == 0
