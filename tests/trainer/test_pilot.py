"""The trial of how much to listen to the labels."""

from dataclasses import replace

import numpy as np
import pytest

from services.shared.vectors import normalize
from services.trainer.data.pairs import Pair, split_rows
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.training.adaptor import Vectors
from services.trainer.training.interrupt import Interrupt, Interrupted
from services.trainer.training.pilot import GENERAL, LITTLE, choose_label_weight

FULL = 32


def collection(num_pairs, misled):
    """Answers lie near their questions; if `misled`, most of what they share is not the topic."""
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(num_pairs, FULL)) * (np.arange(FULL) < 6)
    style = rng.normal(size=(2, num_pairs, FULL)) * (np.arange(FULL) >= 6)
    noise = 0.05 * rng.normal(size=(2, num_pairs, FULL))
    sides = (topic + (2.0 if misled else 0.0) * style + noise).astype(np.float32)
    rows = np.arange(num_pairs)
    vectors = Vectors(normalize(sides[0]), normalize(sides[1]), rows, rows)
    pairs = [Pair(f"q{row}", f"p{row}") for row in rows]
    return vectors, pairs, fill(Wanted(matryoshka_dims=(2, 4)), FULL, num_pairs)


def test_labels_win_where_the_base_is_misled():
    """Where the base ranks by something else than the topic, its opinion only harms."""
    tried = []
    weight = choose_label_weight(*collection(800, misled=True), tried.append, Interrupt())
    assert weight == 1.0
    assert len(tried) == 2


def test_where_both_do_equally_well_labels_count_little():
    """Nothing of what the base knows is put at risk."""
    vectors, pairs, hyper = collection(800, misled=False)
    same = replace(vectors, positives_ND=vectors.anchors_ND)
    hyper = hyper.model_copy(update={"matryoshka_dims": (16,)})
    assert choose_label_weight(same, pairs, hyper, lambda _: None, Interrupt()) == LITTLE


def test_the_bases_opinion_wins_where_labels_mislead():
    """Half of the training pairs name some other answer; the base knows better."""
    vectors, pairs, hyper = collection(800, misled=False)
    asked = split_rows(pairs, hyper.seed)
    rows = np.array([row for row in range(800) if row not in asked][::2])
    wrong = vectors.positive_rows_P.copy()
    wrong[rows] = np.roll(rows, 7)
    misled = replace(vectors, positive_rows_P=wrong)
    assert choose_label_weight(misled, pairs, hyper, lambda _: None, Interrupt()) == LITTLE


def test_few_pairs_are_not_tried():
    """Too few questions would choose by chance, so half and half it is."""
    tried = []
    assert choose_label_weight(*collection(300, True), tried.append, Interrupt()) == GENERAL
    assert not tried


def test_tied_pairs_are_not_tried():
    """Nothing can be held out, and that is no failure."""
    vectors, _, hyper = collection(300, True)
    tied = [Pair(f"q{row}", "same") for row in range(300)]
    assert choose_label_weight(vectors, tied, hyper, lambda _: None, Interrupt()) == GENERAL


def test_a_trial_can_be_stopped():
    """A job that is asked to stop does not wait for its pilot."""
    interrupt = Interrupt()
    interrupt.set()
    with pytest.raises(Interrupted):
        choose_label_weight(*collection(800, True), lambda _: None, interrupt)
