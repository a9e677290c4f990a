"""What goes of jobs' folders when they are too large, and what never does."""

import os
import time

import pytest
from prometheus_client import CollectorRegistry

from services.shared.errors import Overloaded
from services.trainer.jobs.retention import Retention, keep_record
from services.trainer.metrics import TrainerMetrics

MIB = 2**20
STATES = {"old": "succeeded", "new": "failed", "live": "running", "held": "paused"}


@pytest.fixture
def folder(tmp_path):
    """Four jobs, each with a checkpoint, vectors and a model of 1 MiB."""
    for name in STATES:
        for part in ("checkpoints/step-1", "vectors/queries", "vectors-after/queries", "model"):
            place = tmp_path / name / part
            place.mkdir(parents=True)
            (place / "data").write_bytes(os.urandom(MIB))
        (tmp_path / name / "training.npy").write_bytes(b"x")
    return tmp_path


def sweep(folder, max_mib):
    retention = Retention(folder, max_mib * MIB, TrainerMetrics(CollectorRegistry()))
    retention.sweep(STATES)
    return retention


def parts(folder, name):
    return sorted(path.name for path in (folder / name).iterdir() if path.is_dir())


def test_nothing_goes_within_the_budget(folder):
    """But the vectors that ended nest jobs were given."""
    sweep(folder, 100).check_room()
    assert all(len(parts(folder, name)) == 4 for name in STATES)
    left = [name for name in STATES if (folder / name / "training.npy").exists()]
    assert left == ["live", "held"]


def test_the_oldest_ended_jobs_go_first(folder):
    """Checkpoints and vectors; the model stays, and what runs or is paused is not touched."""
    sweep(folder, 14).check_room()
    assert parts(folder, "old") == ["model"]
    assert all(len(parts(folder, name)) == 4 for name in ("new", "live", "held"))


def test_full_folders_take_no_new_job(folder):
    """When nothing more can go, the caller hears it, and that trying again does not help."""
    retention = sweep(folder, 5)
    assert parts(folder, "new") == ["model"]
    assert len(parts(folder, "live")) == len(parts(folder, "held")) == 4
    with pytest.raises(Overloaded, match="MAX_FOLDERS_BYTES") as caught:
        retention.check_room()
    assert caught.value.retry_after_s is None
    assert caught.value.openai_body()["error"]["code"] == "insufficient_quota"


def test_a_folder_without_a_job_goes_when_it_is_old(folder):
    """A younger one may be another service's draft."""
    for name, age_s in (("young", 60), ("left", 7 * 3600)):
        (folder / name).mkdir()
        at = time.time() - age_s
        os.utime(folder / name, (at, at))
    sweep(folder, 100)
    assert (folder / "young").exists()
    assert not (folder / "left").exists()


def test_the_record_of_a_job_outlives_its_model(folder):
    """What the user gave and what can be made again goes; what was measured stays."""
    old = folder / "old"
    for name in ("training.jsonl", "validation.jsonl", "events.jsonl", "report.json", "lease"):
        (old / name).write_text("x")
    assert keep_record(old) > 4 * MIB
    assert sorted(path.name for path in old.iterdir()) == ["events.jsonl", "report.json"]
