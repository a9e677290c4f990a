"""Prefix health: what it says of good and bad prefixes, what it costs, where it is seen."""

import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.encoder.health import SAMPLE, PrefixHealth, judge
from services.encoder.metrics import EncoderMetrics

FULL = 64


def vectors(count, nested, seed=0):
    """Rows whose first 16 numbers hold nearly all that tells them apart, or next to nothing."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.arange(FULL) < 16, 1.0, 0.01)
    scale = scale if nested else scale[::-1]
    return (rng.normal(size=(count, FULL)) * scale).astype(np.float32)


@pytest.fixture
def metrics():
    return EncoderMetrics(CollectorRegistry())


def test_a_nested_model_is_told_from_one_that_is_not():
    """A prefix that ranks as the full vector has both figures near 1; a useless one near chance."""
    [(dim, energy, overlap)] = judge(vectors(SAMPLE, nested=True), [16])
    assert (dim, energy > 0.99, overlap > 0.9) == (16, True, True)
    [(_, energy, overlap)] = judge(vectors(SAMPLE, nested=False), [16])
    assert energy < 0.01
    # Ten of 63 others by chance: 0.16; a row that counted as its own neighbour would add 0.08.
    assert overlap < 0.165


def test_the_energy_is_that_of_the_definition():
    """||v[:d]||^2 / ||v||^2, the mean over the sample."""
    rows = vectors(20, nested=False, seed=1)
    expected = [(row[:30] @ row[:30]) / (row @ row) for row in rows]
    assert judge(rows, [30])[0][1] == pytest.approx(np.mean(expected), rel=1e-5)


def test_strange_samples_are_judged_all_the_same():
    """Equal rows, rows of zeros, a single row: no warning, no figure out of 0..1."""
    for rows in (
        np.zeros((SAMPLE, FULL)),
        np.ones((SAMPLE, FULL)),
        vectors(1, nested=True),
        np.concatenate([np.zeros((3, FULL)), vectors(9, nested=True)]),
    ):
        for _, energy, overlap in judge(rows.astype(np.float32), [1, 16]):
            assert 0 <= energy <= 1
            assert 0 <= overlap <= 1


def test_it_is_exported_by_model_and_size_and_goes_with_the_model():
    """Declared sizes and those asked for are there; after unloading none is."""
    registry = CollectorRegistry()
    health = PrefixHealth("m", FULL, (16, FULL), EncoderMetrics(registry))
    assert health.watch(8) == "8"
    for start in range(0, SAMPLE, 10):
        health.sample(vectors(10, nested=True, seed=start))
    read = registry.get_sample_value
    assert read("matryoshka_encoder_prefix_energy_ratio", {"model": "m", "dim": "16"}) > 0.99
    assert read("matryoshka_encoder_prefix_overlap_ratio", {"model": "m", "dim": "8"}) < 1
    assert read("matryoshka_encoder_prefix_energy_ratio", {"model": "m", "dim": str(FULL)}) is None
    health.forget()
    assert b'model="m"' not in generate_latest(registry)


def test_labels_are_bounded(metrics):
    """A caller who asks for every size there is does not make as many labels."""
    health = PrefixHealth("m", 4096, (), metrics)
    assert len({health.watch(dim) for dim in range(1, 4096)}) <= 17
    assert health.watch(4096) == "4096"


def test_it_costs_next_to_nothing(metrics):
    """Over many batches, nearly all pass by untouched, and a judged one takes milliseconds."""
    health = PrefixHealth("m", 384, (32, 64, 128, 256), metrics)
    rows = np.random.default_rng(0).normal(size=(64, 384)).astype(np.float32)
    start = time.process_time()
    for _ in range(5000):
        health.sample(rows)
    assert time.process_time() - start < 1
