"""What an adaptor job does between encoding and evaluation: choose the target, train the head."""

from collections.abc import Callable, Sequence

import numpy as np

from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.pairs import Pair, Questions
from services.trainer.data.pictures import Item
from services.trainer.jobs.events import Event
from services.trainer.results import export
from services.trainer.training.adaptor import Adaptor, Vectors
from services.trainer.training.graded import distinct_texts, learn_grades
from services.trainer.training.job import Job, Trained
from services.trainer.training.layers import Layer, turn
from services.trainer.training.pilot import choose_label_weight, settle_label_weight
from services.trainer.training.texts import TurnedTexts
from services.trainer.training.train import Trainee

Sides = tuple[dict[Item, Array], dict[Item, Array]]
"""The base's vectors of queries and of documents by what they are of, of unit length."""


def adapt(job: Job, base: TextModel, queries_QD: Array, documents_ND: Array) -> Trained:
    """Train a head on the base's vectors.

    Args:
        job: see there.
        base: the model.
        queries_QD: its vectors of the held-out queries.
        documents_ND: and of all documents.
    """
    rows, watched = job.learn_and_watch()
    sides: Sides = {}, {}
    if watched or job.spec.kind != "pairs":  # no second copy that nobody reads
        sides = _known(job, job.encode_anchors(base, "vectors"), documents_ND)
    trainee, layers_now = (
        _learn_pairs(job, job.encode_pairs(base, "vectors", documents_ND), rows)
        if job.spec.kind == "pairs"
        else _learn_grades(job, sides[0], rows)
    )

    def encode(asked: Questions) -> tuple[Array, Array]:
        layers = layers_now()
        queries_QD = np.stack([sides[0][text] for text in asked.queries])
        documents_ND = np.stack([sides[1][text] for text in asked.documents])
        return turn(queries_QD, layers), turn(documents_ND, layers)

    seconds, rate = job.train(trainee, len(rows), watched, encode)
    layers = layers_now()
    return Trained(
        queries_QD=turn(normalize(queries_QD), layers),
        documents_ND=turn(normalize(documents_ND), layers),
        start=job.spec.base,
        write=lambda folder: export.add_head(folder, layers, base.pre_op),
        prompts=base.prompts,
        max_tokens=base.max_tokens,
        # The head comes after the pre-op, which is a module of the folder then.
        pre_op="none",
        # Full vectors are served after the pre-op and at unit length. A head comes after the
        # pre-op too and has no bias, so lengths do not matter, and the prompts are the base's: it
        # makes of the base's served vectors what it makes of texts. Those who turn stored vectors
        # know one matrix, no network.
        base_space_id=base.space_id if len(layers) == 1 else None,
        train_seconds=seconds,
        steps_per_second=rate,
    )


def _learn_pairs(
    job: Job, vectors: Vectors, rows: Sequence[int]
) -> tuple[Trainee, Callable[[], tuple[Layer, ...]]]:
    """Return what learns from some of the pairs, and what tells its head."""
    hyper, pairs = job.spec.hyperparameters, job.pairs
    learned = vectors.take(rows)
    weight = _label_weight(job, learned, [pairs[row] for row in rows])
    head = hyper.head or "rotation"
    adaptor = Adaptor(learned, head, hyper.trained_dims, weight, hyper.seed)
    return adaptor, adaptor.layers


def _learn_grades(
    job: Job, known: dict[Item, Array], rows: Sequence[int]
) -> tuple[Trainee, Callable[[], tuple[Layer, ...]]]:
    """Return what learns from some of the scored pairs or labelled texts, and tells its head."""
    hyper = job.spec.hyperparameters
    examples = [job.data.training[row] for row in rows]
    vectors_ND = np.stack([known[text] for text in distinct_texts(examples)])
    texts = TurnedTexts(vectors_ND, hyper.head or "rotation", hyper.seed)
    return learn_grades(examples, texts, hyper.trained_dims), texts.layers


def _label_weight(job: Job, vectors: Vectors, pairs: list[Pair]) -> float:
    """Choose the share of the labels, once in the life of the job."""
    hyper = job.spec.hyperparameters

    def on_trial(what: str) -> None:
        job.events.append(Event(phase="train", message=what, total_steps=hyper.steps))

    return settle_label_weight(
        job.folder, lambda: choose_label_weight(vectors, pairs, hyper, on_trial, job.interrupt)
    )


def _known(job: Job, anchors_AD: Array, documents_ND: Array) -> Sides:
    anchors = dict(zip(job.training_anchors(), normalize(anchors_AD), strict=True))
    documents = dict(zip(job.questions.documents, normalize(documents_ND), strict=True))
    if job.spec.kind == "pairs":
        return anchors, documents
    return anchors | documents, anchors | documents  # a text is the same on both sides
