"""What a job does, from top to bottom: read, encode, train, evaluate, export.

A nest job has neither texts nor a model: `nesting.py` does it.
In: a job's folder, see `spec.py`. Out: the finished model in it, its picture, its result. Each
step keeps what it has made in the folder, so that a killed job goes on where it was.

Shapes: Q queries, N documents or texts, D full width.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from services.shared.card import DimScores, Quality
from services.shared.choice import Precision
from services.shared.errors import ServiceError
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.pairs import (
    Questions,
    Split,
    digest,
    number_texts,
    questions,
    read_pairs,
    split,
)
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.spec import (
    MODEL,
    PLOT,
    TRAINING,
    VALIDATION,
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.results import export, report
from services.trainer.results.evaluate import evaluate
from services.trainer.training.adaptor import Adaptor, Vectors
from services.trainer.training.checkpoint import write_atomic
from services.trainer.training.encode import encode_kept
from services.trainer.training.full import FullModel
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.nesting import run_nest
from services.trainer.training.pilot import choose_label_weight
from services.trainer.training.train import plan, train

_EVENT_INTERVAL_S = 0.5
_NUM_PROBES = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What every part of a job needs."""

    folder: Path
    spec: Spec
    data: Split
    questions: Questions
    events: EventLog
    interrupt: Interrupt

    def progress(self, phase: str, what: str, begin: int, total: int) -> Callable[[int], None]:
        """Return a callback that reports progress, not too often, and stops if asked to.

        Args:
            phase: of the events.
            what: is counted, for people.
            begin: added to each count, where a phase has several parts.
            total: of the whole phase.
        """
        last_s = 0.0

        def on_progress(done: int) -> None:
            nonlocal last_s
            self.interrupt.check()
            now = time.monotonic()
            if now - last_s < _EVENT_INTERVAL_S and begin + done < total:
                return
            last_s = now
            message = f"{what}: {begin + done} of {total}"
            self.events.append(
                Event(phase=phase, message=message, step=begin + done, total_steps=total)
            )

        return on_progress


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves for the evaluation and the export."""

    queries_QD: Array
    documents_ND: Array
    write: Callable[[Path], None]
    """Turns a copy of the base's folder into the trained model."""
    train_seconds: float
    steps_per_second: float


def run_job(job_dir: Path, interrupt: Interrupt) -> None:
    """Do the job, or what is left of it.

    Raises:
        Interrupted: asked to stop.
        ServiceError: it cannot succeed.
    """
    spec = Spec.read(spec_path(job_dir))
    if spec is None:
        raise ServiceError("the job's folder has no spec.json")
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    if spec.hyperparameters.method == "nest":
        run_nest(job_dir, spec, interrupt)
        return
    data = _read_data(job_dir, spec)
    job = Job(job_dir, spec, data, questions(data), EventLog(job_dir), interrupt)
    hyper = spec.hyperparameters
    model = _load_base(job)
    queries_QD, documents_ND = _encode_questions(job, model)
    trained = (_train_adaptor if hyper.method == "adaptor" else _train_full)(
        job, model, queries_QD, documents_ND
    )
    count = len(hyper.dims)
    before = evaluate(
        queries_QD, documents_ND, job.questions.relevant, hyper.dims,
        job.progress("evaluate", "sizes measured", 0, 2 * count),
    )  # fmt: skip
    after = evaluate(
        trained.queries_QD, trained.documents_ND, job.questions.relevant, hyper.dims,
        job.progress("evaluate", "sizes measured", count, 2 * count),
    )  # fmt: skip
    _finish(job, model, trained, before, after)


def follow_job(job_dir: Path, interrupt: Interrupt) -> None:
    """Train beside the first process of a job, which writes what comes of it.

    Heads on frozen vectors are trained by the first process alone: their steps are short.

    Raises:
        Interrupted: asked to stop.
        ServiceError: it cannot succeed.
    """
    spec = Spec.read(spec_path(job_dir))
    if spec is None:
        raise ServiceError("the job's folder has no spec.json")
    if spec.hyperparameters.method != "full":
        return
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    pairs = _read_data(job_dir, spec).training
    model = FullModel(
        TextModel(Path(spec.base_dir), "float32"), pairs, spec.hyperparameters.trained_dims
    )
    course = plan(spec.hyperparameters, len(pairs), spec.checkpoint_steps)
    train(model, course, job_dir / "checkpoints", lambda _: None, interrupt)


def _read_data(job_dir: Path, spec: Spec) -> Split:
    pairs = read_pairs(job_dir / TRAINING, spec.data_name)
    validation = job_dir / VALIDATION
    if validation.exists():
        return Split(pairs, read_pairs(validation, VALIDATION))
    return split(pairs, spec.hyperparameters.seed)


def _load_base(job: Job) -> TextModel:
    """Load the base model, in the precision of this job's first process.

    Vectors of two precisions would differ in their last digits, and the result with them.
    """
    kept = job.folder / "precision.txt"
    precision: Precision = "auto"
    if kept.exists():
        precision = "bfloat16" if kept.read_text() == "bfloat16" else "float32"
    model = TextModel(Path(job.spec.base_dir), precision)
    write_atomic(kept, model.engine.split()[-1].encode())
    return model


def _encode_questions(job: Job, model: TextModel) -> tuple[Array, Array]:
    """Return the base's vectors of the held-out queries and of all documents."""
    queries, documents = job.questions.queries, job.questions.documents
    total = len(queries) + len(documents) + len(_other_anchors(job))
    first = job.progress("encode", "texts encoded", 0, total)
    second = job.progress("encode", "texts encoded", len(queries), total)
    vectors = job.folder / "vectors"
    return (
        encode_kept(model, queries, "query", vectors / "queries", first),
        encode_kept(model, documents, "document", vectors / "documents", second),
    )


def _other_anchors(job: Job) -> tuple[str, ...]:
    """Return the texts that only the adaptor needs as vectors: anchors of the training pairs."""
    if job.spec.hyperparameters.method != "adaptor":
        return ()
    return tuple(number_texts(pair.anchor for pair in job.data.training))


def _train_adaptor(job: Job, model: TextModel, queries_QD: Array, documents_ND: Array) -> Trained:
    hyper = job.spec.hyperparameters
    anchors = _other_anchors(job)
    begin = len(queries_QD) + len(documents_ND)
    on_progress = job.progress("encode", "texts encoded", begin, begin + len(anchors))
    folder = job.folder / "vectors" / "anchors"
    anchors_ND = encode_kept(model, anchors, "query", folder, on_progress)
    pairs = job.data.training
    vectors = Vectors(
        anchors_ND,
        documents_ND,
        _rows(anchors, [pair.anchor for pair in pairs]),
        _rows(job.questions.documents, [pair.positive for pair in pairs]),
    )
    weight = _label_weight(job, vectors)
    adaptor = Adaptor(vectors, hyper.head or "rotation", hyper.trained_dims, weight)
    seconds, rate = _train(job, adaptor)
    weight_DD = adaptor.weight()
    return Trained(
        normalize(queries_QD) @ weight_DD.T,
        normalize(documents_ND) @ weight_DD.T,
        lambda folder: export.add_head(folder, weight_DD, model.pre_op),
        seconds,
        rate,
    )


def _label_weight(job: Job, vectors: Vectors) -> float:
    """Choose the share of the labels, once in the life of the job."""
    kept = job.folder / "label_weight.txt"
    if not kept.exists():
        hyper = job.spec.hyperparameters

        def on_trial(what: str) -> None:
            job.events.append(Event(phase="train", message=what, total_steps=hyper.steps))

        weight = choose_label_weight(vectors, job.data.training, hyper, on_trial, job.interrupt)
        write_atomic(kept, str(weight).encode())
    return float(kept.read_text())


def _train_full(job: Job, model: TextModel, queries_QD: Array, documents_ND: Array) -> Trained:
    hyper = job.spec.hyperparameters
    pairs = job.data.training
    if model.engine.split()[-1] != "float32":
        # Small steps get lost in bfloat16's 8 bits.
        model = TextModel(Path(job.spec.base_dir), "float32")
    seconds, rate = _train(job, FullModel(model, pairs, hyper.trained_dims))
    model.transformer.eval()
    after = job.folder / "vectors-after"
    queries, documents = job.questions.queries, job.questions.documents
    total = len(queries) + len(documents)
    first = job.progress("evaluate", "texts encoded", 0, total)
    second = job.progress("evaluate", "texts encoded", len(queries), total)
    return Trained(
        encode_kept(model, queries, "query", after / "queries", first),
        encode_kept(model, documents, "document", after / "documents", second),
        lambda folder: export.replace_weights(folder, model),
        seconds,
        rate,
    )


def _train(job: Job, trainee: Adaptor | FullModel) -> tuple[float, float]:
    """Train to the end; return the seconds it took and the last event's steps per second."""
    course = plan(job.spec.hyperparameters, len(job.data.training), job.spec.checkpoint_steps)
    begin = time.monotonic()
    train(trainee, course, job.folder / "checkpoints", job.events.append, job.interrupt)
    last = job.events.last
    return time.monotonic() - begin, last.steps_per_second if last else 0.0


def _finish(
    job: Job,
    model: TextModel,
    trained: Trained,
    before: tuple[DimScores, ...],
    after: tuple[DimScores, ...],
) -> None:
    """Write the model's folder, the picture, and last the result."""
    spec, hyper = job.spec, job.spec.hyperparameters
    quality = Quality(
        data=f"held-out pairs of {spec.data_name}",
        num_queries=len(job.questions.queries),
        num_documents=len(job.questions.documents),
        before=before,
        after=after,
    )
    origin = export.Origin(
        model_id=spec.model_id,
        base_model=spec.base_model,
        data_digest=digest(job.data.training),
        dims=hyper.dims,
        prompts=model.prompts,
        # Full vectors are served after the pre-op and at unit length. A head comes after the pre-op
        # too and has no bias, so lengths do not matter, and the prompts are the base's: it makes of
        # the base's served vectors what it makes of texts.
        base_space_id=model.space_id if hyper.method == "adaptor" else None,
    )
    folder = job.folder / ".model-writing"
    export.copy_base(Path(spec.base_dir), folder)
    trained.write(folder)
    probe = job.questions.documents[:_NUM_PROBES], trained.documents_ND[:_NUM_PROBES]
    # A head comes after the pre-op, which is a module of the folder then.
    pre_op = model.pre_op if hyper.method == "full" else "none"
    card = export.finish(
        folder, job.folder / MODEL, origin, quality, pre_op, model.max_tokens, probe,
        [trained.queries_QD, trained.documents_ND],
    )  # fmt: skip
    write_atomic(job.folder / PLOT, report.plot(quality, spec.model_id))
    Result(
        model_id=spec.model_id,
        space_id=card.space_id,
        quality=quality,
        num_pairs=len(job.data.training),
        train_seconds=trained.train_seconds,
        steps_per_second=trained.steps_per_second,
    ).write(result_path(job.folder))


def _rows(
    texts: Sequence[str], wanted: Sequence[str]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    numbers = number_texts(texts)
    return np.array([numbers[text] for text in wanted], dtype=np.int64)
