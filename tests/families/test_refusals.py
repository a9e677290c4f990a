"""A folder that would load as something else than it was saved as is refused in one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from services.shared.errors import InvalidRequest
from services.shared.model import TextModel
from tests.families import checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that loads: BERT, pooling, Dense, Normalize."""
    folder = tmp_path_factory.mktemp("refusals") / "leaf"
    folder.mkdir()
    checkpoints.leaf(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "leaf")


def edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def refused(folder):
    """Return the one sentence."""
    with pytest.raises(InvalidRequest) as caught:
        TextModel(folder, "float32", "cpu")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_whole_folder_loads(folder):
    """What is damaged below is not refused before."""
    assert TextModel(folder, "float32", "cpu").full == 48


def test_missing_weights_are_refused(folder):
    """sentence-transformers fills them with random numbers, another vector at each start."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, {"format": "pt"})
    texts = ["the same text"]
    first, second = (
        SentenceTransformer(str(folder), local_files_only=True, device="cpu").encode(texts)
        for _ in range(2)
    )
    assert abs(first - second).max() > 1e-3
    assert "lack encoder.layer.1.output.dense.weight" in refused(folder)


def test_a_missing_pooler_is_no_harm(folder):
    """BERT's own head is read by no pooling, and many repositories leave it out."""
    path = folder / "model.safetensors"
    before = TextModel(folder, "float32", "cpu").encode_texts(["a text"])
    weights = {k: v for k, v in load_file(path).items() if not k.startswith("pooler.")}
    assert len(weights) == len(load_file(path)) - 2
    save_file(weights, path, {"format": "pt"})
    after = TextModel(folder, "float32", "cpu").encode_texts(["a text"])
    assert abs(before - after).max() == 0


def test_weights_for_more_layers_than_the_config_are_refused(folder):
    """transformers would leave the last layers out with a line in the log."""
    edit(folder / "config.json", num_hidden_layers=1)
    message = refused(folder)
    assert "encoder.layer.1." in message
    assert "config.json must describe the model that was saved" in message


@pytest.mark.parametrize(
    "changed", [{"hidden_size": 64}, {"intermediate_size": 32}, {"vocab_size": 20}]
)
def test_weights_of_other_sizes_than_the_config_are_refused(folder, changed):
    """Mismatched sizes are an error, not new random weights."""
    edit(folder / "config.json", **changed)
    assert "could not be loaded" in refused(folder)


def test_weights_that_end_early_are_refused(folder):
    """A download that broke off is noticed before anything is read."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors is not a whole safetensors file" in refused(folder)


def test_no_weights_at_all_are_refused(folder):
    """A folder of configs is not a model."""
    (folder / "model.safetensors").unlink()
    assert "could not be loaded" in refused(folder)


def test_a_dense_that_does_not_fit_is_refused(folder):
    """Its input is as wide as what comes before."""
    shutil.rmtree(folder / "2_Dense")
    checkpoints.write_dense(folder / "2_Dense", 24, 48)
    assert "Dense takes 24 numbers, the module before it gives 32" in refused(folder)


def test_a_pooling_that_does_not_fit_is_refused(folder):
    """So is a pooling from another model."""
    edit(folder / "1_Pooling" / "config.json", word_embedding_dimension=64)
    assert "Pooling takes 64 numbers" in refused(folder)


def test_a_dense_of_another_size_than_its_config_is_refused(folder):
    """Its weights are as large as it says."""
    edit(folder / "2_Dense" / "config.json", out_features=40)
    assert "could not be loaded" in refused(folder)


def test_pooling_without_the_prompt_is_refused(folder):
    """Tokens do not know which of them are the prompt, so vectors would differ."""
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    assert "include_prompt" in refused(folder)


def test_nomic_v2_is_refused(tmp_path):
    """Its mixture of experts would load as something else, and its code is remote."""
    checkpoints.nomic(tmp_path, num_experts=8, moe_every_n_layers=2)
    assert "mixture of experts" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rotary_emb_base", 10000), ("num_experts", 8), ("prenorm", True), ("qkv_proj_bias", True)],
)
def test_a_nomic_config_that_transformers_would_not_follow_is_refused(tmp_path, key, value):
    """Old keys that transformers passes over must say what it does anyway."""
    checkpoints.nomic(tmp_path, **{key: value})
    assert key in refused(tmp_path)


def test_a_nomic_that_normalizes_is_taken_as_it_is(tmp_path):
    """v1 ends in Normalize: nothing is left to the caller, so nothing is added."""
    checkpoints.nomic(tmp_path, ends="Normalize")
    assert TextModel(tmp_path, "float32", "cpu").pre_op == "none"


def test_gte_with_remote_code_is_refused(tmp_path):
    """The architecture that its repositories bring along is never run."""
    checkpoints.gte_native(tmp_path)
    edit(
        tmp_path / "config.json",
        model_type="new",
        architectures=["NewModel"],
        auto_map={"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    )
    assert "needs remote code" in refused(tmp_path)


def test_bge_m3s_pickled_heads_are_refused(tmp_path):
    """The repository as a whole holds pickles; its safetensors alone load."""
    checkpoints.bge_m3(tmp_path)
    torch.save({}, tmp_path / "sparse_linear.pt")
    assert "sparse_linear.pt may hold pickled code" in refused(tmp_path)
