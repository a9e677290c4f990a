"""Scored pairs and labelled texts as training data: their losses, and whole jobs."""

from itertools import islice, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.shared.card import DimScores, SimilarityScores, read_card
from services.shared.model import TextModel
from services.trainer.data.examples import Labelled, Scored
from services.trainer.jobs.events import read_events
from services.trainer.jobs.hyperparameters import EarlyStopping
from services.trainer.jobs.spec import REPORT, REPORT_PAGE, Result, result_path
from services.trainer.results.layout import read_json, write_json
from services.trainer.results.summary import Summary
from services.trainer.training.graded import Classes, ScoredPairs, distinct_texts
from services.trainer.training.interrupt import Interrupt, Interrupted
from services.trainer.training.scores import nested_cosent
from services.trainer.training.texts import TurnedTexts
from services.trainer.training.work import run_job
from tests.trainer.conftest import WORDS, make_job, weights
from tests.trainer.test_methods import StopAfter, same

DIMS = (4, 8)


def scored_pairs():
    """The more words two texts share, the higher their score."""
    words = islice(permutations(WORDS, 4), 0, 43_000, 180)
    return [
        Scored(f"{a} {b} sees", f"{a if row % 3 else c} {b if row % 2 else d} opens",
               float((row % 3 > 0) + (row % 2 > 0)))
        for row, (a, b, c, d) in enumerate(words)
    ]  # fmt: skip


def labelled_texts():
    """A text is of the class of its first word."""
    return [Labelled(f"{a} {b} {c}", a) for a, b, c in islice(permutations(WORDS, 3), 0, 3360, 14)]


QUICK = {"steps": 12, "batch_size": 32, "checkpoint_steps": 5}
STOP = EarlyStopping(dim=16, every_steps=3, patience=2)
JOBS = {
    "scored, adaptor": ("scored", {"method": "adaptor", "early_stopping": STOP}),
    "scored, full": ("scored", {"method": "full", "learning_rate": 3e-3, "early_stopping": STOP}),
    "labelled, lora": (
        "labelled", {"method": "lora", "learning_rate": 2e-2, "early_stopping": STOP}
    ),
    "labelled, static": ("labelled", {"method": "static"}),
}  # fmt: skip
EXAMPLES = {"scored": scored_pairs, "labelled": labelled_texts}
METRICS = {"scored": "Spearman", "labelled": "nDCG@10"}


@pytest.fixture(scope="module", params=JOBS)
def job(request, tmp_path_factory, tiny_model):
    """An undisturbed job: its folder, its kind, what it was asked for."""
    kind, wanted = JOBS[request.param]
    folder = tmp_path_factory.mktemp("jobs") / "calm"
    make_job(folder, tiny_model, EXAMPLES[kind](), kind=kind, **QUICK | wanted)
    run_job(folder, Interrupt())
    return SimpleNamespace(folder=folder, kind=kind, wanted=wanted, base=tiny_model)


def test_a_job_is_measured_by_what_it_learned(job):
    """At each size before and after, the same in result, card, report and page."""
    quality = Result.read(result_path(job.folder)).quality
    kind = SimilarityScores if job.kind == "scored" else DimScores
    assert {type(row) for row in (*quality.before, *quality.after)} == {kind}
    assert [row.dim for row in quality.after] == [16, 32]
    assert quality.num_queries == len(EXAMPLES[job.kind]()) // 10
    assert read_card(job.folder / "model").quality == quality
    summary = Summary.read(job.folder / REPORT)
    assert (summary.quality, summary.kind) == (quality, job.kind)
    page = (job.folder / REPORT_PAGE).read_text()
    metric = METRICS[job.kind]
    assert f"<th>{metric}</th><th>change</th>" in page
    assert METRICS["labelled" if job.kind == "scored" else "scored"] not in page
    if job.kind == "scored":  # both texts, and their part before and after
        assert summary.losers
        assert all(" ↔ " in one.query and one.after < one.before for one in summary.losers)
        assert "Spearman of a pair is its part in that of all" in page
    assert f"| {metric} |" in (job.folder / "model" / "README.md").read_text()
    scores = np.load(job.folder / "scores-after.npy")
    assert scores[:, :, 0].mean(axis=0) == pytest.approx([row.score for row in quality.after])


def test_a_job_that_was_stopped_ends_in_the_same_weights(job, tmp_path):
    """Stopped in the middle, again and again, and gone on with: bit for bit the same model."""
    folder = tmp_path / "job"
    make_job(folder, job.base, EXAMPLES[job.kind](), kind=job.kind, **QUICK | job.wanted)
    stops, looks = 0, 5
    while not result_path(folder).exists():
        try:
            run_job(folder, StopAfter(looks))
        except Interrupted:
            stops, looks = stops + 1, looks + 2
    assert stops >= 2
    assert same(weights(folder / "model"), weights(job.folder / "model"))


def test_training_is_watched_by_the_metric_of_the_job(job):
    """Events tell the loss of each size, and of looks the score that decides."""
    events = read_events(job.folder, 0)[0]
    steps = [event for event in events if event.loss]
    trained = (16,) if job.wanted["method"] == "adaptor" else (16, 32)
    assert {tuple(event.loss) for event in steps} == {trained}
    looks = [e.message for e in events if f": {METRICS[job.kind]} at 16 is " in e.message]
    assert bool(looks) == ("early_stopping" in job.wanted)


def test_what_is_learned_holds_for_what_was_held_out(tmp_path, tiny_model):
    """Scored pairs: a rotation puts first what the scores are about. Classes: all weights do."""
    for kind, wanted, floor in (
        ("scored", {"method": "adaptor"}, 0.2), ("labelled", {"method": "full"}, 0.6),
    ):  # fmt: skip
        folder = make_job(
            tmp_path / kind, tiny_model, EXAMPLES[kind](), kind=kind, steps=40, batch_size=32,
            learning_rate=1e-2 if kind == "scored" else 3e-3, **wanted,
        )  # fmt: skip
        run_job(folder, Interrupt())
        quality = Result.read(result_path(folder)).quality
        assert quality.after[0].score > quality.before[0].score + floor
    plain = SentenceTransformer(str(folder / "model"), device="cpu", local_files_only=True)
    texts = [example.text for example in labelled_texts()[:8]]
    ours = TextModel(folder / "model", "float32").encode_texts(texts)
    assert (plain.encode(texts) * ours).sum(axis=1).min() > 0.99999
    # Each class is a slice, the one that lost most first.
    assert {one.name for one in Summary.read(folder / REPORT).slices} <= set(WORDS)


def test_prompts_of_queries_and_documents_are_not_for_these(tmp_path, tiny_model):
    """A model that has them is trained and measured, and then checked, without."""
    base = tmp_path / "base"
    SentenceTransformer(str(tiny_model), device="cpu").save(str(base))
    path = base / "config_sentence_transformers.json"
    prompts = {"query": "red cat: ", "document": "blue dog: "}
    write_json(path, read_json(path) | {"prompts": prompts, "default_prompt_name": None})
    plain, prompted = (
        make_job(tmp_path / name, model, labelled_texts(), kind="labelled", head="dense", steps=2)
        for name, model in (("plain", tiny_model), ("prompted", base))
    )
    for folder in (plain, prompted):
        run_job(folder, Interrupt())
    assert read_card(prompted / "model").prompts == prompts
    qualities = [Result.read(result_path(folder)).quality for folder in (plain, prompted)]
    assert qualities[0] == qualities[1]


def some_texts(examples):
    count = len(distinct_texts(examples))
    vectors = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return vectors, TurnedTexts(vectors, "dense", 0)


def test_scored_pairs_learn_by_their_order():
    """The loss of a batch is CoSENT of its pairs' turned vectors."""
    pairs = [Scored("a", "b", 5), Scored("c", "a", 3), Scored("b", "d", 1), Scored("e", "f", 3)]
    vectors, texts = some_texts(pairs)
    rows = torch.tensor([2, 0, 1])
    found = ScoredPairs(pairs, texts, DIMS).losses(rows)
    (layer,) = texts.layers()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    turned = torch.from_numpy(unit @ layer.weight_OI.T)
    first, second = turned[[1, 0, 2]], turned[[3, 1, 0]]
    expected = nested_cosent(first, second, torch.tensor([1.0, 5.0, 3.0]), DIMS, 20.0)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_text_is_told_its_class_by_others_of_it():
    """The loss against its definition, one text and one size at a time."""
    examples = [Labelled(f"t{row}", "aabbbc"[row]) for row in range(6)]
    _, texts = some_texts(examples)
    classes = Classes(examples, texts, DIMS)
    rows = torch.tensor([5, 2, 0, 3])
    torch.manual_seed(3)
    others = classes.others(rows).tolist()
    torch.manual_seed(3)
    found = classes.losses(rows).tolist()
    turned = texts.vectors(torch.arange(6)).detach().numpy()
    told = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    means = [told[others[0]], (told[others[1]] + told[others[3]]) / 2, told[others[2]]]  # c, b, a
    for dim, loss in zip(DIMS, found, strict=True):
        expected = []
        for row, label in zip(rows.tolist(), (0, 1, 2, 1), strict=True):
            cosines = [
                20 * turned[row, :dim] @ mean[:dim]
                / np.linalg.norm(turned[row, :dim]) / np.linalg.norm(mean[:dim])
                for mean in means
            ]  # fmt: skip
            expected.append(np.log(np.exp(cosines).sum()) - cosines[label])
        assert loss == pytest.approx(np.mean(expected), abs=1e-4)


def test_every_other_text_of_a_class_is_drawn_and_never_the_text_itself():
    """Unless it is the only one; the same seed draws the same."""
    labels = [0, 1, 0, 2, 1, 0, 0]
    examples = [Labelled(str(row), str(label)) for row, label in enumerate(labels)]
    classes = Classes(examples, some_texts(examples)[1], DIMS)
    rows = torch.arange(len(labels)).repeat(200)
    drawn = classes.others(rows)
    for row, label in enumerate(labels):
        mates = {other for other, one in enumerate(labels) if one == label and other != row}
        assert set(drawn[rows == row].tolist()) == (mates or {row})
    torch.manual_seed(1)
    one = classes.others(rows)
    torch.manual_seed(1)
    assert torch.equal(one, classes.others(rows))
