"""The finished folder: what plain sentence-transformers and our own loader make of it."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from services.shared.card import DimScores, Quality
from services.shared.errors import InvalidRequest, ServiceError
from services.shared.model import TextModel
from services.shared.safety import check_folder
from services.shared.vectors import normalize, truncate
from services.trainer.results.export import Origin, add_head, copy_base, finish
from services.trainer.results.layout import (
    full_width,
    read_json,
    read_modules,
    spell_for_all,
    write_modules,
)
from services.trainer.training.layers import Layer

TEXTS = ["red cat sees the house", "a", "blue river opens " * 20]


def quality(dims):
    scores = tuple(DimScores(dim=dim, ndcg10=0.5, recall10=0.5, mrr10=0.5) for dim in dims)
    return Quality(data="x", num_queries=1, num_documents=1, before=scores, after=scores)


def export(base, folder, weight, pre_op="none", dims=(16, 32), expected=None, max_tokens=48):
    if expected is None:
        expected = TextModel(base, "float32").encode_texts(TEXTS) @ weight.T
    copy_base(base, folder / "new")
    add_head(folder / "new", [Layer(weight)], pre_op)
    origin = Origin(
        model_id="ft:x:y:1", base_model="x", data_digest="0" * 64, dims=dims, prompts={}
    )
    return finish(
        folder / "new", folder / "model", origin, quality(dims), "none", max_tokens,
        (TEXTS, expected), [expected, expected[:1]],
    )  # fmt: skip


@pytest.fixture
def rotation():
    return np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)


def test_plain_sentence_transformers_gives_the_same_vectors(tmp_path, tiny_model, rotation):
    """The head is part of the folder, in both spellings, and the longest text stays as it was."""
    head = rotation * np.linspace(0.5, 2, 32, dtype=np.float32)  # changes lengths too
    card = export(tiny_model, tmp_path, head)
    folder = tmp_path / "model"
    check_folder(folder)
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    base = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS)
    expected = normalize(base @ head.T)
    np.testing.assert_allclose(plain.encode(TEXTS), expected, atol=1e-5)
    assert plain.max_seq_length == 48
    ours = TextModel(folder, "float32")
    assert (normalize(ours.encode_texts(TEXTS)) * expected).sum(axis=1).min() > 0.99999
    assert ours.space_id == card.space_id
    assert ours.declared_dims == (16, 32)
    assert ours.max_tokens == 48
    assert not (tmp_path / "new").exists()


def test_the_card_has_byte_ranges_of_each_size(tmp_path, tiny_model, rotation):
    """Measured on the vectors as they will be stored: cut, and of unit length."""
    card = export(tiny_model, tmp_path, rotation)
    vectors = TextModel(tmp_path / "model", "float32").encode_texts(TEXTS)
    assert list(card.ranges) == [16, 32]
    for dim, (low, high) in card.ranges.items():
        assert (truncate(vectors, dim) > low).all()
        assert (truncate(vectors, dim) < high).all()
        assert (high - low).mean() < 1
    written = read_json(tmp_path / "model" / "matryoshka.json")["int8_ranges"]
    assert [entry["dim"] for entry in written] == [16, 32]


def test_readers_of_both_spellings_find_what_they_want_and_the_sizes(tmp_path, default_model):
    """Pooling, width, longest text and sizes, in keys that releases before and after 5.4 know."""
    identity = np.eye(384, dtype=np.float32)
    export(default_model, tmp_path, identity, dims=(64, 384), max_tokens=256)
    folder = tmp_path / "model"
    pooling = read_json(folder / "1_Pooling" / "config.json")
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["pooling_mode"] == "mean"
    assert pooling["word_embedding_dimension"] == 384
    assert read_json(folder / "sentence_bert_config.json")["max_seq_length"] == 256
    config = read_json(folder / "config.json")
    assert config["is_matryoshka"] is True
    assert config["matryoshka_dimensions"] == [64, 384]
    types = [module["type"] for module in read_json(folder / "modules.json")]
    assert types[-2:] == [
        "sentence_transformers.models.Dense",
        "sentence_transformers.models.Normalize",
    ]
    assert SentenceTransformer(str(folder), device="cpu").max_seq_length == 256
    readme = (folder / "README.md").read_text()
    assert "| 64 | 0.500 → 0.500 |" in readme
    assert "**Note:** too few held-out queries (1)" in readme


# What the modules of sentence-transformers 5.1 take; they refuse every other key.
POOLING_5_1 = {"word_embedding_dimension", "pooling_mode", "include_prompt"} | {
    f"pooling_mode_{mode}"
    for mode in (
        "cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
        "lasttoken",
    )
}  # fmt: skip
DENSE_5_1 = {"in_features", "out_features", "bias", "activation_function"}


def test_no_file_has_a_key_that_older_releases_refuse(tmp_path, tiny_model, rotation):
    """A base as today's release saves it becomes a folder that 5.1 loads too."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    weights = torch.nn.Linear(32, 32, bias=False)
    torch.nn.init.eye_(weights.weight)
    dense = Dense(32, 32, bias=False, activation_function=torch.nn.Identity())
    dense.linear = weights
    (base / "3_Dense").mkdir()
    dense.save(str(base / "3_Dense"))
    write_modules(base, [*read_modules(base), ("Dense", base / "3_Dense")])
    assert "modality_config" in read_json(base / "sentence_bert_config.json")
    assert "embedding_dimension" in read_json(base / "1_Pooling" / "config.json")
    assert "module_input_name" in read_json(base / "3_Dense" / "config.json")
    export(base, tmp_path, rotation)
    folder = tmp_path / "model"
    transformer = read_json(folder / "sentence_bert_config.json")
    assert set(transformer) <= {"max_seq_length", "do_lower_case"}
    assert set(read_json(folder / "1_Pooling" / "config.json")) <= POOLING_5_1
    for name in ("3_Dense", "4_Dense"):
        assert set(read_json(folder / name / "config.json")) == DENSE_5_1
    plain = SentenceTransformer(str(folder), device="cpu")
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS) @ rotation.T
    np.testing.assert_allclose(plain.encode(TEXTS), expected, atol=1e-5)


def test_several_poolings_are_said_in_flags(tmp_path, tiny_model):
    """Older releases take one name only, newer ones find both modes in the flags."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    config = {"embedding_dimension": 32, "pooling_mode": ["cls", "mean"]}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    spell_for_all(folder, 48)
    assert "pooling_mode" not in read_json(folder / "1_Pooling" / "config.json")
    assert full_width(folder) == 64
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.encode("a").shape == (64,)


def test_a_layer_norm_before_the_cut_becomes_a_module(tmp_path, tiny_model, rotation):
    """A base that wants a layer norm keeps it, in front of the head."""
    vectors = TextModel(tiny_model, "float32").encode_texts(TEXTS)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    layered = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    export(tiny_model, tmp_path, rotation, "layer_norm", expected=layered @ rotation.T)
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    cosines = (plain.encode(TEXTS) * normalize(layered @ rotation.T)).sum(axis=1)
    assert cosines.min() > 0.99999


def test_a_folder_with_other_vectors_is_not_published(tmp_path, tiny_model, rotation):
    """If loading it again gives something else than was evaluated, the job fails."""
    wrong = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    with pytest.raises(ServiceError, match="not those that were evaluated"):
        export(tiny_model, tmp_path, rotation, expected=wrong)
    assert not (tmp_path / "model").exists()


def test_a_trained_folder_can_be_the_next_base(tmp_path, tiny_model, rotation):
    """A head on a head: the width is found, the card is made anew."""
    export(tiny_model, tmp_path / "1", rotation)
    first = tmp_path / "1" / "model"
    assert full_width(first) == 32
    export(first, tmp_path / "2", rotation.T.copy())
    plain = SentenceTransformer(str(tmp_path / "2" / "model"), device="cpu")
    base = SentenceTransformer(str(tiny_model), device="cpu")
    assert (plain.encode(TEXTS) * base.encode(TEXTS)).sum(axis=1).min() > 0.99999


def test_the_width_is_read_from_either_spelling(tmp_path, tiny_model, default_model):
    """Without loading a model; an unknown layout is a clear error."""
    assert full_width(tiny_model) == 32
    assert full_width(default_model) == 384
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    modules = read_json(copy / "modules.json")[:1]
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidRequest, match="width"):
        full_width(copy)
