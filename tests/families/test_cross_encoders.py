"""Every family of cross-encoders, in the files of its own repository, scores as its library does.

The checkpoints are small and random, everything else is theirs. Each is read twice: by us, and by
sentence-transformers' CrossEncoder as its users call it.
"""

import json
import random
import shutil
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as Oracle
from tokenizers import Tokenizer, models, pre_tokenizers

from services.shared.cross_encoder import CrossEncoder
from services.shared.cross_encoder_folder import check_cross_encoder, is_cross_encoder
from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.pair_tower import share
from tests.families import checkpoints
from tests.families import cross_encoder_checkpoints as pairs
from tests.families.vocabularies import WORDS, write_json

_random = random.Random(1)
QUERIES = ["what is the search query?", " ".join(_random.choices(WORDS, k=600))]
# Mixed lengths, two alike, and two longer than any of these models reads.
DOCUMENTS = [
    "a",
    *(" ".join(_random.choices(WORDS, k=words)) for words in (700, 7, 20, 20, 60, 130, 420)),
    "ünïcödé 日本",
]

# {family: (its checkpoint, how it must run here)}
FAMILIES = {
    "ms-marco": (pairs.ms_marco, "packed float32"),
    "since-4": (pairs.since_4, "packed float32"),
    "since-6": (pairs.since_6, "packed float32"),
    "bge-reranker": (pairs.bge_reranker, "packed float32"),
    "bge-reranker-left": (partial(pairs.bge_reranker, left=True), "packed float32"),
    "stsb-roberta": (pairs.stsb_roberta, "packed float32"),
    "stsb-distil": (pairs.stsb_distil, "packed float32"),
    "ms-marco-electra": (pairs.ms_marco_electra, "packed float32"),
    "modernbert": (pairs.modern_bert, "packed float32"),
    "modernbert-cls": (partial(pairs.modern_bert, pooling="cls"), "packed float32"),
    "mxbai-v1": (pairs.mxbai_v1, "padded float32"),
}


class Family:
    """A checkpoint, read by us and by the oracle."""

    def __init__(self, folder, engine):
        self.folder, self.engine = folder, engine
        self.ours = CrossEncoder(folder, "float32", "cpu")
        self.oracle = Oracle(str(folder), local_files_only=True, device="cpu")

    def score(self, query, documents):
        return self.ours.score(self.ours.tokenize(query, documents)[0])[:, 0]


def write(folder, checkpoint):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    checkpoint(folder)
    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory):
    checkpoint, engine = FAMILIES[request.param]
    return Family(write(tmp_path_factory.mktemp("pairs") / request.param, checkpoint), engine)


@pytest.mark.parametrize("query", QUERIES, ids=["short", "long"])
def test_scores_are_those_of_sentence_transformers(family, query):
    """Number for number, with the folder's own activation, over-long pairs cut alike."""
    theirs = family.oracle.predict([(query, document) for document in DOCUMENTS])
    ours = family.score(query, DOCUMENTS)
    assert ours.dtype == np.float32
    # Sums run in another order, so the last digits of float32 may differ.
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.ptp(theirs) > 1e-3, "the scores are too close to tell anything"


def test_company_does_not_change_a_score(family):
    """A document alone gets what it gets among others."""
    together = family.score(QUERIES[0], DOCUMENTS)
    alone = [family.score(QUERIES[0], [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_pairs_that_are_cut_are_told(family):
    """By the oracle's own count of a whole pair's tokens; what is cut is as long as may be."""
    tokenizer = family.oracle.tokenizer
    for query in QUERIES:
        read, truncated = family.ours.tokenize(query, DOCUMENTS)
        whole = [len(tokenizer(query, d, truncation=False)["input_ids"]) for d in DOCUMENTS]
        if family.folder.name == "since-6":
            whole = [count + len(tokenizer.tokenize("search query: ")) for count in whole]
        assert truncated == [row for row, count in enumerate(whole) if count > 512]
        assert [len(pair) for pair in read] == [min(count, 512) for count in whole]
        assert len(truncated) in range(1, len(DOCUMENTS)) or query == QUERIES[1]


def test_it_runs_as_expected(family):
    """How it runs here, and that its folder is known for what it is."""
    assert family.ours.engine == family.engine
    assert is_cross_encoder(family.folder)


def test_bfloat16_is_near(family, monkeypatch):
    """Rounded weights stay near where the network is packed; otherwise they are refused."""
    # Random networks' numbers lie so close together that rounding is a larger share of that.
    monkeypatch.setattr("services.shared.choice.MIN_COSINE_ROUNDED", 0.99)
    if family.engine == "padded float32":
        with pytest.raises(InvalidRequest, match="that can be packed"):
            CrossEncoder(family.folder, "bfloat16", "cpu")
        return
    fast = CrossEncoder(family.folder, "bfloat16", "cpu")
    assert fast.engine == "packed bfloat16"
    assert any(p.dtype is torch.bfloat16 for p in fast.transformer.parameters())
    theirs = family.oracle.predict([(QUERIES[0], document) for document in DOCUMENTS])
    ours = fast.score(fast.tokenize(QUERIES[0], DOCUMENTS)[0])[:, 0]
    np.testing.assert_allclose(ours, theirs, atol=0.02)


@hypothesis.given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 45))
def test_two_texts_share_the_room_as_in_the_library(first, second, room):
    """For any lengths and any room, odd or even."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(room, strategy="longest_first")
    owners = tokenizer.encode("a " * first, "a " * second).sequence_ids
    assert share(first, second, room) == (owners.count(0), owners.count(1))


def test_the_arithmetic_is_chosen_by_measurement(tmp_path):
    """What was measured is told and kept; whatever won is faithful."""
    folder = write(tmp_path / "plain", pairs.bert)
    chosen = CrossEncoder(folder, "auto", "cpu", tmp_path / "engines")
    trials = {trial.engine: trial for _, trial in chosen.trials}
    assert trials.keys() >= {"packed float32"}
    assert trials["packed float32"].min_cosine == pytest.approx(1, abs=1e-6)
    assert trials[chosen.engine].min_cosine >= 0.999
    again = CrossEncoder(folder, "auto", "cpu", tmp_path / "engines")
    assert (again.engine, again.trials) == (chosen.engine, chosen.trials)


def edit(path, **changed):
    written = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, written | changed)


@pytest.fixture
def folder(tmp_path):
    """A plain cross-encoder to damage."""
    return write(tmp_path / "plain", pairs.bert)


@pytest.fixture
def new_folder(tmp_path):
    """One with modules."""
    return write(tmp_path / "new", pairs.since_6)


def refused(folder):
    """Return the one sentence."""
    assert is_cross_encoder(folder)
    with pytest.raises(InvalidRequest) as caught:
        CrossEncoder(folder, "float32", "cpu")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_several_labels_are_refused(tmp_path):
    """Classes are no score, as of models for entailment."""
    folder = write(tmp_path / "nli", partial(pairs.bert, num_labels=3))
    assert "has 3 labels; a cross-encoder that can be served has one" in refused(folder)


def test_language_models_are_refused(folder, new_folder):
    """Those that answer yes or no, as a plain folder and with the library's own module for it."""
    edit(folder / "config.json", architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    assert "is a language model (Qwen3ForCausalLM)" in refused(folder)
    listed = json.loads((new_folder / "modules.json").read_text())
    score = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    listed.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": score})
    write_json(new_folder / "modules.json", listed)
    assert "one that says yes or no is not served as a reranker" in refused(new_folder)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("sentence_transformers.base.modules.Dense", ""),
        ("other.Transformer", ""),
        ("sentence_transformers.base.modules.transformer.Transformer", "../elsewhere"),
        ("Transformer", ""),
        (["Transformer"], None),
    ],
)
def test_other_modules_are_refused(new_folder, kind, path):
    """One Transformer of the library, in the folder itself, is all that is known."""
    write_json(new_folder / "modules.json", [{"name": "0", "path": path, "type": kind}])
    assert "a cross-encoder that can be served is one Transformer of" in refused(new_folder)


@pytest.mark.parametrize("file", ["config.json", "config_sentence_transformers.json"])
@pytest.mark.parametrize("named", ["torch.hub.load", "os.system", ["torch.nn.Sigmoid"], ""])
def test_activations_come_from_a_closed_table(new_folder, file, named):
    """The library imports and calls whatever of torch's is named."""
    edit(new_folder / file, activation_fn=named)
    assert "names the activation" in refused(new_folder)


def test_an_activation_within_the_network_is_checked_too(folder):
    """Where sentence-transformers 4 and 5 keep it, and where those before did."""
    edit(folder / "config.json", sentence_transformers={"activation_fn": "torch.hub.load"})
    assert "names the activation 'torch.hub.load'" in refused(folder)
    edit(
        folder / "config.json",
        sentence_transformers=None, sbert_ce_default_activation_function="torch.hub.load",
    )  # fmt: skip
    assert "names the activation 'torch.hub.load'" in refused(folder)


@pytest.mark.parametrize("name", ["classifier.weight", "bert.pooler.dense.weight"])
def test_missing_weights_are_refused(folder, name):
    """The library would score at random, and otherwise at each start."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, {"format": "pt"})
    assert f"lack {name}" in refused(folder)


def test_what_could_run_code_is_refused(folder):
    """As for any model: pickles, and architectures that a repository brings along."""
    torch.save({}, folder / "pytorch_model.bin")
    assert "may hold pickled code" in refused(folder)
    (folder / "pytorch_model.bin").unlink()
    edit(folder / "config.json", auto_map={"AutoModel": "org/name--modeling.Model"})
    assert "needs remote code" in refused(folder)


def test_a_tokenizer_that_is_code_is_refused(tmp_path):
    """Without a tokenizer.json pairs cannot be joined here."""
    folder = write(tmp_path / "phobert", pairs.phobert)
    assert "must have a tokenizer.json" in refused(folder)


def test_unfaithful_scores_are_refused(folder, monkeypatch):
    """Whatever way is taken, its numbers are held against the library's."""
    monkeypatch.setattr(Oracle, "predict", lambda *_, **__: np.zeros(8, np.float32))
    assert "cannot be served faithfully" in refused(folder)


def test_tokens_that_are_joined_otherwise_are_refused(folder, monkeypatch):
    """Special tokens, types and cuts are held against the library's."""
    monkeypatch.setattr("services.shared.pair_tower.share", lambda *_: (1, 1))
    assert "joins two texts in a way that is not known" in refused(folder)


def test_kinds_are_told_apart(tmp_path, folder, new_folder):
    """An embedding model is no cross-encoder, and a cross-encoder no embedding model."""
    assert not is_cross_encoder(locate(BASE_MODEL))
    assert not is_cross_encoder(write(tmp_path / "gte", checkpoints.gte_bert))
    assert not is_cross_encoder(tmp_path)
    for cross_encoder in (folder, new_folder):
        with pytest.raises(InvalidRequest):
            TextModel(cross_encoder, "float32", "cpu")
    with pytest.raises(InvalidRequest, match="names a CrossEncoder"):
        TextModel(new_folder, "float32", "cpu")
    edit(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(InvalidRequest, match="a cross-encoder's ends in"):
        check_cross_encoder(folder)


def test_the_digest_is_of_weights_and_recipe(folder, tmp_path):
    """A copy is the same model, another activation is not."""
    first = CrossEncoder(folder, "float32", "cpu").space_id
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert CrossEncoder(copied, "float32", "cpu").space_id == first
    edit(copied / "config.json", sbert_ce_default_activation_function=pairs.IDENTITY)
    assert CrossEncoder(copied, "float32", "cpu").space_id != first
