"""What a job does, from top to bottom: read, encode, train, evaluate, export.

A nest job has neither texts nor a model: `nesting.py` does it.
In: a job's folder, see `spec.py`. Out: the finished model in it, its picture, its result. Each
step keeps what it has made in the folder, so that a killed job goes on where it was.

Shapes: Q queries, or scored pairs; N documents, K sizes, S scores of `evaluate.py`, D full width.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from services.shared.card import Quality
from services.shared.errors import InvalidRequest, ServiceError
from services.shared.model import TextModel
from services.shared.trace import span
from services.shared.vectors import Array
from services.trainer.data.data_report import read_report, write_report
from services.trainer.data.dataset import NAMES
from services.trainer.data.examples import Example, digest, read_split
from services.trainer.data.finds import Finds, read_finds
from services.trainer.data.pairs import Pair, Split, digest_questions, number_texts
from services.trainer.data.pictures import Item
from services.trainer.data.questions import ask
from services.trainer.jobs.events import Event, EventLog, read_events
from services.trainer.jobs.spec import (
    CHECKPOINTS,
    FOUND,
    MODEL,
    PLOT,
    REPORT,
    REPORT_PAGE,
    SCORES_AFTER,
    SCORES_BEFORE,
    START,
    TRAINING,
    VALIDATION,
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.results import export, onnx_model, report
from services.trainer.results.evaluate import Scores, means, measure
from services.trainer.results.gate import caution
from services.trainer.results.page import write_page
from services.trainer.results.slices import compare_slices
from services.trainer.results.summary import Summary, bytes_of, find_losers, read_curve
from services.trainer.training import axes, ranks
from services.trainer.training.adapting import adapt
from services.trainer.training.checkpoint import write_atomic
from services.trainer.training.encode import encode_kept
from services.trainer.training.full import FullModel
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.job import Job, Trained
from services.trainer.training.mining import mine
from services.trainer.training.nesting import run_nest
from services.trainer.training.passes import best_arithmetic
from services.trainer.training.pilot import tuning_label_weight
from services.trainer.training.train import plan, train
from services.trainer.training.tuning import choose_passes, tune

_NUM_PROBES = 8
_CHUNK_TEXTS = 2048
_MAX_FOUND = 200_000
"""Texts of a collection that are looked at: they are encoded, and their vectors are in memory."""


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
        with span("nest"):
            run_nest(job_dir, spec, interrupt)
        return
    if spec.hyperparameters.onnx and not (job_dir / CHECKPOINTS).exists():
        onnx_model.rehearse(spec.base)
    hyper = spec.hyperparameters
    with span("prepare"):
        data = _read_data(job_dir, spec)
        job = Job(job_dir, spec, data, ask(data), EventLog(job_dir), interrupt)
        model = _load_base(job)
        # Only what learns from frozen vectors, or mines with them, needs those of training
        # questions.
        learns_frozen = hyper.method in ("adaptor", "distill") or axes.are_wanted(job, model)
        needs_anchors = learns_frozen or spec.mining
        others = len(job.training_anchors()) if needs_anchors else 0
        queries_QD, documents_ND = job.encode_questions(model, "vectors", "encode", others)
        _count_too_long(job, model)
        mined = _mine(job, model, documents_ND)
    with span("train"):
        learn = adapt if hyper.method == "adaptor" else tune
        trained = learn(mined, model, queries_QD, documents_ND)
    dims = hyper.measured_dims
    with span("evaluate"):
        before_QKS = measure(
            queries_QD, documents_ND, job.questions, dims,
            job.progress("evaluate", "sizes measured", 0, 2 * len(dims)),
        )  # fmt: skip
        after_QKS = measure(
            trained.queries_QD, trained.documents_ND, job.questions, dims,
            job.progress("evaluate", "sizes measured", len(dims), 2 * len(dims)),
        )  # fmt: skip
    with span("export"):
        _finish(job, trained, before_QKS, after_QKS)


def follow_job(job_dir: Path, spec: Spec, interrupt: Interrupt) -> None:
    """Train beside the first process of a job, which writes what comes of it.

    Raises:
        Interrupted: asked to stop.
        ServiceError: it cannot succeed.
    """
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    hyper = spec.hyperparameters
    pairs = [example for example in _read_data(job_dir, spec).training if isinstance(example, Pair)]
    ranks.meet()  # what it starts from is there
    folder = job_dir / START if (job_dir / START).exists() else spec.base
    model = TextModel(folder, "float32")
    learned = FullModel(
        model, pairs, hyper.trained_dims, choose_passes(job_dir, hyper, model),
        with_kernel=hyper.loss_kernel, label_weight=tuning_label_weight(job_dir),
    )  # fmt: skip
    course = plan(hyper, len(pairs), spec.checkpoint_steps)
    train(learned, course, job_dir / "checkpoints", lambda _: None, interrupt)


def _read_data(job_dir: Path, spec: Spec) -> Split[Example]:
    seed = spec.hyperparameters.seed
    return read_split(job_dir / TRAINING, job_dir / VALIDATION, spec.kind, seed)


def _load_base(job: Job) -> TextModel:
    """Load the base model, in bfloat16 where this machine has it and the model bears it.

    Not by what is faster just now: vectors of two precisions differ in their last digits, and the
    same seed and data shall make the same model. A job that goes on elsewhere keeps to its own.
    """
    kept = job.folder / "precision.txt"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = kept.read_text() if kept.exists() else best_arithmetic(device)
    folder = job.spec.base
    try:
        model = TextModel(folder, "bfloat16" if wanted == "bfloat16" else "float32")
    except InvalidRequest:
        model = _load_exact(folder)
    write_atomic(kept, model.engine.split()[-1].encode())
    return model


def _load_exact(folder: Path) -> TextModel:
    try:
        return TextModel(folder, "float32")
    except InvalidRequest as error:
        raise InvalidRequest(error.message, "base_model") from error


def _count_too_long(job: Job, model: TextModel) -> None:
    """Count the texts whose ends the model never sees, once in the life of the job, and say it."""
    found = read_report(job.folder)
    if found is None or found.too_long is not None:
        return
    number = 0
    sides: tuple[Sequence[Item], ...] = (
        (*job.questions.queries, *job.training_anchors()),
        job.questions.documents,
    )
    for role, items in zip(job.roles, sides, strict=True):
        texts = [item for item in items if isinstance(item, str)]
        limit = model.tower(role).max_tokens
        for begin in range(0, len(texts), _CHUNK_TEXTS):
            job.interrupt.check()
            tokens = model.tokenize(texts[begin : begin + _CHUNK_TEXTS], role)
            number += sum(len(ids) > limit for ids in tokens)
    write_report(job.folder, found.model_copy(update={"too_long": number}))
    if number:
        message = f"data: {number} texts are longer than the model reads; their ends are not seen"
        job.events.append(Event(phase="encode", message=message))


def _mine(job: Job, model: TextModel, documents_ND: Array) -> Job:
    """Return the job with mined negatives in its training pairs, if they are wanted."""
    mining = job.spec.mining
    if mining is None:
        return job
    pairs, asked = job.pairs, job.questions
    found, found_FD = Finds((), ()), documents_ND[:0]
    if mining.collection:
        found = read_finds(job.folder / FOUND, len(job.training_anchors()))
        # None that quality is measured by, neither asked nor to be found.
        found = found.without((*asked.documents, *asked.queries)).best(_MAX_FOUND)
        found_FD = encode_kept(
            model, found.texts, job.roles[1], job.folder / "vectors" / "found",
            job.progress("mine", "texts of the collection encoded", 0, len(found.texts)),
        )  # fmt: skip
    mined = mine(
        pairs, job.encode_anchors(model, "vectors"), asked.documents, documents_ND, mining,
        job.folder / "vectors" / "mined",
        job.progress("mine", "pairs given negatives", 0, len(pairs)), found, found_FD,
    )  # fmt: skip
    numbers = number_texts(found.texts)
    taken = number_texts(t for pair in mined for t in pair.negatives if t in numbers)
    count = sum(
        len(after.negatives) - len(b.negatives) for b, after in zip(pairs, mined, strict=True)
    )
    message = f"{count / len(pairs):.1f} negatives mined for a pair"
    if mining.collection:
        message += f"; {len(taken)} of {len(found.texts)} texts found in the collection were taken"
    job.events.append(Event(phase="mine", message=message))
    rows = [numbers[text] for text in taken]
    return replace(job, mined=mined, taken=tuple(taken), taken_TD=found_FD[rows])


def _finish(job: Job, trained: Trained, before_QKS: Scores, after_QKS: Scores) -> None:
    """Write the model's folder, what it scored, the report, and last the result."""
    spec, hyper, dims = job.spec, job.spec.hyperparameters, job.spec.hyperparameters.measured_dims
    quality = Quality(
        data=f"held-out {NAMES[spec.kind]} of {spec.data_name}",
        num_queries=len(before_QKS),
        num_documents=len(job.questions.documents),
        before=means(before_QKS, dims),
        after=means(after_QKS, dims),
    )
    data_digest = digest(job.pairs or job.data.training)
    origin = export.Origin(
        model_id=spec.model_id,
        base_model=spec.base_model,
        data_digest=data_digest,
        dims=hyper.dims,
        prompts=trained.prompts,
        base_space_id=trained.base_space_id,
    )
    folder = job.folder / ".model-writing"
    export.copy_base(trained.start, folder)
    trained.write(folder)
    probe = job.questions.documents[:_NUM_PROBES], trained.documents_ND[:_NUM_PROBES]
    card = export.finish(
        folder, job.folder / MODEL, origin, quality, trained.pre_op, trained.max_tokens, probe,
        [trained.queries_QD, trained.documents_ND], job.roles[1], hyper.onnx,
    )  # fmt: skip
    write_atomic(job.folder / SCORES_BEFORE, _npy(before_QKS))
    write_atomic(job.folder / SCORES_AFTER, _npy(after_QKS))
    write_atomic(job.folder / PLOT, report.plot(quality, spec.model_id))
    asked = job.questions
    summary = Summary(
        model_id=spec.model_id,
        base_model=spec.base_model,
        hyperparameters=hyper,
        data=spec.data_name,
        data_digest=data_digest,
        kind=spec.kind,
        num_pairs=len(job.data.training),
        quality=quality,
        mining=spec.mining,
        caution=caution(quality.num_queries, quality.after[0].COUNTED),
        slices=compare_slices(before_QKS, after_QKS, asked.slices, dims),
        slice_of_query=asked.slices if any(asked.slices) else (),
        losers=find_losers(before_QKS, after_QKS, asked.names, asked.slices, dims),
        curve=read_curve(read_events(job.folder, 0)[0]),
        bytes_per_vector=bytes_of(dims),
        train_seconds=trained.train_seconds,
    )
    summary.write(job.folder / REPORT)
    write_atomic(job.folder / REPORT_PAGE, write_page(summary).encode())
    Result(
        model_id=spec.model_id,
        space_id=card.space_id,
        quality=quality,
        data_digest=data_digest,
        questions_digest=digest_questions(asked),
        code_version=version("matryoshka-suite"),
        num_pairs=len(job.data.training),
        train_seconds=trained.train_seconds,
        steps_per_second=trained.steps_per_second,
    ).write(result_path(job.folder))


def _npy(values: Scores) -> bytes:
    written = io.BytesIO()
    np.save(written, values, allow_pickle=False)
    return written.getvalue()
