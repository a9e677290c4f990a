"""A model folder that could run code, or is not whole, is refused in one sentence."""

import json
import shutil
import struct

import pytest

from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, locate
from services.shared.safety import check_folder, has_two_towers


@pytest.fixture
def folder(tmp_path):
    """A copy of the default model's small files, with weights of no size."""
    target = tmp_path / "model"
    shutil.copytree(locate(BASE_MODEL), target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
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


@pytest.mark.parametrize("named", ["torch.hub.load", ["torch.hub.load"]])
def test_activations_come_from_a_closed_table(folder, named):
    """A Dense head cannot name an import as its activation."""
    (folder / "x").mkdir()
    (folder / "x" / "config.json").write_text(json.dumps({"activation_function": named}))
    (folder / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Dense", "path": "x"}]'
    )
    with pytest.raises(InvalidRequest, match="torch.hub.load"):
        check_folder(folder)


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    """What makes a folder a model is named."""
    with pytest.raises(InvalidRequest, match=r"modules\.json"):
        check_folder(tmp_path)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_nested_config_cannot_run_code(folder, part):
    """A key that is refused outside is refused inside too."""
    config = json.loads((folder / "config.json").read_text())
    config[part] = {"auto_map": {"AutoModel": "x.Y"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequest, match="remote code"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "preprocessor_config.json"])
def test_tokenizers_and_processors_cannot_run_code(folder, name):
    """Not only the model's own config can name remote code."""
    (folder / name).write_text(json.dumps({"auto_map": {"AutoProcessor": "x.Y"}}))
    with pytest.raises(InvalidRequest, match="remote code"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_args": {"attn_implementation": "someone/kernel"}}, "attn_implementation"),
        ({"tokenizer_name_or_path": "../elsewhere"}, "tokenizer_name_or_path"),
        ({"query_expansion": {"length": 32}}, "query_expansion"),
        ({"transformer_task": "text-generation"}, "feature-extraction"),
    ],
)
def test_a_transformers_own_file_chooses_no_code(folder, config, message):
    """What a module's file hands to loaders comes from a closed table."""
    (folder / "sentence_bert_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequest, match=message):
        check_folder(folder)


def test_links_stay_in_the_folder(folder, tmp_path):
    """A link to a file elsewhere is refused, a link inside is not."""
    (folder / "inside.txt").symlink_to(folder / "vocab.txt")
    check_folder(folder)
    (tmp_path / "secret.txt").write_text("x")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InvalidRequest, match="link out of the model folder"):
        check_folder(folder)


def test_a_linked_directory_is_not_followed_out(folder, tmp_path):
    """A module's folder cannot be a link to another place."""
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(folder / "1_Pooling")
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidRequest, match="link out of the model folder"):
        check_folder(folder)


def test_the_hub_caches_own_links_are_followed(folder, tmp_path):
    """A snapshot of the hub's cache is links to the blobs beside it."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "blobs").mkdir()
    (snapshot / "vocab.txt").rename(repository / "blobs" / "abc")
    (snapshot / "vocab.txt").symlink_to("../../blobs/abc")
    check_folder(snapshot)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 2) + b"{}" + b"more than the header says",
        struct.pack("<Q", 2) + b"[]",
    ],
)
def test_weights_that_are_not_whole_are_refused(folder, data):
    """A truncated or padded file is noticed without reading its weights."""
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InvalidRequest, match="not a whole safetensors file"):
        check_folder(folder)


def test_weights_cut_short_are_refused(folder):
    """The header's promise of bytes is kept by the file's length."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + b"\0" * 8
    (folder / "model.safetensors").write_bytes(whole)
    check_folder(folder)
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(InvalidRequest, match="not a whole safetensors file"):
        check_folder(folder)


def test_adapters_and_other_kinds_of_model_are_refused(folder):
    """What is not one whole model of one vector a text says so."""
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')
    with pytest.raises(InvalidRequest, match="SparseEncoder"):
        check_folder(folder)
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="merge the adapter"):
        check_folder(folder)


def route(folder, config):
    """Make the folder a two-tower one."""
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Router", "path": ""}])
    )
    (folder / "router_config.json").write_text(json.dumps(config))


_KIND = "sentence_transformers.models.Transformer"
_STRUCTURE = {"query": ["q"], "document": ["d"]}


def test_a_router_of_two_towers_is_accepted(folder):
    """Queries and documents, each with modules of its own."""
    assert not has_two_towers(folder)
    route(folder, {"types": {"q": _KIND, "d": _KIND}, "structure": _STRUCTURE, "parameters": {}})
    check_folder(folder)
    assert has_two_towers(folder)


@pytest.mark.parametrize(
    ("types", "structure", "parameters", "message"),
    [
        ({"q": "os.system", "d": _KIND}, _STRUCTURE, {}, "os.system"),
        ({"../../q": _KIND, "d": _KIND}, _STRUCTURE, {}, "outside"),
        ({"q": _KIND.replace("Transformer", "Router"), "d": _KIND}, _STRUCTURE, {}, "nests"),
        ({"q": _KIND}, {"image": ["q"], "text": ["q"]}, {}, "'query' and 'document'"),
        ({"q": _KIND}, {"query": ["q"], "document": ["x"]}, {}, "out of its 'types'"),
        ({"q": _KIND, "d": _KIND}, _STRUCTURE, {"route_mappings": {"x": "q"}}, "route"),
        ([], _STRUCTURE, {}, "'types' and 'structure'"),
    ],
)
def test_a_router_cannot_lead_elsewhere(folder, types, structure, parameters, message):
    """Towers come from the same closed table, and lie in the folder."""
    route(folder, {"types": types, "structure": structure, "parameters": parameters})
    with pytest.raises(InvalidRequest, match=message):
        check_folder(folder)


def test_the_router_comes_first(folder):
    """A router behind another module would get no texts."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Router", "path": "3_Router"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidRequest, match="Router first"):
        check_folder(folder)
