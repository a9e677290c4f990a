"""Nesting: orthogonal, harmless at full size, the same on every run, and worth it when cut."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from services.shared.vectors import normalize
from services.trainer.data.sample import Sample, digest
from services.trainer.jobs.events import read_events
from services.trainer.jobs.hyperparameters import Wanted, fill, nested_dims
from services.trainer.jobs.spec import (
    RESULT_FILE,
    TRAINING_VECTORS,
    VALIDATION_VECTORS,
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.results.shortlist import compare
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.nest import MAX_TURNED, Nest
from services.trainer.training.nesting import run_nest
from services.trainer.training.train import plan, train
from tests.trainer.conftest import start_job

FULL, DIMS = 48, (8, 16)


def make(rows, seed, full=FULL, asking=False):
    """Vectors that lie in topics: loud numbers tell the topic, quieter ones all else.

    Principal axes see the loud ones only. Queries (`asking`) differ in other quiet numbers than
    documents do.
    """
    fixed = np.random.default_rng(99)
    mix, _ = np.linalg.qr(fixed.normal(size=(full, full)))
    loud = full // 4
    topics = np.zeros((20, full))
    topics[:, :loud] = fixed.normal(size=(20, loud))
    random = np.random.default_rng(seed)
    quiet = 0.5 * np.linspace(1, 0.2, full)
    if asking:
        quiet[loud:-loud], quiet[-loud:] = 0.02, 0.8
    quiet[:loud] = 0.05
    drawn = topics[random.integers(20, size=rows)] + random.normal(size=(rows, full)) * quiet
    return normalize((drawn @ mix).astype(np.float32))


def learn(data, folder, seed=0, **wanted):
    """Learn as a job does; return what was learned with, and the rotation."""
    full = data.documents_ND.shape[1]
    hyper = fill(Wanted(method="nest", seed=seed, **wanted), full, len(data.documents_ND))
    nest = Nest(data, hyper.trained_dims, seed)
    train(nest, plan(hyper, nest.num_anchors, 50), folder, lambda _: None, Interrupt())
    return nest, nest.rotation()


@settings(max_examples=8)
@given(full=st.integers(16, 80), seed=st.integers(0, 2**32), rate=st.sampled_from([1e-3, 0.3]))
def test_any_rotation_is_orthogonal_and_keeps_every_cosine(tmp_path_factory, full, seed, rate):
    """Within 1e-6 at any width, also at a learning rate that is far too high; and repeatable."""
    data = Sample(make(300, seed, full), None, make(20, seed + 1, full))
    options = {"seed": seed, "steps": 4, "batch_size": 32, "learning_rate": rate}
    _, rotation = learn(data, tmp_path_factory.mktemp("a"), **options)
    assert rotation.dtype == np.float32
    wide = rotation.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.eye(full), atol=1e-6)
    before = data.held_out_QD @ data.documents_ND.T
    after = (data.held_out_QD @ rotation.T) @ (data.documents_ND @ rotation.T).T
    np.testing.assert_allclose(after, before, atol=1e-6)
    _, again = learn(data, tmp_path_factory.mktemp("b"), **options)
    assert np.array_equal(rotation, again)


@pytest.fixture
def _whole_way(monkeypatch):
    """No part of what was trained is taken back, however little the few steps of a test gain."""
    monkeypatch.setattr("services.trainer.training.nest._PARTS", (1.0,))


@pytest.mark.usefixtures("_whole_way")
def test_of_wide_vectors_the_first_axes_are_turned_and_the_others_stay(tmp_path):
    """The rotation is orthogonal all the same, and no full-width score changes."""
    full = MAX_TURNED + 64
    data = Sample(make(1200, 0, full), None, make(20, 1, full))
    nest, rotation = learn(data, tmp_path, steps=3, batch_size=64, learning_rate=0.01)
    wide = rotation.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.eye(full), atol=1e-6)
    # In float64: the sums of so many numbers are rounded as much as the rotation is.
    before = data.held_out_QD.astype(np.float64) @ data.documents_ND.T
    after = (data.held_out_QD @ wide.T) @ (data.documents_ND @ wide.T).T
    np.testing.assert_allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(rotation[MAX_TURNED:], nest.axes_DD[MAX_TURNED:], atol=1e-5)
    turned = rotation[:MAX_TURNED] - nest.axes_DD[:MAX_TURNED]
    assert (np.abs(turned).max(axis=1) > 1e-3).all()


@pytest.mark.usefixtures("_whole_way")
def test_what_is_trained_are_the_first_rows_of_the_rotation(tmp_path):
    """The short way to them, which each step takes, leads where the whole rotation ends."""
    data = Sample(make(1200, 0), None, make(20, 1))
    nest, rotation = learn(data, tmp_path, **QUICK | {"steps": 8})
    trained = nest.turn().detach().numpy() @ nest.axes_DD
    assert trained.shape == (DIMS[-1], FULL)
    assert np.abs(trained - nest.axes_DD[: DIMS[-1]]).max() > 0.01
    np.testing.assert_allclose(trained, rotation[: DIMS[-1]], atol=1e-5)


QUICK = {"steps": 60, "batch_size": 128, "learning_rate": 1e-2, "matryoshka_dims": DIMS}


def test_short_sizes_gain_on_queries_not_seen(tmp_path):
    """A shortlist keeps more than plain cuts and than PCA; a size that was not trained, no less."""
    data = Sample(make(3000, 0), None, make(300, 1))
    nest, rotation = learn(data, tmp_path, **QUICK)
    rows = compare(data.held_out_QD, data.documents_ND, nest.axes_DD, rotation, (*DIMS, 32, FULL))
    for row in rows[:2]:
        assert row.nested > max(row.plain, row.pca) + 0.04
    assert rows[2].nested > rows[2].pca - 0.01
    assert rows[3].plain == rows[3].pca == rows[3].nested == 1


def test_real_queries_teach_what_documents_cannot(tmp_path):
    """Queries of another kind than the documents: knowing some of them helps with others."""
    documents, held_out = make(3000, 0), make(300, 1, asking=True)
    found = []
    for name, queries in (("alone", None), ("asked", make(1000, 2, asking=True))):
        nest, rotation = learn(Sample(documents, queries, held_out), tmp_path / name, **QUICK)
        found.append(compare(held_out, documents, nest.axes_DD, rotation, DIMS)[1].nested)
    assert found[1] > found[0] + 0.02


def test_the_shortlist_is_counted_as_by_hand():
    """Recall of the full top 10 among the best 50 by cosines of the cut vectors."""
    queries, documents = make(7, 1), make(400, 0)
    eye = np.eye(FULL, dtype=np.float32)
    row = compare(queries, documents, eye, eye, (8,))[0]
    exact = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
    short = np.argsort(-(queries[:, :8] @ normalize(documents[:, :8]).T), axis=1)[:, :50]
    kept = [len(set(e) & set(s)) / 10 for e, s in zip(exact, short, strict=True)]
    assert row.plain == row.pca == row.nested == pytest.approx(np.mean(kept))


def test_at_full_size_only_a_rotation_keeps_all():
    """All ten of each query where the matrix is one; fewer where it stretches the vectors."""
    queries, documents = make(60, 1), make(400, 0)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(FULL, FULL)))
    stretched = rotation * np.geomspace(0.01, 1, FULL)
    matrices = rotation.astype(np.float32), stretched.astype(np.float32)
    (row,) = compare(queries, documents, *matrices, (FULL,))
    assert row.plain == row.pca == 1
    assert row.nested < 0.99


def test_default_sizes_stay_below_half_of_the_full_one():
    """Longer ones need no help; those over 256 are offered, and left to the principal axes."""
    assert nested_dims(384) == (16, 32, 64, 128)
    assert nested_dims(3072) == (16, 32, 64, 128, 256, 512)
    assert nested_dims(16) == (8,)
    hyper = fill(Wanted(method="nest"), 3072, 10_000)
    assert hyper.dims == (16, 32, 64, 128, 256, 512, 3072)
    assert hyper.trained_dims == (16, 32, 64, 128, 256)


def make_nest_job(folder, vectors, queries=None, **wanted):
    """Write a job's folder as the service does."""
    folder.mkdir(parents=True)
    np.save(folder / TRAINING_VECTORS, vectors)
    if queries is not None:
        np.save(folder / VALIDATION_VECTORS, queries)
    hyper = fill(Wanted(method="nest", **wanted), vectors.shape[1], len(vectors))
    Spec(
        base_dir="", base_model="", model_id="nest:test:0001", data_name="v.npy",
        hyperparameters=hyper, threads=1, checkpoint_steps=3,
    ).write(spec_path(folder))  # fmt: skip
    return folder


def test_a_killed_nest_job_ends_in_the_same_bytes(tmp_path):
    """kill -9 in the middle: the file to download is the same, and says what it is."""
    vectors, queries = make(1500, 0), make(40, 3)
    options = {"steps": 150, "batch_size": 64, "matryoshka_dims": DIMS}
    calm = make_nest_job(tmp_path / "calm", vectors, queries, **options)
    killed = make_nest_job(tmp_path / "killed", vectors, queries, **options)
    run_nest(calm, Spec.read(spec_path(calm)), Interrupt())
    process = start_job(killed)
    deadline = time.monotonic() + 60
    while not list((killed / "checkpoints").glob("step-*")):
        assert process.poll() is None, (killed / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not result_path(killed).exists()
    assert start_job(killed).wait() == 0, (killed / "log.txt").read_text()
    assert (killed / RESULT_FILE).read_bytes() == (calm / RESULT_FILE).read_bytes()
    events, _ = read_events(killed, 0)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert {"train", "evaluate"} == {event.phase for event in events}
    result = Result.read(result_path(killed))
    assert result.nest_quality == Result.read(result_path(calm)).nest_quality
    assert [row.dim for row in result.nest_quality] == [*DIMS, FULL]
    assert (killed / "plot.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(killed / RESULT_FILE, "numpy") as file:
        assert file.get_tensor("rotation").shape == (FULL, FULL)
        about = json.loads(file.metadata()["matryoshka"])
    assert about["dims"] == [*DIMS, FULL]
    assert about["sample_sha256"] == digest(killed / TRAINING_VECTORS)


def test_vectors_that_are_all_the_same_are_no_crash(tmp_path):
    """There is nothing to learn from them, and nothing breaks."""
    folder = make_nest_job(tmp_path / "job", np.ones((1000, 16), dtype=np.float32), steps=3)
    run_nest(folder, Spec.read(spec_path(folder)), Interrupt())
    assert all(row.nested <= 1 for row in Result.read(result_path(folder)).nest_quality)
