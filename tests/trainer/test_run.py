"""A job's process: real model, real files, real kills."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.shared.card import read_card
from services.shared.model import TextModel
from services.trainer.data.pairs import split
from services.trainer.jobs.events import read_events
from services.trainer.jobs.spec import (
    Failure,
    Mining,
    Result,
    Spec,
    failure_path,
    result_path,
    spec_path,
)
from services.trainer.training.interrupt import NOT_FINISHED
from tests.trainer.conftest import make_job, start_job, stdlib_pairs, weights


def wait_for_step(folder, step, process, timeout_s=60):
    """Wait until a checkpoint of at least `step` is there."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "log.txt").read_text()
        done = [int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")]
        if done and max(done) >= step:
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def numbers(folder):
    return [event.number for event in read_events(folder, 0)[0]]


@pytest.fixture(scope="module")
def adaptor_job(tmp_path_factory, default_model, pairs):
    """An undisturbed job on the real model; others are compared with it."""
    folder = make_job(tmp_path_factory.mktemp("jobs") / "job", default_model, pairs, steps=60)
    assert start_job(folder).wait() == 0, (folder / "log.txt").read_text()
    return folder


def test_an_adaptor_job_makes_a_better_model_that_loads_anywhere(adaptor_job, pairs):
    """Short sizes gain on held-out pairs, the full one stays, plain loading gives our vectors."""
    result = Result.read(result_path(adaptor_job))
    before = {scores.dim: scores.ndcg10 for scores in result.quality.before}
    after = {scores.dim: scores.ndcg10 for scores in result.quality.after}
    assert list(before) == list(after) == [16, 32, 64, 128, 256, 384]
    assert after[16] > before[16]
    assert after[32] > before[32]
    assert after[384] == pytest.approx(before[384], abs=1e-3)
    assert result.quality.num_queries == len(split(pairs, 0).held_out)
    card = read_card(adaptor_job / "model")
    assert card.quality == result.quality
    assert card.id == result.model_id == "ft:base:test:0001"
    assert (adaptor_job / "plot.png").read_bytes().startswith(b"\x89PNG")
    texts = [pair.positive for pair in pairs[:20]]
    plain = SentenceTransformer(str(adaptor_job / "model"), device="cpu", local_files_only=True)
    ours = TextModel(adaptor_job / "model", "float32").encode_texts(texts)
    assert (plain.encode(texts) * ours).sum(axis=1).min() > 0.99999


def test_events_tell_the_whole_job(adaptor_job):
    """Numbers without gaps; encode, train with a loss per size, evaluate."""
    events, _ = read_events(adaptor_job, 0)
    assert numbers(adaptor_job) == list(range(1, len(events) + 1))
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["encode", "train", "evaluate"]
    for phase in phases:
        last = [event for event in events if event.phase == phase][-1]
        assert last.step == last.total_steps > 0
    last = [event for event in events if event.phase == "train"][-1]
    assert last.step == 60
    assert list(last.loss) == [16, 32, 64, 128, 256]
    assert last.steps_per_second > 0


def test_a_killed_adaptor_job_ends_in_the_same_weights(tmp_path, default_model, pairs, adaptor_job):
    """Killed, started, stopped and started again: bit for bit the same model."""
    folder = make_job(tmp_path / "job", default_model, pairs, steps=60)
    for number, step in ((signal.SIGKILL, 10), (signal.SIGTERM, 25)):
        process = start_job(folder)
        wait_for_step(folder, step, process)
        process.send_signal(number)
        assert process.wait() == (NOT_FINISHED if number == signal.SIGTERM else -number)
        assert not result_path(folder).exists()
    assert start_job(folder).wait() == 0, (folder / "log.txt").read_text()
    assert same(weights(folder / "model"), weights(adaptor_job / "model"))
    count = len(numbers(folder))
    assert numbers(folder) == list(range(1, count + 1))
    trained = [event for event in read_events(folder, 0)[0] if event.phase == "train"]
    assert trained[-1].step == 60


def test_a_full_job_lowers_the_loss_and_survives_a_kill(tmp_path, tiny_model, tiny_pairs):
    """All weights of a tiny BERT: the loss falls, and a kill changes no bit of the result."""
    options = {
        "method": "full", "steps": 120, "batch_size": 16, "learning_rate": 3e-3,
        "checkpoint_steps": 4,
    }  # fmt: skip
    calm = make_job(tmp_path / "calm", tiny_model, tiny_pairs, **options)
    assert start_job(calm).wait() == 0, (calm / "log.txt").read_text()
    steps = [e for e in read_events(calm, 0)[0] if e.phase == "train"]
    assert all(event.utilization > 0 for event in steps)
    losses = [event.loss for event in steps]
    assert list(losses[0]) == [16, 32]
    assert losses[-1][32] < 2.0  # log(16) = 2.77 knows nothing
    killed = make_job(tmp_path / "killed", tiny_model, tiny_pairs, **options)
    process = start_job(killed)
    wait_for_step(killed, 8, process)
    process.kill()
    process.wait()
    assert start_job(killed).wait() == 0
    assert not result_path(killed).with_name("error.json").exists()
    made = weights(calm / "model")
    assert same(weights(killed / "model"), made)
    assert not same(made, weights(tiny_model))
    texts = [pair.anchor for pair in tiny_pairs[:5]]
    plain = SentenceTransformer(str(calm / "model"), device="cpu", local_files_only=True)
    ours = TextModel(calm / "model", "float32").encode_texts(texts)
    assert (plain.encode(texts) * ours).sum(axis=1).min() > 0.99999


def test_a_job_killed_anywhere_ends_in_the_same_weights(tmp_path, tiny_model, tiny_pairs):
    """While a checkpoint is written, at any moment, while the model is written: the same bits."""
    options = {"method": "full", "steps": 60, "batch_size": 16, "checkpoint_steps": 1}
    calm = make_job(tmp_path / "calm", tiny_model, tiny_pairs, **options)
    begin = time.monotonic()
    assert start_job(calm).wait() == 0, (calm / "log.txt").read_text()
    whole_s = time.monotonic() - begin
    folder = make_job(tmp_path / "killed", tiny_model, tiny_pairs, **options)
    places = ("checkpoints/.writing-*", None, ".model-writing")
    for place in places:
        process = start_job(folder)
        moment = time.monotonic() + random.uniform(0.3, 1.0) * whole_s
        while process.poll() is None:
            if any(folder.glob(place)) if place else time.monotonic() > moment:
                process.kill()
        process.wait()
    assert start_job(folder).wait() == 0, (folder / "log.txt").read_text()
    assert same(weights(folder / "model"), weights(calm / "model"))
    count = len(numbers(folder))
    assert numbers(folder) == list(range(1, count + 1))
    assert not list(folder.glob("**/.*writing*"))


def test_a_process_that_hears_nothing_of_its_service_ends(tmp_path, tiny_model, tiny_pairs):
    """Its service hangs, or cannot reach the database: another will begin."""
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, method="full", steps=100_000)
    (folder / "lease").touch()
    process = start_job(folder, "--silence", "1.5")
    for _ in range(8):
        time.sleep(0.4)
        (folder / "lease").touch()
    assert process.poll() is None
    assert process.wait(timeout=30) == NOT_FINISHED


def test_the_process_ends_with_its_parent(tmp_path, tiny_model, tiny_pairs):
    """A job whose service is gone stops within seconds, so that the next service can go on."""
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, method="full", steps=100_000)
    process = start_job(folder, "--parent", str(os.getpid() + 1_000_000))
    assert process.wait(timeout=30) == NOT_FINISHED


def test_two_processes_never_run_one_job(tmp_path, tiny_model, tiny_pairs):
    """The second waits for the first, finds the result and does nothing."""
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, method="full", steps=10)
    first, second = start_job(folder), start_job(folder)
    assert [first.wait(), second.wait()] == [0, 0]
    steps = [e.step for e in read_events(folder, 0)[0] if e.phase == "train"]
    assert steps == sorted(set(steps))


def test_a_loss_that_explodes_is_a_clear_failure(tmp_path, tiny_model, tiny_pairs):
    """The job says at which step and what may help; there is no model."""
    options = {"method": "full", "steps": 300, "batch_size": 8}
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, **options)
    spec = json.loads((folder / "spec.json").read_text())
    spec["hyperparameters"]["learning_rate"] = 1e30
    (folder / "spec.json").write_text(json.dumps(spec))
    assert start_job(folder).wait() == 1
    assert "not finite at step" in Failure.read(failure_path(folder)).message
    assert not (folder / "model").exists()


def test_a_job_that_fails_names_the_field_that_it_is_about(tmp_path, tiny_model, tiny_pairs):
    """Not always the training file: here the base model went away."""
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, steps=5)
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"base_dir": str(tmp_path / "gone")}))
    assert start_job(folder).wait() == 1
    failure = Failure.read(failure_path(folder))
    assert (failure.code, failure.param) == ("invalid_data", "base_model")


def test_a_cut_line_of_events_is_removed(adaptor_job, tmp_path):
    """A kill in the middle of a line leaves no trace for readers or the next writer."""
    from services.trainer.jobs.events import Event, EventLog

    data = (adaptor_job / "events.jsonl").read_bytes()
    (tmp_path / "events.jsonl").write_bytes(data + b'{"number": 99')
    events, end = read_events(tmp_path, 0)
    assert end == len(data)
    EventLog(tmp_path).append(Event(message="next"))
    again, _ = read_events(tmp_path, end)
    assert [event.number for event in again] == [len(events) + 1]


def test_the_pairs_are_the_same_on_every_run():
    """The comparison of two jobs rests on it."""
    assert stdlib_pairs(50) == stdlib_pairs(50)
    assert np.unique([pair.anchor for pair in stdlib_pairs(300)]).size == 300


@pytest.mark.parametrize("method", ["adaptor", "full"])
def test_a_job_that_mines_negatives_survives_a_kill(tmp_path, tiny_model, tiny_pairs, method):
    """They are mined once and told, beside those that are given."""
    pairs = [
        replace(pair, negatives=(f"{pair.anchor} never {place}",))
        for place, pair in enumerate(tiny_pairs)
    ]
    folder = make_job(
        tmp_path / "job", tiny_model, pairs, method=method, steps=12, batch_size=8,
        checkpoint_steps=2,
    )  # fmt: skip
    spec = Spec.read(spec_path(folder))
    spec.model_copy(update={"mining": Mining(negatives=3)}).write(spec_path(folder))
    process = start_job(folder)
    wait_for_step(folder, 2, process)
    process.kill()
    process.wait()
    (mined,) = (folder / "vectors" / "mined").glob("*.npy")
    assert (np.load(mined) >= 0).sum() > len(pairs)
    before = mined.stat().st_mtime_ns
    assert start_job(folder).wait() == 0, (folder / "log.txt").read_text()
    assert mined.stat().st_mtime_ns == before
    events, _ = read_events(folder, 0)
    assert "mine" in {event.phase for event in events}
    assert Result.read(result_path(folder)).quality.num_documents == 2 * len(pairs)
