"""A model folder that could run code, or is incomplete, is refused in one sentence."""

import json
import shutil

import pytest

from services.shared.errors import InvalidRequest
from services.shared.folder import DEFAULT_MODEL, check_folder, locate, space_id


@pytest.fixture
def folder(tmp_path):
    """A copy of the default model's small files; its weights are a link."""
    source = locate(DEFAULT_MODEL)
    target = tmp_path / "model"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    return target


def test_the_default_model_is_accepted(folder):
    """The checks let a good folder pass."""
    check_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "1_Pooling/x.pt", "a/b/c.pkl"])
def test_pickles_are_refused(folder, name):
    """A file that may unpickle is refused wherever it lies."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(InvalidRequest, match="pickled"):
        check_folder(folder)


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal", "moe_every_n_layers"])
def test_config_keys_that_run_or_load_wrongly_are_refused(folder, key):
    """The config cannot name code, nor an architecture that loads wrongly."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: {"AutoModel": "x.Y"}}))
    with pytest.raises(InvalidRequest, match=key):
        check_folder(folder)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"type": "os.system", "path": ""}, "os.system"),
        ({"type": "sentence_transformers.models.Evil", "path": ""}, "Evil"),
        ({"type": "sentence_transformers.models.Normalize", "path": "../.."}, "outside"),
        ({"type": "sentence_transformers.models.Dense", "path": "x"}, "config.json"),
        ("text", "objects"),
    ],
)
def test_modules_come_from_a_closed_table(folder, module, message):
    """modules.json cannot import anything else, or leave the folder."""
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(InvalidRequest, match=message):
        check_folder(folder)


def test_activations_come_from_a_closed_table(folder):
    """A Dense head cannot name an import as its activation."""
    (folder / "x").mkdir()
    (folder / "x" / "config.json").write_text('{"activation_function": "torch.hub.load"}')
    (folder / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Dense", "path": "x"}]'
    )
    with pytest.raises(InvalidRequest, match="torch.hub.load"):
        check_folder(folder)


def test_what_is_not_there_is_said(tmp_path):
    """An empty folder and a missing one get different sentences."""
    with pytest.raises(InvalidRequest, match="modules.json"):
        check_folder(tmp_path)
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
