"""The size that fits: chosen from what was measured, and told why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.encoder.auto import Auto, choose
from services.shared.card import DimScores, Quality
from services.shared.errors import InvalidRequest
from services.shared.quantization import bytes_per_vector

KEPT = {32: 0.70, 64: 0.90, 100: 0.93, 128: 0.96, 384: 1.0}


def measured(kept=KEPT, best=0.5):
    scores = tuple(
        DimScores(dim=dim, ndcg10=share * best, recall10=0, mrr10=0) for dim, share in kept.items()
    )
    return Quality(data="some pairs", num_queries=9, num_documents=9, before=scores, after=scores)


def pick(dtype="float32", quality=None, **bounds):
    return choose(Auto(**bounds), quality or measured(), "some-model", 384, dtype)


@pytest.mark.parametrize(
    ("bounds", "dtype", "dim"),
    [
        ({"min_retention": 0.9}, "float32", 64),
        ({"min_retention": 0.91}, "float32", 100),
        ({"min_retention": 0.91}, "ubinary", 128),
        ({"min_retention": 1}, "float32", 384),
        ({"min_retention": 0}, "float32", 32),
        ({"max_bytes": 384}, "float32", 64),
        ({"max_bytes": 384}, "int8", 384),
        ({"max_bytes": 16}, "binary", 128),
        ({"max_bytes": 10**6}, "float32", 384),
        ({"min_retention": 0.6, "max_bytes": 384}, "float32", 32),
        ({"min_retention": 0.95, "max_bytes": 512}, "float32", 128),
    ],
)
def test_the_right_size_is_chosen(bounds, dtype, dim):
    """Smallest that keeps enough; without that bound the largest that fits."""
    choice = pick(dtype, **bounds)
    assert choice.dim == dim
    assert choice.retained == pytest.approx(KEPT[dim])
    assert choice.num_bytes == bytes_per_vector(dim, dtype)
    assert choice.data == "some pairs"
    for bound in bounds.values():
        assert f"{bound:g}" in choice.reason or str(bound) in choice.reason


@pytest.mark.parametrize(
    ("bounds", "dtype", "param", "message"),
    [
        ({}, "float32", "dimensions", "needs min_retention .*, max_bytes, or both"),
        ({"min_retention": 1.1}, "float32", "min_retention", "between 0 and 1"),
        ({"min_retention": float("nan")}, "float32", "min_retention", "between 0 and 1"),
        ({"max_bytes": 0}, "float32", "max_bytes", "at least 1"),
        ({"max_bytes": 127}, "float32", "max_bytes", "the smallest, 32, takes 128"),
        (
            {"min_retention": 0.95, "max_bytes": 511}, "float32", "max_bytes",
            "takes 128 dimensions, 512 bytes as float32, which is over max_bytes 511",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_met_says_what_could(bounds, dtype, param, message):
    """One sentence, with the figure that is nearest."""
    with pytest.raises(InvalidRequest, match=message) as error:
        pick(dtype, **bounds)
    assert error.value.param == param


@pytest.mark.parametrize("quality", [None, measured({64: 1.0}), measured(best=0.0)])
def test_a_model_that_was_not_measured_says_how_to(quality):
    """Nothing, not the full size, or a full size that finds nothing: no share can be told."""
    with pytest.raises(InvalidRequest, match="some-model has none.*matryoshka card"):
        choose(Auto(min_retention=0.9), quality, "some-model", 384, "float32")


def test_bits_need_whole_bytes():
    """If no measured size is a multiple of 8, that is said."""
    with pytest.raises(InvalidRequest, match="multiple of 8"):
        choose(Auto(max_bytes=99), measured({100: 1.0}), "some-model", 100, "binary")


shares = st.dictionaries(st.integers(1, 383), st.floats(0, 1), max_size=6)


@given(shares, st.floats(0, 1), st.integers(1, 2000))
def test_both_bounds_hold_or_nothing_is_chosen(kept, least, most):
    """Whatever was measured: the choice satisfies both, and no smaller size does."""
    kept = {**kept, 384: 1.0}
    fits = [d for d in sorted(kept) if kept[d] * 0.5 / 0.5 >= least and 4 * d <= most]
    try:
        choice = pick(quality=measured(kept), min_retention=least, max_bytes=most)
    except InvalidRequest:
        assert not fits
    else:
        assert choice.dim == fits[0]
