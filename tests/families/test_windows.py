"""Layers that see only near tokens are packed so too, or not packed at all."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.shared import packing
from services.shared.loading import load_modules
from services.shared.model import TextModel
from services.shared.oracle import probe_texts
from services.shared.tower import Tower
from tests.families import checkpoints
from tests.families.vocabularies import WORDS

LONG = " ".join(WORDS[i * 37 % len(WORDS)] for i in range(400))


@pytest.fixture(scope="module", params=[checkpoints.modern_bert, checkpoints.embedding_gemma])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows") / request.param.__name__
    folder.mkdir()
    request.param(folder)
    return folder


def test_probes_are_longer_than_any_window(folder):
    """A text that every layer sees as a whole would show nothing."""
    tower = Tower(load_modules(folder, "cpu"), "cpu")
    windows = {
        module.sliding_window
        for module in tower.network.modules()
        if getattr(module, "sliding_window", None)
    }
    assert windows
    longest = max(map(len, tower.tokenize(probe_texts(tower))))
    assert longest > 2 * max(windows)


def test_a_packing_that_forgets_windows_is_not_taken(folder, monkeypatch):
    """The check at load sees the difference, and pads."""
    # The fault itself is what is put in: attention that sees everything.
    monkeypatch.setattr(packing, "_near", lambda *_: None)
    model = TextModel(folder, "float32", "cpu")
    assert model.engine == "padded float32"
    oracle = SentenceTransformer(str(folder), local_files_only=True, device="cpu")
    np.testing.assert_allclose(model.encode_texts([LONG]), oracle.encode([LONG]), atol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
def test_each_token_sees_less_than_a_window_away(is_causal):
    """The mask, cell by cell; a text as long as the window needs none."""
    mask_LL = packing._near(7, 3, is_causal, torch.device("cpu"))
    for row in range(7):
        for column in range(7):
            near = abs(row - column) < 3 and (column <= row or not is_causal)
            assert mask_LL[row, column] == near
    assert packing._near(3, 3, is_causal, torch.device("cpu")) is None


def test_attention_that_changes_scores_is_refused():
    """What packed attention does not do is said, so that the model is padded."""
    query = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="softcap"):
        packing.packed_attention(
            torch.nn.Module(), query, query, query, None, text_groups=[(4, 1)], softcap=30.0
        )
