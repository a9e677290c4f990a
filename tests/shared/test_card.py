"""matryoshka.json round trips, and a wrong one says where it is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.card import (
    FILENAME,
    Card,
    DimRanges,
    DimScores,
    Quality,
    describe_ranges,
    read_card,
    write_card,
)
from services.shared.errors import InvalidRequest

WITH_RANGES = '{"id":"x","dims":[2],"space_id":"s","int8_ranges":[%s]}'
unit = st.floats(0, 1)
scores = st.builds(DimScores, dim=st.integers(1, 4096), ndcg10=unit, recall10=unit, mrr10=unit)


@st.composite
def byte_ranges(draw):
    """Ranges of any finite numbers, as a file may hold them."""
    dim = draw(st.integers(1, 8))
    numbers = st.lists(st.floats(-2, 2, width=32), min_size=dim, max_size=dim)
    low, high = draw(numbers), draw(numbers)
    ends = list(zip(low, high, strict=True))
    return DimRanges(dim=dim, low=tuple(map(min, ends)), high=tuple(map(max, ends)))


cards = st.builds(
    Card,
    id=st.text(min_size=1),
    dims=st.sets(st.integers(1, 4096), min_size=1).map(lambda s: tuple(sorted(s))),
    pre_op=st.sampled_from(["none", "layer_norm"]),
    prompts=st.dictionaries(st.sampled_from(["query", "document"]), st.text()),
    base_model=st.none() | st.text(),
    space_id=st.text(),
    base_space_id=st.none() | st.text(min_size=1),
    quality=st.none()
    | st.builds(
        Quality,
        data=st.text(),
        num_queries=st.integers(1, 9),
        num_documents=st.integers(1, 9),
        before=st.lists(scores).map(tuple),
        after=st.lists(scores).map(tuple),
        judged_by=st.sampled_from(["labels", "neighbours"]),
    ),
    int8_ranges=st.lists(byte_ranges(), max_size=3).map(tuple),
)


@given(cards)
def test_a_card_reads_back(tmp_path_factory, card):
    """What is written is read, whatever it holds."""
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, card)
    assert read_card(folder) == card


def test_ranges_read_back_as_float32_and_stay_short(tmp_path):
    """Seven digits lose nothing that a byte could show, and numbers share a line."""
    ranges = np.random.default_rng(0).normal(size=(2, 384)).astype(np.float32)
    ranges.sort(axis=0)
    card = Card(id="[ 1 ]", dims=(384,), space_id="s", int8_ranges=describe_ranges({384: ranges}))
    write_card(tmp_path, card)
    read = read_card(tmp_path)
    np.testing.assert_allclose(read.ranges[384], ranges, rtol=1e-6)
    assert read.id == "[ 1 ]"
    assert len((tmp_path / FILENAME).read_text().splitlines()) < 30
    assert [path.name for path in tmp_path.iterdir()] == [FILENAME]


def test_older_readers_take_a_card_that_names_no_base_space(tmp_path):
    """They refuse what they do not know, so the key is there only where it says something."""
    card = Card(id="x", dims=(2,), space_id="s")
    write_card(tmp_path, card)
    assert "base_space_id" not in (tmp_path / FILENAME).read_text()
    assert '"base_model": null' in (tmp_path / FILENAME).read_text()
    write_card(tmp_path, card.model_copy(update={"base_space_id": "b"}))
    assert '"base_space_id": "b"' in (tmp_path / FILENAME).read_text()


def test_no_card_is_not_an_error(tmp_path):
    """Most models have none."""
    assert read_card(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nonsense", "the file"),
        ('{"id":"x","dims":[4,2],"space_id":"s"}', "ascending"),
        ('{"id":"x","dims":[],"space_id":"s"}', "dims"),
        ('{"id":"x","dims":[2],"space_id":"s","pre_op":"tanh"}', "pre_op"),
        ('{"id":"x","dims":[2],"space_id":"s","dim":3}', "dim"),
        ('{"id":"x","dims":[2],"space_id":"s","base_space_id":""}', "base_space_id"),
        (WITH_RANGES % '{"dim":2,"low":[0],"high":[1]}', "int8_ranges.0.*2 numbers each"),
        (WITH_RANGES % '{"dim":1,"low":[1],"high":[0]}', "low must not be above high"),
        (WITH_RANGES % '{"dim":1,"low":[NaN],"high":[0]}', "int8_ranges.0.low"),
    ],
)
def test_a_wrong_card_says_where(tmp_path, text, where):
    """The error names the file and the field."""
    (tmp_path / FILENAME).write_text(text)
    with pytest.raises(InvalidRequest, match=rf"(?s)matryoshka\.json.*{where}"):
        read_card(tmp_path)
