"""Cutting right is the heart of the product."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services.shared.errors import InvalidRequest
from services.shared.vectors import apply_pre_op, check_dim, normalize, pack, truncate, unpack

finite = st.floats(-1e6, 1e6, width=32)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 64)), elements=finite)


@given(matrices, st.data())
def test_a_cut_vector_is_a_unit_prefix(vectors, data):
    """Every cut keeps the prefix's direction and has length one, or zero where it was zero."""
    dim = data.draw(st.integers(1, vectors.shape[1]))
    cut = truncate(vectors, dim)
    lengths = np.linalg.norm(cut.astype(np.float64), axis=1)
    is_zero = ~vectors[:, :dim].any(axis=1)
    # float32 rounds each of at most 64 numbers by 6e-8.
    np.testing.assert_allclose(lengths, np.where(is_zero, 0, 1), atol=1e-6)
    scale = np.linalg.norm(vectors[:, :dim].astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(cut * scale, vectors[:, :dim], rtol=1e-5, atol=1e-30)


# Scaling a row to length one takes numbers 2**-149 times its largest below float32's range, so
# these are within 2**90 of each other, or zero.
sizeable = st.floats(2.0**-66, 2.0**20, width=32)
sizeable_matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 64)),
    elements=st.just(0.0) | sizeable | sizeable.map(lambda number: -number),
)


@given(sizeable_matrices, st.data())
def test_cutting_twice_is_cutting_once(vectors, data):
    """A size cut from a bigger size equals the same size cut from the full vector."""
    big = data.draw(st.integers(1, vectors.shape[1]))
    small = data.draw(st.integers(1, big))
    np.testing.assert_allclose(
        truncate(truncate(vectors, big), small), truncate(vectors, small), atol=2e-6
    )


@given(matrices)
def test_packed_bytes_read_back(vectors):
    """What is packed is unpacked bit for bit."""
    assert (unpack(pack(vectors), vectors.shape[1]) == vectors).all()


def test_bytes_are_little_endian_float32():
    """The wire format does not depend on the machine."""
    assert pack(np.array([[1.0, -2.0]], dtype=np.float32)).hex() == "0000803f000000c0"


@pytest.mark.parametrize("data", [b"", b"123", b"\0" * 12])
def test_half_a_row_is_refused(data):
    """Bytes that are not a whole number of rows are an error, not a guess."""
    with pytest.raises(InvalidRequest, match="rows of 2"):
        unpack(data, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_must_be_finite(bad):
    """NaN and infinity never enter a collection."""
    with pytest.raises(InvalidRequest, match="finite"):
        unpack(pack(np.array([[1.0, bad]], dtype=np.float32)), 2)


def test_tiny_vectors_keep_their_direction():
    """Numbers whose squares underflow still normalise."""
    np.testing.assert_allclose(
        normalize(np.array([[3e-30, 4e-30]], dtype=np.float32)), [[0.6, 0.8]], rtol=1e-6
    )


def test_layer_norm_comes_before_the_cut():
    """The pre-op sees the whole vector: cutting first would give another mean."""
    vectors = np.array([[1.0, 2.0, 3.0, 10.0]], dtype=np.float32)
    normed = apply_pre_op(vectors, "layer_norm")
    np.testing.assert_allclose(normed.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(normed.std(), 1, rtol=1e-4)
    assert not np.allclose(truncate(normed, 2), truncate(vectors, 2))


@pytest.mark.parametrize("dim", [0, -1, 9, 10**12])
def test_impossible_sizes_are_refused(dim):
    """A size outside 1..full is refused with the range that is accepted."""
    with pytest.raises(InvalidRequest, match="between 1 and 8"):
        check_dim(dim, (), 8)


def test_undeclared_sizes_are_refused_with_the_declared_ones():
    """A declared list is strict, and the full size is always in it."""
    check_dim(8, (2, 4), 8)
    with pytest.raises(InvalidRequest, match="one of 2, 4, 8"):
        check_dim(3, (2, 4), 8)
