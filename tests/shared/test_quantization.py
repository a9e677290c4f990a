"""Stored numbers are those of sentence-transformers, and near the ones they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers.util.quantization import quantize_embeddings

from services.shared.errors import InvalidRequest
from services.shared.quantization import (
    bytes_per_vector,
    check_bits,
    measure_ranges,
    quantize,
)
from services.shared.vectors import normalize

DTYPES = ["int8", "uint8", "binary", "ubinary"]
numbers = st.floats(-1, 1, width=32)
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 8).map(lambda n: 8 * n)),
    elements=numbers,
)


def dequantize(stored, ranges):
    """As the documents say: the middle of the level."""
    low, high = ranges.astype(np.float64)
    levels = stored.astype(np.float64) + (128 if stored.dtype == np.int8 else 0)
    return low + (levels + 0.5) * (high - low) / 255


@given(matrices, st.data(), st.sampled_from(DTYPES))
def test_layouts_are_those_of_sentence_transformers(vectors, data, dtype):
    """The same numbers and ranges give the same bytes, whatever lies in or outside the range."""
    ends = data.draw(hnp.arrays(np.int16, (2, vectors.shape[1]), elements=st.integers(-999, 999)))
    ranges = np.sort(ends, axis=0).astype(np.float32) / 1000  # of no width, too
    theirs = quantize_embeddings(vectors, dtype, ranges=ranges)
    ours = quantize(vectors, dtype, ranges)
    assert ours.dtype == theirs.dtype
    assert (ours == theirs).all()
    assert ours.nbytes == len(vectors) * bytes_per_vector(vectors.shape[1], dtype)


@given(matrices, st.data())
def test_a_number_in_its_range_is_kept_within_half_a_step(vectors, data):
    """256 levels: what is read back is at most half a level away."""
    low = data.draw(st.floats(-3, -1.25, width=32))
    high = data.draw(st.floats(1.25, 3, width=32))
    ranges = np.repeat(np.float32([[low], [high]]), vectors.shape[1], axis=1)
    for dtype in ("int8", "uint8"):
        wrong = np.abs(dequantize(quantize(vectors, dtype, ranges), ranges) - vectors)
        # float32 rounds the level's border by a few 1e-7.
        assert wrong.max() <= (high - low) / 255 / 2 + 2e-6


@pytest.mark.parametrize("dim", [16, 64, 384])
def test_ranges_of_a_sample_serve_vectors_they_never_saw(dim):
    """Cosine of int8 to float stays above .998 for every unseen vector."""
    random = np.random.default_rng(dim)
    scale = random.uniform(0.2, 2, dim)  # as in real models, some numbers vary more than others
    sample, others = (
        normalize((random.normal(size=(2000, dim)) * scale + 0.3).astype(np.float32))
        for _ in range(2)
    )
    ranges = measure_ranges(sample)
    assert (ranges[0] < ranges[1]).all()
    read = dequantize(quantize(others, "int8", ranges), ranges)
    cosines = (read * others).sum(axis=1) / np.linalg.norm(read, axis=1)
    assert cosines.min() > 0.998
    assert cosines.mean() > 0.9999


def test_one_odd_text_does_not_widen_the_ranges():
    """A single outlier among thousands costs the others no resolution."""
    sample = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32) / 10
    odd = sample.copy()
    odd[17] = 50
    width, odd_width = (np.diff(measure_ranges(vectors), axis=0) for vectors in (sample, odd))
    assert (odd_width < 1.2 * width).all()


def test_numbers_that_never_change_have_a_range_too():
    """A constant in the sample must not divide by zero when it changes later."""
    ranges = measure_ranges(np.full((200, 8), 0.25, dtype=np.float32))
    assert (ranges[0] < 0.25).all()
    assert (ranges[1] > 0.25).all()
    assert quantize(np.ones((1, 8), dtype=np.float32), "uint8", ranges).tolist() == [[255] * 8]


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_bits_fill_whole_bytes(dtype):
    """A size that is not a multiple of 8 is refused with one that would be."""
    check_bits(64, dtype)
    with pytest.raises(InvalidRequest, match="multiple of 8, got 100; ask for 96"):
        check_bits(100, dtype)
    check_bits(100, "int8")


def test_floats_are_left_alone():
    """No dtype costs nothing."""
    vectors = np.ones((2, 3), dtype=np.float32)
    assert quantize(vectors, "float32") is vectors
