"""Every family of the field, in the files of its own repository, answers as sentence-transformers.

The checkpoints are small and random, everything else is theirs. Each is read twice: by us, and by
sentence-transformers as its users call it.
"""

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from services.shared.errors import InvalidRequest
from services.shared.model import TextModel
from services.shared.vectors import normalize, truncate
from tests.families import checkpoints
from tests.families.vocabularies import WORDS

_random = random.Random(1)
# Mixed lengths, two alike, and one longer than any of these models reads.
TEXTS = [
    "a",
    "what is the search query?",
    *(" ".join(_random.choices(WORDS, k=words)) for words in (7, 20, 20, 60, 130, 420)),
    "ünïcödé 日本",
]

# {family: (its checkpoint, how it must run here, the sizes it declares)}
FAMILIES = {
    "arctic-m": (checkpoints.arctic_m, "packed float32", (16, 32)),
    "arctic-l": (checkpoints.arctic_l, "packed float32", (16, 32)),
    "mxbai": (checkpoints.mxbai, "packed float32", ()),
    "leaf": (checkpoints.leaf, "packed float32", ()),
    "leaf-asym": (checkpoints.leaf_asym, "packed float32", ()),
    "leaf-asym-new": (partial(checkpoints.leaf_asym, spelling="new"), "packed float32", ()),
    "bge-m3": (checkpoints.bge_m3, "packed float32", ()),
    "gte-bert": (checkpoints.gte_bert, "packed float32", ()),
    "gte-native": (checkpoints.gte_native, "packed float32", ()),
    "legal-small": (checkpoints.legal_small, "packed float32", ()),
    "new-spelling": (checkpoints.new_spelling, "packed float32", ()),
    "dek21": (checkpoints.dek21, "packed float32", ()),
    "nomic": (checkpoints.nomic, "packed float32", ()),
    "static": (checkpoints.static, "static float32", ()),
    "model2vec": (checkpoints.model2vec, "static float32", ()),
    "qwen3": (checkpoints.qwen3, "packed float32", ()),
    "embedding-gemma": (checkpoints.embedding_gemma, "packed float32", ()),
    "modernbert": (checkpoints.modern_bert, "packed float32", ()),
}


class Family:
    """A checkpoint, read by us and by the oracle."""

    def __init__(self, folder, engine, dims):
        self.folder, self.engine, self.dims = folder, engine, dims
        self.ours = TextModel(folder, "float32", "cpu")
        self.oracle = SentenceTransformer(str(folder), local_files_only=True, device="cpu")
        encode = {"query": self.oracle.encode_query, "document": self.oracle.encode_document}
        # nomic's folder has other names for its prompts, which callers are told to give.
        self.answers = {
            role: ask(TEXTS, prompt_name=name if name in self.oracle.prompts else None)
            for role, name, ask in ((role, f"search_{role}", ask) for role, ask in encode.items())
        }


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory):
    write, engine, dims = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("families") / request.param
    folder.mkdir()
    torch.manual_seed(0)
    write(folder)
    return Family(folder, engine, dims)


def expected(family, role):
    """The oracle's vectors, and for nomic the layer norm that its card asks of callers."""
    vectors_BD = torch.from_numpy(family.answers[role])
    if "nomic" in family.folder.name:
        vectors_BD = functional.layer_norm(vectors_BD, vectors_BD.shape[1:])
    return vectors_BD.numpy()


@pytest.mark.parametrize("role", ["query", "document"])
def test_vectors_are_those_of_sentence_transformers(family, role):
    """Each text in each role, number for number, over-long ones cut alike."""
    ours, theirs = family.ours.encode_texts(TEXTS, role), expected(family, role)
    assert ours.shape == theirs.shape
    cosines = (normalize(ours) * normalize(theirs)).sum(1)
    assert cosines.min() >= 0.9999
    # Sums run in another order, so the last digits of float32 may differ.
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * max(1, np.abs(theirs).max()))


def test_company_does_not_change_a_vector(family):
    """A text alone gives what it gives in a batch of all."""
    together = family.ours.encode_texts(TEXTS, "query", batch_tokens=100_000)
    alone = np.concatenate([family.ours.encode_texts([text], "query") for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_cut_vectors_are_the_oracles_cut_after_its_recipe(family):
    """Pre-op, cut, normalise: the prefix that a card's recipe gives."""
    ours = truncate(family.ours.encode_texts(TEXTS, "document"), 16)
    theirs = torch.from_numpy(expected(family, "document"))[:, :16]
    np.testing.assert_allclose(ours, functional.normalize(theirs).numpy(), atol=1e-5)


def test_the_model_says_what_it_is(family):
    """How it runs, how wide it is, which sizes it declares."""
    ours = family.ours
    assert ours.engine == family.engine
    assert ours.declared_dims == family.dims
    assert ours.full == family.answers["query"].shape[1]
    assert not ours.takes_images
    assert ours.needs_role == ("asym" in family.folder.name)
    assert ours.pre_op == ("layer_norm" if family.folder.name == "nomic" else "none")


def test_roles_differ_where_a_prompt_says_so(family):
    """The same text as query and as document is the same only where nothing tells them apart."""
    query = family.ours.encode_texts(TEXTS[1:2], "query")
    document = family.ours.encode_texts(TEXTS[1:2], "document")
    prompts = family.ours.prompts
    is_same = not family.ours.needs_role and prompts.get("query") == prompts.get("document")
    assert np.allclose(query, document, atol=1e-6) == is_same


def test_bfloat16_is_faithful(family):
    """Rounded weights stay near; frequencies of positions, which are buffers, are not rounded."""
    fast = TextModel(family.folder, "bfloat16", "cpu")
    assert all(b.dtype is not torch.bfloat16 for b in fast.transformer.buffers())
    is_static = family.engine == "static float32"
    rounded = any(p.dtype is torch.bfloat16 for p in fast.transformer.parameters())
    assert rounded == (not is_static)
    ours, theirs = fast.encode_texts(TEXTS, "document"), expected(family, "document")
    assert (normalize(ours) * normalize(theirs)).sum(1).min() > 0.999


def test_images_are_refused_by_models_of_text(family):
    """A picture is not read as something else."""
    with pytest.raises(InvalidRequest, match="texts only"):
        family.ours.read_image(b"", "query")


def test_no_text_is_longer_than_there_are_positions(tmp_path):
    """A tokenizer without a bound is bounded by the table: 514 rows are 512 positions."""
    checkpoints.bge_m3(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text("{}")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))
    model = TextModel(tmp_path, "float32", "cpu")
    assert model.max_tokens == 512
    assert np.isfinite(model.encode_texts(TEXTS)).all()


def test_a_text_of_no_tokens_is_zero(tmp_path):
    """A static model has no special tokens, so blanks are no token at all: alone or not."""
    checkpoints.static(tmp_path)
    model = TextModel(tmp_path, "float32", "cpu")
    oracle = SentenceTransformer(str(tmp_path), local_files_only=True, device="cpu")
    for texts in (["  "], ["a", "  ", "the query"]):
        np.testing.assert_array_equal(model.encode_texts(texts), oracle.encode(texts))
    assert not model.encode_texts(["  "]).any()
