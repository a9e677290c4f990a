"""Hard negatives: the nearest texts that are no answers, and how they join a step."""

import numpy as np
import pytest
import torch

from services.shared.model import TextModel
from services.trainer.data.finds import Finds
from services.trainer.data.pairs import Pair, number_texts
from services.trainer.jobs.spec import Mining
from services.trainer.training import mining as mining_module
from services.trainer.training.adaptor import SCALE, Adaptor, Vectors
from services.trainer.training.full import FullModel
from services.trainer.training.loss import nested_loss
from services.trainer.training.negatives import MAX_PER_PAIR, Negatives


def mine(pairs, anchors_AD, documents, documents_ND, mining, folder, on_progress=lambda _: None):
    """Mine among the positives alone."""
    nothing = Finds((), ()), documents_ND[:0]
    return mining_module.mine(
        pairs, anchors_AD, documents, documents_ND, mining, folder, on_progress, *nothing
    )


def unit(rows):
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def many(tmp_path):
    """Random pairs, some anchors and some positives of several; held-out documents among them."""
    rng = np.random.default_rng(0)
    pairs = list(
        dict.fromkeys(Pair(f"q{rng.integers(30)}", f"p{rng.integers(40)}") for _ in range(80))
    )
    documents = [f"held{i}" for i in range(5)] + list(number_texts(p.positive for p in pairs))
    anchors = list(number_texts(pair.anchor for pair in pairs))
    return (
        pairs, unit(rng.normal(size=(len(anchors), 8))), documents,
        unit(rng.normal(size=(len(documents), 8))), anchors,
    )  # fmt: skip


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_the_nearest_that_are_no_answers_are_found(many, tmp_path, margin, monkeypatch):
    """As by looking at each text in turn; whatever the size of chunks and blocks."""
    pairs, anchors_AD, documents, documents_ND, anchors = many
    monkeypatch.setattr(mining_module, "_CHUNK_PAIRS", 7)
    monkeypatch.setattr(mining_module, "_BLOCK_SCORES", 100)
    mined = mine(
        pairs, anchors_AD, documents, documents_ND, Mining(negatives=3, margin=margin), tmp_path
    )
    assert [(pair.anchor, pair.positive) for pair in mined] == [
        (p.anchor, p.positive) for p in pairs
    ]
    for pair in mined:
        scores = dict(
            zip(documents, documents_ND @ anchors_AD[anchors.index(pair.anchor)], strict=True)
        )
        own = scores[pair.positive]
        answers = {other.positive for other in pairs if other.anchor == pair.anchor}
        wanted = [
            text
            for text in sorted(scores, key=scores.get, reverse=True)
            if text not in answers
            and not text.startswith("held")
            and scores[text] <= own - (1 - margin) * abs(own)
        ]
        assert list(pair.negatives) == wanted[:3]


def test_texts_that_count_as_the_same_are_taken_once(tmp_path):
    """And not if they count as the positive, the anchor or a negative that is there."""
    pairs = [
        Pair("ask", "answer", ("Known",)),
        Pair("b", "ANSWER "),
        Pair("c", "near"),
        Pair("d", "Near"),
        Pair("e", "known"),
        Pair("f", "Ask"),
        Pair("g", "far"),
    ]
    documents = [pair.positive for pair in pairs]
    anchors_AD = unit([[1, 0]] * len(pairs))
    documents_ND = unit([[10, 1], [1, 1], [2, 1], [2, 1], [2, 1], [2, 1], [1, 2]])
    mined = mine(pairs, anchors_AD, documents, documents_ND, Mining(negatives=5), tmp_path)
    assert mined[0].negatives == ("Known", "near", "far")


def test_a_killed_job_goes_on(many, tmp_path, monkeypatch):
    """What was mined is not mined again, and the end is the same."""
    pairs, anchors_AD, documents, documents_ND, _ = many
    monkeypatch.setattr(mining_module, "_CHUNK_PAIRS", 20)
    what = (pairs, anchors_AD, documents, documents_ND, Mining(negatives=2))
    whole = mine(*what, tmp_path / "whole")

    def stop(done):
        if done > 40:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        mine(*what, tmp_path / "killed", stop)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "000000000.npy", "000000020.npy",
    ]  # fmt: skip
    begun = []
    assert mine(*what, tmp_path / "killed", begun.append) == whole
    assert [number for number in begun if number <= 40] == [20, 40]


def test_a_negative_joins_a_step_once_and_only_where_it_answers_nobody():
    """Neither as a positive of the step, nor as another positive of one of its anchors."""
    negatives = Negatives(
        anchors_P=[0, 1, 2, 0], positives_P=[10, 11, 12, 13],
        negatives_P=[(11, 20), (20, 21, 13), (22,), ()],
    )  # fmt: skip
    assert negatives.of(torch.tensor([0])) == [11, 20]
    assert sorted(negatives.of(torch.tensor([0, 1]))) == [20, 21]
    assert sorted(negatives.of(torch.tensor([1, 2]))) == [13, 20, 21, 22]
    assert Negatives([0], [1], [()]).of(torch.tensor([0])) == []


def test_of_many_negatives_others_come_in_other_steps():
    """A few at a time, all in the end."""
    negatives = Negatives([0, 1], [0, 1], [range(2, 32), ()])
    seen = set()
    for other in range(40):
        rows = torch.tensor([0, *[1] * other])
        found = negatives.of(rows)
        assert len(found) == MAX_PER_PAIR
        assert negatives.of(rows) == found
        seen.update(found)
    assert seen == set(range(2, 32))


def test_a_head_learns_from_negatives_too():
    """They are further documents of the loss; that of a batch without any is what it was."""
    rng = np.random.default_rng(0)
    anchors_ND, texts_ND = unit(rng.normal(size=(4, 8))), unit(rng.normal(size=(7, 8)))
    rows = np.arange(4)
    negatives = ((4, 5), (1,), (), (6,))
    with_them = Adaptor(Vectors(anchors_ND, texts_ND, rows, rows, negatives), "dense", (4, 8), 1.0)
    without = Adaptor(Vectors(anchors_ND, texts_ND, rows, rows), "dense", (4, 8), 1.0)
    turn_DD = torch.from_numpy(with_them.weight())
    batch = torch.tensor([0, 1, 3])
    documents = texts_ND[[0, 1, 3, *with_them._negatives.of(batch)]]
    assert len(documents) == 6
    queries_BD = torch.from_numpy(anchors_ND[[0, 1, 3]]) @ turn_DD.T
    documents_ND = torch.from_numpy(documents) @ turn_DD.T
    losses_K = nested_loss(queries_BD, documents_ND, (4, 8), None, None, SCALE)
    assert torch.allclose(with_them.losses(batch), losses_K, atol=1e-5)
    only = Vectors(anchors_ND, texts_ND, rows, rows, negatives).take([2])
    assert only.negative_rows_P == ((),)
    assert (with_them.losses(batch) > 0).all()
    assert without._negatives.of(batch) == []


def test_a_text_model_learns_from_negatives_too(tiny_model):
    """They are further documents of the loss, encoded with its gradients."""
    pairs = [Pair("red cat", "blue dog", ("slow bird", "Green house")), Pair("fast", "stone")]
    model = TextModel(tiny_model, "float32")
    trained = FullModel(model, pairs, (16, 32))
    model.transformer.eval()
    found_K = trained.losses(torch.tensor([0, 1]))
    queries = model.encode_texts(["red cat", "fast"], "query")
    documents = model.encode_texts(["blue dog", "stone", "slow bird", "Green house"], "document")
    wanted_K = nested_loss(
        torch.from_numpy(queries), torch.from_numpy(documents), (16, 32), None, None, SCALE
    )
    assert torch.allclose(found_K, wanted_K, atol=1e-4)
    found_K.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters.values())


def test_texts_that_count_as_the_same_never_serve_each_other(tiny_model):
    """A negative of one pair that is, but for capitals, the positive of another."""
    pairs = [Pair("red cat", "blue dog"), Pair("fast", "Stone", ("BLUE  dog", "tree"))]
    trained = FullModel(TextModel(tiny_model, "float32"), pairs, (16, 32))
    texts = trained._negatives.of(torch.tensor([0, 1]))
    assert len(texts) == 1
