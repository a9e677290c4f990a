"""The axes that the training of a text model starts on.

In a model that was not made for cutting, what matters may lie anywhere among its numbers. Training
would first have to move it to the front, and pays for that with what the model knows. A rotation
moves it in seconds: it is learned as an adaptor's, on the frozen model's vectors, becomes a last
module of the model, and the training goes on from there. Nothing changes at full size by it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.shared.model import TextModel
from services.shared.vectors import Array
from services.trainer.jobs.events import Event
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.training import ranks
from services.trainer.training.adaptor import Adaptor
from services.trainer.training.job import Job
from services.trainer.training.layers import Layer
from services.trainer.training.pilot import choose_label_weight, settle_label_weight
from services.trainer.training.train import plan, train


def are_wanted(job: Job, base: TextModel) -> bool:
    """Say whether a job's training starts on axes of its own.

    Not with fewer pairs than the vectors have numbers, as these say nothing of most axes; nor where
    the base was made for cutting, with a rotation of ours or by its makers.
    """
    is_tuned = job.spec.hyperparameters.method in ("full", "lora")
    return is_tuned and not base.declared_dims and len(job.pairs) >= base.full


def learn_axes(job: Job, base: TextModel, documents_ND: Array, rows: Sequence[int]) -> Layer:
    """Learn the rotation.

    Args:
        job: see there.
        base: the model.
        documents_ND: its vectors of all documents.
        rows: of the pairs to learn from.

    Raises:
        Interrupted: asked to stop.
    """
    hyper, pairs = job.spec.hyperparameters, job.pairs
    wanted = Wanted(
        matryoshka_dims=hyper.matryoshka_dims,
        dim_weights=hyper.dim_weights[:-1],  # without that of the full size
        seed=hyper.seed,
    )
    turning = fill(wanted, base.full, len(rows))
    vectors = job.encode_pairs(base, "vectors", documents_ND).take(rows)

    def tell(what: str) -> None:
        message = f"axes to start on: {what}"
        job.events.append(Event(phase="train", message=message, total_steps=hyper.steps))

    learned_from = [pairs[row] for row in rows]
    course = plan(turning, len(rows), checkpoint_steps=turning.steps)
    with ranks.alone(), tempfile.TemporaryDirectory() as nowhere:
        weight = settle_label_weight(
            job.folder,
            lambda: choose_label_weight(vectors, learned_from, turning, tell, job.interrupt),
        )
        tell("learning them")
        adaptor = Adaptor(vectors, "rotation", turning.trained_dims, weight, turning.seed)
        train(adaptor, course, Path(nowhere), lambda _: None, job.interrupt)
    (layer,) = adaptor.layers()
    return layer
