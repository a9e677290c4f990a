"""What an adaptor job does between encoding and evaluation: choose the target, train the head."""

from pathlib import Path

import numpy as np

from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.pairs import Pair, Questions, number_texts
from services.trainer.jobs.events import Event
from services.trainer.results import export
from services.trainer.results.evaluate import evaluate
from services.trainer.training.adaptor import Adaptor, Vectors
from services.trainer.training.checkpoint import write_atomic
from services.trainer.training.job import Job, Trained
from services.trainer.training.layers import turn
from services.trainer.training.pilot import choose_label_weight


def adapt(job: Job, base: TextModel, queries_QD: Array, documents_ND: Array) -> Trained:
    """Train a head on the base's vectors.

    Args:
        job: see there.
        base: the model.
        queries_QD: its vectors of the held-out queries.
        documents_ND: and of all documents.
    """
    hyper = job.spec.hyperparameters
    vectors = job.encode_pairs(base, "vectors", documents_ND)
    rows, watched = job.learn_and_watch()
    learned = vectors.take(rows)
    head = hyper.head or "rotation"
    weight = _label_weight(job, learned, [job.data.training[row] for row in rows])
    adaptor = Adaptor(learned, head, hyper.trained_dims, weight, hyper.seed)
    asked = _vectors_of(job, vectors, watched) if watched else None

    def score() -> float:
        if not (watched and asked and hyper.early_stopping):
            raise RuntimeError("nothing to watch")
        layers, dim = adaptor.layers(), hyper.early_stopping.dim
        sides = turn(asked[0], layers), turn(asked[1], layers)
        return evaluate(*sides, watched.relevant, [dim])[0].ndcg10

    seconds, rate = job.train(adaptor, len(rows), score)
    layers = adaptor.layers()
    return Trained(
        queries_QD=turn(normalize(queries_QD), layers),
        documents_ND=turn(normalize(documents_ND), layers),
        start=Path(job.spec.base_dir),
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


def _label_weight(job: Job, vectors: Vectors, pairs: list[Pair]) -> float:
    """Choose the share of the labels, once in the life of the job."""
    kept = job.folder / "label_weight.txt"
    if not kept.exists():
        hyper = job.spec.hyperparameters

        def on_trial(what: str) -> None:
            job.events.append(Event(phase="train", message=what, total_steps=hyper.steps))

        weight = choose_label_weight(vectors, pairs, hyper, on_trial, job.interrupt)
        write_atomic(kept, str(weight).encode())
    return float(kept.read_text())


def _vectors_of(job: Job, vectors: Vectors, watched: Questions) -> tuple[Array, Array]:
    """Return the vectors of the watched queries and documents, of unit length."""
    anchors = {text: row for row, text in enumerate(job.training_anchors())}
    documents = number_texts(job.questions.documents)
    query_rows = np.array([anchors[text] for text in watched.queries])
    document_rows = np.array([documents[text] for text in watched.documents])
    return (
        normalize(vectors.anchors_ND[query_rows]),
        normalize(vectors.positives_ND[document_rows]),
    )
