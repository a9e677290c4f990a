"""The text model makes sentence-transformers' vectors, packed, alone or in any company."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, locate
from services.shared.forward import Padded
from services.shared.loading import load_modules
from services.shared.model import TextModel
from services.shared.packing import split_by_tokens
from services.shared.tower import Tower

TEXTS = [
    "short",
    "A question about packing: why no padding?",
    "word " * 100,
    "ünïcödé und 日本語 mixed",
    "  spaces\tand\nlines  ",
    "word " * 400,
]


@pytest.fixture(scope="module")
def model():
    return TextModel(locate(BASE_MODEL), "float32", "cpu")


@pytest.fixture(scope="module")
def oracle():
    return SentenceTransformer(str(locate(BASE_MODEL)), local_files_only=True, device="cpu")


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_vectors_are_those_of_sentence_transformers(model, oracle):
    """Packed float32 equals the library's own encode, over-long texts included."""
    assert model.engine == "packed float32"
    ours = model.encode_texts(TEXTS)
    # Sums run in another order; 1e-5 is far below what a wrong position or mask would do.
    np.testing.assert_allclose(ours, oracle.encode(TEXTS), atol=1e-5)


def test_padding_gives_the_same_vectors(model):
    """The fallback for architectures that cannot be packed is right too."""
    tower = Tower(load_modules(locate(BASE_MODEL), "cpu"), "cpu")
    batch = sorted((model.cut_tokens(t) for t in model.tokenize(TEXTS)), key=len)
    with torch.inference_mode():
        np.testing.assert_allclose(Padded(tower)(batch), model.forward(batch), atol=1e-5)


def test_bfloat16_is_faithful(oracle):
    """The fast arithmetic stays within the stated bound of the exact one."""
    fast = TextModel(locate(BASE_MODEL), "bfloat16", "cpu")
    assert fast.engine == "packed bfloat16"
    assert cosines(fast.encode_texts(TEXTS), oracle.encode(TEXTS)).min() > 0.999


def test_auto_keeps_what_is_measured_faster_and_faithful(oracle):
    """Whatever was chosen, the vectors stay within the bound."""
    chosen = TextModel(locate(BASE_MODEL), "auto", "cpu")
    assert chosen.engine in {"packed float32", "packed bfloat16"}
    assert cosines(chosen.encode_texts(TEXTS), oracle.encode(TEXTS)).min() > 0.999


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12), st.integers(1, 1000))
def test_company_does_not_change_a_vector(model, texts, batch_tokens):
    """A text alone and in any batch of any budget gives the same vector."""
    together = model.encode_texts(texts, batch_tokens=batch_tokens)
    alone = np.concatenate([model.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    """No text is lost or doubled, and padded size stays in budget unless one text is longer."""
    texts = [[0] * length for length in lengths]
    batches = split_by_tokens(texts, budget)
    assert sorted(row for rows in batches for row in rows) == list(range(len(texts)))
    for rows in batches:
        longest = max(lengths[row] for row in rows)
        assert len(rows) == 1 or longest * len(rows) <= budget


def test_token_ids_equal_their_text(model):
    """A caller's own token ids give the vector of the text they spell."""
    ids = model.transformer.tokenizer("nested dolls", add_special_tokens=False)["input_ids"]
    assert model.wrap(ids) == model.tokenize(["nested dolls"])[0]
    with pytest.raises(InvalidRequest, match="between 0 and 30521"):
        model.wrap([30522])


def test_a_lower_bound_on_tokens_cuts_texts(oracle):
    """Set on the model, it counts for its tower, and never lets through more than the tower's."""
    model = TextModel(locate(BASE_MODEL), "float32", "cpu")
    whole = model.max_tokens
    model.max_tokens = whole + 1
    assert model.max_tokens == whole
    model.max_tokens = 16
    text = "nested wooden dolls of many sizes " * 20
    (cut_ids,) = model.tokenize([text], "document")
    assert len(model.cut_tokens(cut_ids)) == 16
    oracle_16 = copy.deepcopy(oracle)
    oracle_16.max_seq_length = 16
    assert cosines(model.encode_texts([text], "document"), oracle_16.encode([text])).min() > 0.9999


def test_prompts_follow_the_role(tmp_path, oracle):
    """A model's query prompt is put before queries and not before documents."""
    folder = tmp_path / "prompted"
    shutil.copytree(locate(BASE_MODEL), folder)
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "search: ", "document": ""}})
    )
    prompted = TextModel(folder, "float32", "cpu")
    np.testing.assert_allclose(
        prompted.encode_texts(["nested dolls"], "query"),
        oracle.encode(["search: nested dolls"]),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        prompted.encode_texts(["nested dolls"], "document"),
        oracle.encode(["nested dolls"]),
        atol=1e-5,
    )


def test_a_card_that_does_not_fit_the_files_is_refused(tmp_path):
    """Weights changed after training are noticed at load."""
    folder = tmp_path / "changed"
    shutil.copytree(locate(BASE_MODEL), folder)
    (folder / "matryoshka.json").write_text(
        json.dumps({"id": "x", "dims": [64, 384], "space_id": "0" * 32})
    )
    with pytest.raises(InvalidRequest, match="changed after training"):
        TextModel(folder, "float32", "cpu")
