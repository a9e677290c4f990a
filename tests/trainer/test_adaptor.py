"""The head: orthogonal, harmless at full size, useful when cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.shared.vectors import normalize
from services.trainer.jobs.events import read_events
from services.trainer.results.evaluate import evaluate
from services.trainer.training.adaptor import Adaptor, Vectors, principal_axes
from services.trainer.training.interrupt import Interrupt, Interrupted
from services.trainer.training.train import Course, TrainingFailed, batch_rows, learning_rate, train

FULL, NUM_PAIRS = 48, 200
DIMS = (4, 8, 16)


def make_vectors(seed=0, num_pairs=NUM_PAIRS):
    """Answers lie near their questions in 12 hidden directions; the other 36 are loud noise."""
    rng = np.random.default_rng(seed)
    mix, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(FULL, FULL)))
    meaning = rng.normal(size=(num_pairs, 12))
    sides = [
        np.concatenate([meaning + 0.1 * rng.normal(size=meaning.shape),
                        1.2 * rng.normal(size=(num_pairs, FULL - 12))], axis=1) @ mix
        for _ in range(2)
    ]  # fmt: skip
    rows = np.arange(num_pairs)
    return Vectors(*(normalize(side.astype(np.float32)) for side in sides), rows, rows)


def course(**changes):
    usual = Course(
        num_pairs=NUM_PAIRS, dims=DIMS, steps=40, batch_size=64, learning_rate=1e-2,
        schedule="one_cycle", seed=5, weight_decay=0.0, max_gradient_norm=100.0,
        checkpoint_steps=7,
    )  # fmt: skip
    return replace(usual, **changes)


def test_a_rotation_is_orthogonal_and_keeps_full_size_scores(tmp_path):
    """Every cosine at full size stays within 1e-6."""
    vectors = make_vectors()
    adaptor = Adaptor(vectors, "rotation", DIMS, 0.5)
    train(adaptor, course(), tmp_path, lambda _: None, Interrupt())
    weight = adaptor.weight()
    np.testing.assert_allclose(weight @ weight.T, np.eye(FULL), atol=1e-6)
    before = vectors.anchors_ND @ vectors.positives_ND.T
    after = (vectors.anchors_ND @ weight.T) @ (vectors.positives_ND @ weight.T).T
    np.testing.assert_allclose(after, before, atol=1e-6)
    moved = Adaptor(vectors, "rotation", DIMS, 0.5).weight()
    assert np.abs(weight - moved).max() > 0.05  # it did learn


@pytest.mark.parametrize("head", ["rotation", "dense"])
def test_short_sizes_gain_on_pairs_not_seen(tmp_path, head):
    """Trained on some pairs, prefixes of others rank better than before and than PCA."""
    dims = DIMS if head == "rotation" else (*DIMS, FULL)
    adaptor = Adaptor(make_vectors(0), head, dims, 0.5)
    train(adaptor, course(steps=120, dims=dims), tmp_path, lambda _: None, Interrupt())
    other = make_vectors(1)
    relevant = [{row: 1.0} for row in range(NUM_PAIRS)]

    def ndcg(weight):
        sides = other.anchors_ND @ weight.T, other.positives_ND @ weight.T
        return np.array([s.ndcg10 for s in evaluate(*sides, relevant, DIMS)])

    axes = principal_axes(torch.from_numpy(np.concatenate([other.anchors_ND, other.positives_ND])))
    after = ndcg(adaptor.weight())
    assert (after > ndcg(np.eye(FULL, dtype=np.float32))).all()
    assert (after > ndcg(axes.numpy())).all()


def test_principal_axes_are_those_of_all_vectors_and_numbers():
    """Also of more than are multiplied at a time: no product of two is left, the largest first."""
    falling = torch.arange(1, 601) ** -0.5
    vectors = torch.randn(9000, 600, generator=torch.Generator().manual_seed(0)) * falling
    turned = (vectors @ principal_axes(vectors).T).double()
    products = turned.T @ turned / len(turned)
    shares = products.diagonal()
    assert (shares[:-1] >= shares[1:] - 1e-6).all()
    torch.testing.assert_close(products, torch.diag(shares), atol=1e-6, rtol=0)


def test_fewer_vectors_than_numbers_still_give_axes():
    """Four pairs leave most axes open; they are orthogonal all the same."""
    axes = principal_axes(torch.randn(4, FULL, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(axes @ axes.T, torch.eye(FULL), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stops", [(1,), (13,), (7, 39)])
def test_a_resumed_run_is_bit_equal(tmp_path, stops):
    """Stopped at any step and gone on with, it ends in the same weights to the last bit."""
    vectors = make_vectors()
    undisturbed = Adaptor(vectors, "rotation", DIMS, 0.5)
    train(undisturbed, course(), tmp_path / "a", lambda _: None, Interrupt())
    for stop in stops:
        interrupt = Interrupt()
        adaptor = Adaptor(vectors, "rotation", DIMS, 0.5)
        adaptor.losses = _stop_at(adaptor.losses, stop, interrupt, vectors)
        with pytest.raises(Interrupted):
            train(adaptor, course(), tmp_path / "b", lambda _: None, interrupt)
    resumed = Adaptor(vectors, "rotation", DIMS, 0.5)
    train(resumed, course(), tmp_path / "b", lambda _: None, Interrupt())
    assert np.array_equal(undisturbed.weight(), resumed.weight())


def _stop_at(losses, stop, interrupt, vectors):
    """Ask to stop once the batch of the given step comes."""
    wanted = batch_rows(course(), stop)

    def stopping(rows):
        if np.array_equal(rows.numpy(), wanted):
            interrupt.set()
        return losses(rows)

    return stopping


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    """The weights are those before, and the message says what may help."""
    adaptor = Adaptor(make_vectors(), "rotation", DIMS, 0.5)
    losses = adaptor.losses
    adaptor.losses = lambda rows: losses(rows) * torch.inf
    before = adaptor.weight()
    with pytest.raises(TrainingFailed, match="learning_rate"):
        train(adaptor, course(), tmp_path, lambda _: None, Interrupt())
    assert np.array_equal(adaptor.weight(), before)


def test_every_pair_comes_once_in_an_epoch():
    """Batches of an epoch are a permutation; epochs differ; a batch may span two."""
    plan = course(batch_size=60)
    rows = np.concatenate([batch_rows(plan, step) for step in range(10)])
    first, second = rows[:NUM_PAIRS], rows[NUM_PAIRS : 2 * NUM_PAIRS]
    assert sorted(first) == sorted(second) == list(range(NUM_PAIRS))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("schedule", ["one_cycle", "linear"])
def test_the_learning_rate_rises_and_falls(schedule):
    """It starts low, reaches the highest, ends low, and never leaves its range."""
    plan = course(schedule=schedule, steps=100)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert max(rates) == pytest.approx(plan.learning_rate, rel=0.02)
    assert rates[0] < 0.2 * max(rates)
    assert rates[-1] < 0.05 * max(rates)
    assert min(rates) >= 0


def test_events_of_a_folder_without_any_are_none(tmp_path):
    """A job that has just been made has nothing to tell."""
    assert read_events(tmp_path, 0) == ([], 0)
