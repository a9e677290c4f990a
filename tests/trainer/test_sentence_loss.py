"""Our loss in sentence-transformers' trainer, against their own."""

import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)

from services.trainer.training.sentence_loss import NestedLoss

DIMS, WEIGHTS = [32, 8, 16], [1.0, 0.5, 2.0]


@pytest.fixture
def model(tiny_model):
    return SentenceTransformer(str(tiny_model), device="cpu", local_files_only=True)


def theirs(model):
    inner = MultipleNegativesRankingLoss(model)
    return MatryoshkaLoss(model, inner, DIMS, matryoshka_weights=WEIGHTS)


def test_values_and_gradients_are_those_of_matryoshka_loss(model, tiny_pairs):
    """Anchors, positives and a column of negatives, through the model and back."""
    model.eval()  # no dropout
    columns = [
        [pair.anchor for pair in tiny_pairs[:8]],
        [pair.positive for pair in tiny_pairs[:8]],
        [pair.positive for pair in tiny_pairs[8:16]],
    ]
    found = []
    for loss in (NestedLoss(model, DIMS, WEIGHTS), theirs(model)):
        model.zero_grad()
        features = [model.preprocess(column) for column in columns]
        value = loss(features, None)
        value.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((value.detach(), gradients))
    (ours, our_gradients), (expected, gradients) = found
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_it_trains_in_their_trainer_as_theirs_does(tiny_model, tiny_pairs, tmp_path):
    """Some steps of SentenceTransformerTrainer: the same losses, step by step, and they fall."""
    pytest.importorskip("accelerate")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {
            "anchor": [pair.anchor for pair in tiny_pairs],
            "positive": [pair.positive for pair in tiny_pairs],
        }
    )
    histories = []
    for make in (lambda model: NestedLoss(model, DIMS, WEIGHTS), theirs):
        model = SentenceTransformer(str(tiny_model), device="cpu", local_files_only=True)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # the two encode columns apart, and together: other draws
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=8,
            learning_rate=3e-3, logging_steps=1, report_to="none", use_cpu=True, seed=1,
            save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=rows, loss=make(model)
        )
        trainer.train()
        histories.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    ours, expected = histories
    assert len(ours) == 12
    assert ours == pytest.approx(expected, rel=1e-3)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    ("dims", "weights", "message"),
    [
        ([8, 64], None, "dims must be between 1 and 32, each once"),
        ([], None, "dims must be between 1 and 32"),
        ([8, 8], None, "each once"),
        ([8, 32], [1.0], "weights must be 2 numbers"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, dims, weights, message):
    """Before the first step, with what would be accepted."""
    with pytest.raises(ValueError, match=message):
        NestedLoss(model, dims, weights)
    with pytest.raises(ValueError, match="expected anchors and positives"):
        NestedLoss(model, [8]).compute_loss_from_embeddings([torch.ones(2, 32)], None)
