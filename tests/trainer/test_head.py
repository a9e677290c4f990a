"""A model that is its base and a head: its card says so, and the base's vectors become its own."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from services.shared.card import Card, read_card, write_card
from services.shared.folder import space_id
from services.shared.model import TextModel
from services.shared.vectors import normalize, truncate
from services.trainer.results.layout import read_modules
from services.trainer.results.measure import Sample, measure_card
from tests.trainer.conftest import WORDS, make_job, start_job

TEXTS = ["red cat sees the house", "river", "blue stone opens", "a fast dog finds " * 12]
QUICK = {"steps": 20, "batch_size": 8}


def finish(*jobs):
    """Run jobs side by side to their end; return the folders of their models."""
    processes = [(folder, start_job(folder)) for folder in jobs]
    for folder, process in processes:
        assert process.wait() == 0, (folder / "log.txt").read_text()
    return [folder / "model" for folder in jobs]


def with_prompts(base, folder):
    """A base without a card; what it wants before texts is in the library's own file."""
    shutil.copytree(base, folder)
    path = folder / "config_sentence_transformers.json"
    prompts = {"search_query": "find slow ", "passage": "green tree ", "any": "bird "}
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"prompts": prompts, "default_prompt_name": "any"}))
    return folder


def with_layer_norm(base, folder):
    """A base whose card has prompts and wants a layer norm before the cut.

    BERT ends in a layer norm of its own, so its vectors are moved first, or another would do
    nothing.
    """
    shutil.copytree(base, folder)
    (path,) = folder.rglob("model.safetensors")
    tensors = load_file(path)
    (last,) = (name for name in tensors if name.endswith("layer.1.output.LayerNorm.bias"))
    save_file(tensors | {last: np.full(32, 0.5, np.float32)}, path, {"format": "pt"})
    prompts = {"query": "find slow ", "document": "green tree "}
    space = space_id(folder, "layer_norm", prompts)
    card = Card(id="x", dims=(8, 32), pre_op="layer_norm", prompts=prompts, space_id=space)
    write_card(folder, card)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model, tiny_pairs):
    """{name: (folder of the base, of the model that a job made of it)}."""
    jobs = tmp_path_factory.mktemp("jobs")
    prompted = with_prompts(tiny_model, jobs / "prompted-base")
    layered = with_layer_norm(tiny_model, jobs / "layered-base")
    rotation, on_prompts, on_layer_norm = finish(
        make_job(jobs / "rotation", tiny_model, tiny_pairs, head="rotation", **QUICK),
        make_job(jobs / "prompts", prompted, tiny_pairs, head="dense", **QUICK),
        make_job(jobs / "layers", layered, tiny_pairs, head="rotation", **QUICK),
    )
    on_head, full = finish(
        make_job(jobs / "second", rotation, tiny_pairs, head="dense", **QUICK),
        make_job(jobs / "full", rotation, tiny_pairs, method="full", **QUICK),
    )
    return {
        "rotation": (tiny_model, rotation),
        "dense, prompts": (prompted, on_prompts),
        "rotation, layer norm": (layered, on_layer_norm),
        "dense on rotation": (rotation, on_head),
        "full": (rotation, full),
    }


def served(model, role):
    """Full vectors as the encoder answers them."""
    return truncate(model.encode_texts(TEXTS, role), model.full)


def min_cosine(one, other):
    return float((one * other).sum(axis=1).min())


@pytest.mark.parametrize("role", ["query", "document", "none"])
@pytest.mark.parametrize(
    "name", ["rotation", "dense, prompts", "rotation, layer norm", "dense on rotation"]
)
def test_the_base_s_vectors_turned_are_the_model_s(models, name, role):
    """Whatever the recipe of the base: prompts, a layer norm, a head of its own."""
    base, model = (TextModel(folder, "float32") for folder in models[name])
    (kind, folder), (last, _) = read_modules(model.folder)[-2:]
    assert (kind, last) == ("Dense", "Normalize")
    (weight,) = load_file(folder / "model.safetensors").values()
    stored = served(base, role)
    assert model.base_space_id == base.space_id != model.space_id
    assert min_cosine(served(model, role), normalize(stored @ weight.T)) > 0.9999
    # Nothing else would do: the head is not near the identity, and has a right way round.
    assert min_cosine(served(model, role), stored) < 0.99
    assert min_cosine(served(model, role), normalize(stored @ weight)) < 0.99


@pytest.mark.parametrize("name", ["dense, prompts", "rotation, layer norm"])
def test_the_recipes_above_matter(models, name):
    """Were prompts or the layer norm left out, these models would make other vectors."""
    model = TextModel(models[name][0], "float32")
    assert min_cosine(served(model, "query"), served(model, "document")) < 0.999
    if model.pre_op == "layer_norm":
        before = np.concatenate([model.forward([t]).numpy(force=True)
                                 for t in model.tokenize(TEXTS[:3], "query")])  # fmt: skip
        assert min_cosine(normalize(before), served(model, "query")[:3]) < 0.999


def test_a_model_trained_in_full_names_no_base_space(models):
    """Not even one whose base was a head, whose Dense module it has inherited."""
    _, folder = models["full"]
    assert read_card(folder).base_space_id is None
    assert read_modules(folder)[-2][0] == "Dense"


def test_a_card_measured_anew_keeps_the_base_space(models):
    """The weights are the same, so what they differ by is."""
    base, folder = models["rotation"]
    texts = [" ".join(WORDS[n // 16**place % 16] for place in range(3)) for n in range(120)]
    card = measure_card(str(folder), Sample("some", texts), [])
    assert card.base_space_id == read_card(folder).base_space_id == TextModel(base).space_id
    assert measure_card(str(base), Sample("some", texts), []).base_space_id is None
