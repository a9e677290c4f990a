"""What a nest job does, from top to bottom: read, learn, measure, write.

In: a job's folder with vectors instead of pairs, see `spec.py`. Out: the rotation in it as
safetensors, its picture, its result. Nothing but the training is worth keeping over a kill: the
rest takes seconds and comes out the same.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path

from safetensors.numpy import save

from services.shared.vectors import Array
from services.trainer.data import sample
from services.trainer.data.sample import Sample
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.spec import (
    PLOT,
    RESULT_FILE,
    TRAINING_VECTORS,
    VALIDATION_VECTORS,
    NestScores,
    Result,
    Spec,
    result_path,
)
from services.trainer.results import report
from services.trainer.results.shortlist import compare
from services.trainer.training.checkpoint import write_atomic
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.nest import Nest
from services.trainer.training.train import plan, train


def run_nest(job_dir: Path, spec: Spec, interrupt: Interrupt) -> None:
    """Do a nest job, or what is left of it.

    Raises:
        Interrupted: asked to stop.
        ServiceError: it cannot succeed.
    """
    events = EventLog(job_dir)
    hyper = spec.hyperparameters
    documents = job_dir / TRAINING_VECTORS
    queries = job_dir / VALIDATION_VECTORS
    data = sample.read_sample(documents, queries if queries.exists() else None, hyper.seed)
    interrupt.check()
    events.append(Event(phase="train", message="finding the axes", total_steps=hyper.steps))
    nest = Nest(data, hyper.trained_dims, hyper.seed)
    course = plan(hyper, nest.num_anchors, spec.checkpoint_steps)
    begin = time.monotonic()
    train(nest, course, job_dir / "checkpoints", events.append, interrupt)
    seconds = time.monotonic() - begin
    rate = events.last.steps_per_second if events.last else 0.0
    rotation_DD = nest.rotation()
    quality = _measure(data, nest.axes_DD, rotation_DD, spec, events, interrupt)
    write_atomic(job_dir / RESULT_FILE, _pack(rotation_DD, spec, sample.digest(documents)))
    write_atomic(
        job_dir / PLOT,
        report.plot_nest(quality, spec.model_id, len(data.held_out_QD), len(data.documents_ND)),
    )
    Result(
        model_id=spec.model_id,
        nest_quality=quality,
        num_pairs=len(data.documents_ND),
        train_seconds=seconds,
        steps_per_second=rate,
    ).write(result_path(job_dir))


def _measure(
    data: Sample,
    axes_DD: Array,
    rotation_DD: Array,
    spec: Spec,
    events: EventLog,
    interrupt: Interrupt,
) -> tuple[NestScores, ...]:
    def on_progress(done: int) -> None:
        interrupt.check()
        message = f"ways to cut measured: {done} of 3"
        events.append(Event(phase="evaluate", message=message, step=done, total_steps=3))

    dims = spec.hyperparameters.dims
    return compare(data.held_out_QD, data.documents_ND, axes_DD, rotation_DD, dims, on_progress)


def _pack(rotation_DD: Array, spec: Spec, digest: str) -> bytes:
    """Return the rotation as the bytes of a safetensors file."""
    about = {
        "id": spec.model_id,
        "dims": spec.hyperparameters.dims,
        "apply": "vectors @ rotation.T",
        "sample_sha256": digest,
        "version": version("matryoshka-suite"),
    }
    # One key: safetensors writes several in an order of chance, and the file shall be the same.
    return save({"rotation": rotation_DD}, {"matryoshka": json.dumps(about)})
