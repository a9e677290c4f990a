"""A card for a folder that was not trained here: what it says, and that it still loads."""

import json

import numpy as np
import pytest

from services.cli.card import measure, read_sample
from services.shared.card import read_card
from services.shared.errors import AlreadyExists, ServiceError
from services.shared.model import TextModel
from services.trainer.results.measure import Sample, copy_with_card, measure_card
from tests.trainer.conftest import WORDS


def sentences(count):
    return [" ".join(WORDS[n // 16**place % 16] for place in range(4)) for n in range(count)]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(sentences(120)))
    return path


def test_a_folder_of_ones_own_gets_its_card(tmp_path, texts, tiny_model, capsys):
    """Sizes, quality and ranges; the folder still loads and makes the same space."""
    copy_with_card(str(tiny_model), tmp_path / "model", measured(tiny_model, texts))
    before = TextModel(tmp_path / "model", "float32")
    (tmp_path / "model" / "matryoshka.json").unlink()
    measure(str(tmp_path / "model"), texts, [8, 16], None)
    card = read_card(tmp_path / "model")
    assert card.dims == (8, 16, 32)
    assert list(card.ranges) == [8, 16, 32]
    assert card.quality.judged_by == "neighbours"
    assert [score.dim for score in card.quality.after] == [8, 16, 32]
    assert card.quality.after[-1].ndcg10 == pytest.approx(1)
    assert 0 < card.quality.after[0].ndcg10 < card.quality.after[1].ndcg10 < 1
    assert TextModel(tmp_path / "model", "float32").space_id == before.space_id == card.space_id
    assert "retained" in capsys.readouterr().out


def measured(folder, texts, **sample):
    return measure_card(str(folder), Sample("some", **(sample or {"texts": sentences(120)})), [])


def test_labels_are_worth_more_than_neighbours(tmp_path, texts, tiny_model):
    """Pairs replace what was measured without labels; never the other way round."""
    pairs = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"anchor": text, "positive": f"{text} here"}) for text in sentences(120)]
    pairs.write_text("\n".join(lines))
    labelled = measured(tiny_model, texts, pairs=read_sample(pairs).pairs)
    assert labelled.quality.judged_by == "labels"
    copy_with_card(str(tiny_model), tmp_path / "model", labelled)
    again = measured(tmp_path / "model", texts)
    assert again.quality == labelled.quality
    assert again.int8_ranges != labelled.int8_ranges
    assert (again.id, again.dims) == (labelled.id, labelled.dims)


def test_the_ranges_hold_most_of_what_comes(tiny_model, texts):
    """Texts that were not in the sample fall inside, but for a few numbers."""
    card = measured(tiny_model, texts)
    vectors = TextModel(tiny_model, "float32").encode_texts(sentences(400)[120:])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    low, high = card.ranges[32]
    assert ((vectors > low) & (vectors < high)).mean() > 0.95


def test_a_copy_overwrites_nothing(tmp_path, texts, tiny_model):
    """A folder that is there stays as it is."""
    with pytest.raises(AlreadyExists, match="give the name of a new folder"):
        copy_with_card(str(tiny_model), tmp_path, measured(tiny_model, texts))


@pytest.mark.parametrize(
    ("model", "file", "dims", "message"),
    [
        ("all-MiniLM-L6-v2", "texts.txt", [], "name a new one with --output"),
        ("{tiny}", "nothing.txt", [], "no file at"),
        ("{tiny}", "few.txt", [], "3 different texts; at least 100"),
        ("{tiny}", "texts.txt", [33], "between 1 and 32"),
        ("{tiny}", "texts.txt", [0], "between 1 and 32"),
        ("{tiny}", "wrong.jsonl", [], 'wrong.jsonl:2: each line must be {"text"'),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, texts, tiny_model, model, file, dims, message):
    """And nothing is written."""
    (tmp_path / "few.txt").write_text("a\nb\nc\nc\n")
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(ServiceError) as error:
        measure(model.format(tiny=tiny_model), tmp_path / file, dims, None)
    assert message in error.value.message
    assert not (tiny_model / "matryoshka.json").exists()
