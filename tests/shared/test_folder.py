"""Where model folders are, and which of them make the same vectors."""

import shutil

import pytest

from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, locate, space_id


@pytest.fixture
def folder(tmp_path):
    """A copy of the base model's small files; its weights are a link."""
    source = locate(BASE_MODEL)
    target = tmp_path / "model"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    return target


def test_a_folder_that_is_not_there_is_said(tmp_path):
    """The sentence says what would be accepted."""
    with pytest.raises(InvalidRequest, match="no model folder"):
        locate(str(tmp_path / "missing"))


def test_space_id_follows_weights_and_recipe_only(folder):
    """A changed tokenizer, prompt or pre-op is another space; a changed README is not."""
    before = space_id(folder, "none", {})
    (folder / "README.md").write_text("other words")
    (folder / "matryoshka.json").write_text("{}")
    assert space_id(folder, "none", {}) == before
    assert space_id(folder, "layer_norm", {}) != before
    assert space_id(folder, "none", {"query": "q: "}) != before
    (folder / "tokenizer_config.json").write_text("{}")
    assert space_id(folder, "none", {}) != before
