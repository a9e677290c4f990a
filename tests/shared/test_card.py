"""matryoshka.json round trips, and a wrong one says where it is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.card import FILENAME, Card, DimScores, Quality, read_card, write_card
from services.shared.errors import InvalidRequest

unit = st.floats(0, 1)
scores = st.builds(DimScores, dim=st.integers(1, 4096), ndcg10=unit, recall10=unit, mrr10=unit)
cards = st.builds(
    Card,
    id=st.text(min_size=1),
    dims=st.sets(st.integers(1, 4096), min_size=1).map(lambda s: tuple(sorted(s))),
    pre_op=st.sampled_from(["none", "layer_norm"]),
    prompts=st.dictionaries(st.sampled_from(["query", "document"]), st.text()),
    base_model=st.none() | st.text(),
    space_id=st.text(),
    quality=st.none()
    | st.builds(
        Quality,
        data=st.text(),
        num_queries=st.integers(1, 9),
        num_documents=st.integers(1, 9),
        before=st.lists(scores).map(tuple),
        after=st.lists(scores).map(tuple),
    ),
)


@given(cards)
def test_a_card_reads_back(tmp_path_factory, card):
    """What is written is read, whatever it holds."""
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, card)
    assert read_card(folder) == card


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
    ],
)
def test_a_wrong_card_says_where(tmp_path, text, where):
    """The error names the file and the field."""
    (tmp_path / FILENAME).write_text(text)
    with pytest.raises(InvalidRequest, match=rf"(?s)matryoshka\.json.*{where}"):
        read_card(tmp_path)
