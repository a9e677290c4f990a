"""Every way to train a text model or a head: what it makes, what it keeps, what kills it bears."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from services.shared.card import read_card
from services.shared.errors import ServiceError
from services.shared.model import TextModel
from services.trainer.jobs.events import read_events
from services.trainer.jobs.hyperparameters import EarlyStopping, Lora
from services.trainer.jobs.spec import Result, Spec, result_path, spec_path
from services.trainer.results.layout import read_modules
from services.trainer.training.interrupt import Interrupt, Interrupted
from services.trainer.training.work import run_job
from tests.trainer.conftest import make_job, weights

QUICK = {"batch_size": 16, "steps": 12, "checkpoint_steps": 5}
JOBS = {
    "lora": {"method": "lora", "learning_rate": 1e-2},
    "static": {"method": "static"},
    "distill": {"method": "distill", "learning_rate": 1e-3},
    "distill into a table": {"method": "distill", "student": "static"},
    "residual": {"method": "adaptor", "head": "residual", "learning_rate": 1e-2},
    "stopped early": {
        "method": "full", "learning_rate": 3e-3, "steps": 40,
        "early_stopping": EarlyStopping(dim=16, every_steps=3, patience=2),
    },
}  # fmt: skip


class StopAfter(Interrupt):
    """Asks to stop when it has been looked at so many times."""

    def __init__(self, looks):
        super().__init__()
        self._left = looks

    def check(self):
        self._left -= 1
        if not self._left:
            raise Interrupted


@pytest.fixture(scope="module", params=JOBS)
def job(request, tmp_path_factory, tiny_model, tiny_pairs):
    """An undisturbed job: its name, its folder."""
    folder = tmp_path_factory.mktemp("jobs") / "calm"
    make_job(folder, tiny_model, tiny_pairs, **QUICK | JOBS[request.param])
    run_job(folder, Interrupt())
    return SimpleNamespace(name=request.param, folder=folder, base=tiny_model)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_plain_sentence_transformers_loads_what_a_job_made(job, tiny_pairs):
    """The same vectors as ours, of the base's width; and they are not the base's."""
    texts = [text for pair in tiny_pairs[:8] for text in (pair.anchor, pair.positive)]
    model = job.folder / "model"
    plain = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    found = plain.encode(texts, normalize_embeddings=True)
    ours = TextModel(model, "float32").encode_texts(texts)
    assert (found * ours).sum(axis=1).min() > 0.99999
    base = TextModel(job.base, "float32").encode_texts(texts)
    assert found.shape == base.shape
    assert (found * base).sum(axis=1).min() < 0.999
    assert not list(model.rglob("adapter*"))


def test_a_job_that_was_stopped_ends_in_the_same_weights(job, tmp_path, tiny_pairs):
    """Stopped in the middle, again and again, and gone on with: bit for bit the same model."""
    folder = tmp_path / "job"
    make_job(folder, job.base, tiny_pairs, **QUICK | JOBS[job.name])
    stops, looks = 0, 5
    while not result_path(folder).exists():
        try:
            run_job(folder, StopAfter(looks))
        except Interrupted:
            stops, looks = stops + 1, looks + 3
    assert stops >= 2
    assert same(weights(folder / "model"), weights(job.folder / "model"))


def test_the_result_speaks_of_every_size(job):
    """Before and after at each size, on held-out pairs; the card says the same."""
    result = Result.read(result_path(job.folder))
    assert [scores.dim for scores in result.quality.after] == [16, 32]
    assert [scores.dim for scores in result.quality.before] == [16, 32]
    card = read_card(job.folder / "model")
    assert card.quality == result.quality
    # Stored vectors can follow a matrix, not a network.
    assert card.base_space_id is None


def make_and_run(folder, base, pairs, **wanted):
    make_job(folder, base, pairs, **QUICK | wanted)
    run_job(folder, Interrupt())
    return folder


def test_lora_trains_and_keeps_few_weights(tmp_path, tiny_model, tiny_pairs):
    """Only the chosen layers change, checkpoints hold the changes alone, and the loss falls."""
    lora = Lora(rank=2, alpha=4, targets=("query", "value"))
    folder = make_and_run(
        tmp_path / "job", tiny_model, tiny_pairs,
        method="lora", lora=lora, learning_rate=3e-2, steps=40,
    )  # fmt: skip
    before, after = weights(tiny_model), weights(folder / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith(("query.weight", "value.weight")) for name in changed)
    assert len(changed) == 4  # two layers, two targets
    for name in changed:  # a change of rank 2
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-4) == 2
    kept = load_file(folder / "checkpoints" / "step-00000040" / "state.safetensors")
    assert {name.split("/")[-1].split(".")[-1] for name in kept} == {"down", "up"}
    losses = [e.loss for e in read_events(folder, 0)[0] if e.phase == "train" and e.loss]
    assert losses[-1][32] < 2.0  # log(16) = 2.77 knows nothing


def test_lora_names_the_layers_that_there_are(tmp_path, tiny_model, tiny_pairs):
    """An embedding is a weight, but no linear layer."""
    lora = Lora(rank=2, alpha=4, targets=("word_embeddings",))
    with pytest.raises(ServiceError, match="its layers are called dense, key, query, value"):
        make_and_run(tmp_path / "job", tiny_model, tiny_pairs, method="lora", lora=lora)


def test_a_table_starts_from_its_seed_and_the_base_s_tokenizer(tmp_path, tiny_model, tiny_pairs):
    """Another seed is another table; words, width and layout are those of static models."""
    one, two = (
        make_and_run(tmp_path / str(s), tiny_model, tiny_pairs, method="static", seed=s, steps=2)
        for s in (1, 2)
    )
    assert not same(weights(one / "model"), weights(two / "model"))
    assert [kind for kind, _ in read_modules(one / "model")] == ["StaticEmbedding", "Normalize"]
    words = json.loads(next((one / "model").rglob("tokenizer.json")).read_text())["model"]["vocab"]
    (table,) = weights(one / "model").values()
    assert table.shape == (len(words), 32)


def test_a_table_learns(tmp_path, tiny_model, tiny_pairs):
    """Words that a pair shares come to count: its loss falls far below that of chance."""
    folder = make_and_run(tmp_path / "job", tiny_model, tiny_pairs, method="static", steps=60)
    losses = [e.loss for e in read_events(folder, 0)[0] if e.phase == "train" and e.loss]
    assert losses[-1][32] < 1.0 < np.log(16)


@pytest.mark.parametrize("student", ["base", "static"])
def test_a_student_comes_to_its_teacher(tmp_path, tiny_model, tiny_pairs, student):
    """At full size its scores are the teacher's; the teacher is on its principal axes."""
    folder = make_and_run(
        tmp_path / "job", tiny_model, tiny_pairs, method="distill", student=student, steps=60,
        learning_rate=1e-4 if student == "base" else 0.1,
    )  # fmt: skip
    texts = [pair.positive for pair in tiny_pairs]
    teacher = TextModel(tiny_model, "float32").encode_texts(texts)
    found = TextModel(folder / "model", "float32").encode_texts(texts)
    wanted, scores = (v @ v.T - np.eye(len(v)) for v in (teacher, found))
    assert np.corrcoef(wanted.ravel(), scores.ravel())[0, 1] > 0.9


def test_another_teacher_is_learned_from(tmp_path, tiny_model, tiny_pairs):
    """A wider one too: its principal axes are what the student has room for."""
    wide = SentenceTransformer(str(tiny_model), device="cpu")
    teacher = tmp_path / "teacher"
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(3)
    wide[2] = Dense(32, 48, bias=False)
    wide.save(str(teacher))
    folder = tmp_path / "job"
    make_job(folder, tiny_model, tiny_pairs, **QUICK | {"method": "distill", "steps": 10})
    spec = Spec.read(spec_path(folder))
    spec.model_copy(update={"teacher_dir": str(teacher)}).write(spec_path(folder))
    run_job(folder, Interrupt())
    texts = [pair.positive for pair in tiny_pairs]
    wanted, scores, base = (
        v @ v.T for v in (
            TextModel(path, "float32").encode_texts(texts)
            for path in (teacher, folder / "model", tiny_model)
        )
    )  # fmt: skip
    norms = np.sqrt(np.diag(wanted))
    wanted /= np.outer(norms, norms)
    assert np.abs(wanted - scores).mean() < 0.5 * np.abs(wanted - base).mean()


def test_a_residual_head_adds_a_network_to_a_rotation(tmp_path, tiny_model, tiny_pairs):
    """Exported as plain Dense modules, its vectors are those of the formula."""
    folder = make_and_run(
        tmp_path / "job", tiny_model, tiny_pairs, head="residual", learning_rate=1e-2
    )
    modules = [kind for kind, _ in read_modules(folder / "model")]
    assert modules[-4:] == ["Normalize", "Dense", "Dense", "Normalize"]
    state = load_file(folder / "checkpoints" / "step-00000012" / "state.safetensors")
    down, up = (state[f"parameter/{name}"].numpy() for name in ("down", "up"))
    assert np.abs(up).max() > 0
    texts = [pair.anchor for pair in tiny_pairs]
    base = TextModel(tiny_model, "float32").encode_texts(texts)
    second = load_file(read_modules(folder / "model")[-2][1] / "model.safetensors")
    axes = second["linear.weight"][:, len(down) : len(down) + 32].numpy()
    np.testing.assert_allclose(axes @ axes.T, np.eye(32), atol=1e-5)
    expected = base @ axes.T + np.maximum(base @ down.T, 0) @ up.T
    found = TextModel(folder / "model", "float32").encode_texts(texts)
    np.testing.assert_allclose(
        found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )


def test_early_stopping_exports_the_best_weights(tmp_path, tiny_model, tiny_pairs):
    """It ends before the last step, at the best look, with the rate far too high to stay there."""
    folder = make_and_run(
        tmp_path / "job", tiny_model, tiny_pairs, method="full", learning_rate=2e-2, steps=200,
        early_stopping=EarlyStopping(dim=16, every_steps=4, patience=2),
    )  # fmt: skip
    seen = [e.message for e in read_events(folder, 0)[0] if "nDCG@10 at 16" in e.message]
    best = [message for message in seen if message.endswith("the best so far")][-1]
    assert seen[-2:] == [message for message in seen if not message.endswith("so far")][-2:]
    step = int(best.split(":")[0].removeprefix("step "))
    assert step < 200
    kept = load_file(folder / f"checkpoints/best/step-{step:08d}/state.safetensors")
    made = weights(folder / "model")
    for name, tensor in made.items():
        (ours,) = (t for n, t in kept.items() if n.endswith(name.split(":")[1]) and n != "score")
        assert torch.equal(ours, tensor)


def test_an_adaptor_stops_early_too(tmp_path, tiny_model, tiny_pairs):
    """On frozen vectors a look costs nothing."""
    folder = make_and_run(
        tmp_path / "job", tiny_model, tiny_pairs, steps=60,
        early_stopping=EarlyStopping(dim=16, every_steps=5, patience=1),
    )  # fmt: skip
    seen = [e for e in read_events(folder, 0)[0] if "nDCG@10 at 16" in e.message]
    assert 2 <= len(seen) < 12
    assert (folder / "model" / "matryoshka.json").exists()


def test_weights_of_sizes_change_what_is_learned(tmp_path, tiny_model, tiny_pairs):
    """The size that counts more ends with the lower loss."""
    losses = {}
    for name, dim_weights in (("short", (9.0, 0.1)), ("long", (0.1, 9.0))):
        folder = make_and_run(
            tmp_path / name, tiny_model, tiny_pairs, method="static", steps=25,
            matryoshka_dims=(2, 32), dim_weights=dim_weights, learning_rate=0.02,
        )  # fmt: skip
        losses[name] = [e.loss for e in read_events(folder, 0)[0] if e.loss][-1]
    assert losses["short"][2] < losses["long"][2]
    assert losses["long"][32] < losses["short"][32]


def test_sizes_that_were_not_trained_for_are_measured(tmp_path, tiny_model, tiny_pairs):
    """They are in the result and have byte ranges; the card's own sizes are the trained ones."""
    folder = make_and_run(tmp_path / "job", tiny_model, tiny_pairs, evaluated_dims=(8, 24), steps=3)
    card = read_card(folder / "model")
    assert [scores.dim for scores in card.quality.after] == [8, 16, 24, 32]
    assert list(card.ranges) == [8, 16, 24, 32]
    assert card.dims == (16, 32)
    shutil.rmtree(folder)
