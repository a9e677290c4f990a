"""A two-tower model reads queries and documents with different parts, into one space."""

import numpy as np
import pytest

from services.shared.errors import InvalidRequest
from services.shared.model import TextModel
from services.shared.tower import TowerTokens
from services.trainer.jobs.bases import locate_base
from tests.families import checkpoints

QUERY, DOCUMENT = "what is the number?", "the number is two"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers") / "asym"
    folder.mkdir()
    checkpoints.leaf_asym(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return TextModel(folder, "float32", "cpu")


def test_a_role_must_be_said(model):
    """Without one there is no right tower; the sentence says what would be accepted."""
    for ask in (
        lambda: model.tokenize([QUERY]),
        lambda: model.wrap([5]),
        lambda: model.encode_texts([QUERY]),
        lambda: model.encode([[2, 5, 3]]),
        lambda: model.forward([[2, 5, 3]]),
    ):
        with pytest.raises(InvalidRequest, match="'query' or 'document'") as caught:
            ask()
        assert caught.value.param == "input_type"


def test_each_tower_has_its_own_tokens_and_bound(model):
    """Two tokenizers, two longest texts; what both can read is the model's."""
    query, document = model.towers["query"], model.towers["document"]
    assert (query.max_tokens, document.max_tokens) == (128, 256)
    assert model.max_tokens == 128
    assert model.tokenize([DOCUMENT], "query") != model.tokenize([DOCUMENT], "document")
    assert len(query.tokenizer) != len(document.tokenizer)
    long = " ".join([DOCUMENT] * 100)
    for role, bound in (("query", 128), ("document", 256)):
        for side in ("end", "start"):
            cut = model.cut_tokens(model.tokenize([long], role)[0], side)
            assert len(cut) == bound
            assert isinstance(cut, TowerTokens)
            assert cut.role == role


def test_one_batch_may_hold_both_roles(model):
    """Each text goes to its own tower, and comes back in its own row."""
    queries = model.tokenize([QUERY, DOCUMENT], "query")
    documents = model.tokenize([QUERY, DOCUMENT], "document")
    mixed = model.encode([queries[0], documents[0], queries[1], documents[1]])
    np.testing.assert_allclose(mixed[[0, 2]], model.encode(queries), atol=1e-6)
    np.testing.assert_allclose(mixed[[1, 3]], model.encode(documents), atol=1e-6)


def test_a_callers_own_ids_are_those_of_the_tower(model):
    """Ids are wrapped and bounded by the tokenizer of the role."""
    for role, tower in model.towers.items():
        ids = tower.tokenizer(DOCUMENT, add_special_tokens=False)["input_ids"]
        assert model.wrap(ids, role) == tower.tokenize([DOCUMENT])[0]
        with pytest.raises(InvalidRequest, match=f"between 0 and {len(tower.tokenizer) - 1}"):
            model.wrap([len(tower.tokenizer)], role)


def test_towers_of_different_widths_are_refused(folder, tmp_path):
    """Queries and documents that cannot be compared are not one model."""
    checkpoints.leaf_asym(tmp_path)
    (tmp_path / "query_2_Dense" / "model.safetensors").unlink()
    checkpoints.write_dense(tmp_path / "query_2_Dense", checkpoints.WIDTH, 40)
    with pytest.raises(InvalidRequest, match="40 and 48 numbers"):
        TextModel(tmp_path, "float32", "cpu")


def test_the_trainer_refuses_two_towers(folder):
    """A job for such a model is refused before anything is queued."""
    with pytest.raises(InvalidRequest, match="served, not trained") as caught:
        locate_base(str(folder))
    assert caught.value.param == "base_model"
