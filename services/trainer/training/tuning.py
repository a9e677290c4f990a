"""What a job that trains a text model does after encoding: full, lora, static, distill.

They differ in the folder that they start from, in the weights that may change, and in what is
learned from; the rest is the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from services.shared.errors import ServiceError
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.pairs import Questions
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.jobs.spec import CHECKPOINTS, START
from services.trainer.results import export
from services.trainer.training import axes, ranks, start
from services.trainer.training.accelerator import why_no_kernel
from services.trainer.training.adaptor import Vectors
from services.trainer.training.checkpoint import write_atomic
from services.trainer.training.distill import Distill, teachers_axes
from services.trainer.training.encode import encode
from services.trainer.training.full import TOKENS_AT_ONCE, FullModel
from services.trainer.training.graded import distinct_texts, learn_grades
from services.trainer.training.job import Job, Trained
from services.trainer.training.lora import LoraLayers
from services.trainer.training.passes import Arithmetic, Passes, best_arithmetic
from services.trainer.training.pilot import tuning_label_weight
from services.trainer.training.texts import ModelTexts
from services.trainer.training.train import Trainee
from services.trainer.training.utilization import Utilization

_NEVER = 2**62  # more tokens than there are: all at once


def tune(job: Job, base: TextModel, queries_QD: Array, documents_ND: Array) -> Trained:
    """Train a text model.

    Args:
        job: see there.
        base: the model that it starts from, or that lends its tokenizer.
        queries_QD: its vectors of the held-out queries.
        documents_ND: and of all documents.
    """
    hyper = job.spec.hyperparameters
    if hyper.loss_kernel and (reason := why_no_kernel()):  # the service may run elsewhere
        raise ServiceError(f"the loss kernel cannot run here: {reason}; leave loss_kernel out")
    teacher = _teacher(job, base, documents_ND) if hyper.student else None
    rows, watched = job.learn_and_watch()
    model = _start(job, base, documents_ND, teacher, rows)
    ranks.meet()  # the others read what it starts from
    lora = LoraLayers(model.tower("none").network, hyper.lora, hyper.seed) if hyper.lora else None
    passes = choose_passes(job.folder, hyper, model)
    trainee = _trainee(job, model, passes, teacher, rows, lora.parameters if lora else None)

    def encode_watched(asked: Questions) -> tuple[Array, Array]:
        model.transformer.eval()
        queries_QD = encode(model, asked.queries, job.roles[0])
        documents_ND = encode(model, asked.documents, job.roles[1])
        model.transformer.train()
        return queries_QD, documents_ND

    utilization = Utilization(passes, is_frozen=lora is not None)
    seconds, rate = job.train(trainee, len(rows), watched, encode_watched, utilization)
    if lora:
        lora.merge()
    model.transformer.eval()
    queries_QD, documents_ND = job.encode_questions(model, "vectors-after", "evaluate")
    return Trained(
        queries_QD=queries_QD,
        documents_ND=documents_ND,
        start=model.folder,
        write=lambda folder: export.replace_weights(folder, model),
        prompts=model.prompts,
        max_tokens=model.max_tokens,
        pre_op=model.pre_op,
        base_space_id=None,
        train_seconds=seconds,
        steps_per_second=rate,
    )


def _trainee(
    job: Job,
    model: TextModel,
    passes: Passes,
    teacher: Vectors | None,
    rows: Sequence[int],
    parameters: dict[str, torch.nn.Parameter] | None,
) -> Trainee:
    """Return what learns from some of the training examples."""
    hyper = job.spec.hyperparameters
    if job.spec.kind != "pairs":
        examples = [job.data.training[row] for row in rows]
        texts = ModelTexts(model, distinct_texts(examples), passes, parameters)
        return learn_grades(examples, texts, hyper.trained_dims)
    all_pairs = job.pairs
    pairs = [all_pairs[row] for row in rows]
    learned = FullModel(
        model, pairs, hyper.trained_dims, passes, parameters,
        with_kernel=hyper.loss_kernel, label_weight=tuning_label_weight(job.folder),
    )  # fmt: skip
    return Distill(learned, teacher.take(rows), hyper.trained_dims) if teacher else learned


def _start(
    job: Job, base: TextModel, documents_ND: Array, teacher: Vectors | None, rows: Sequence[int]
) -> TextModel:
    """Return the model to train, in float32."""
    hyper, folder = job.spec.hyperparameters, job.folder / START
    if hyper.method == "static" or hyper.student == "static":
        start.make_table(base, folder, hyper.seed)
        return TextModel(folder, "float32")
    # What an older version began has checkpoints, and goes on as it began.
    has_begun = (job.folder / CHECKPOINTS).exists()
    if teacher:
        targets_ND = teacher.positives_ND[:, : base.full]
        start.make_turned(base, folder, lambda: start.fit(normalize(documents_ND), targets_ND))
    elif axes.are_wanted(job, base) and not has_begun:
        start.make_turned(base, folder, lambda: axes.learn_axes(job, base, documents_ND, rows))
    if folder.exists():
        model = TextModel(folder, "float32")
        model.prompts = base.prompts  # which only the base's card may know
        return model
    # Small steps get lost in bfloat16's 8 bits.
    in_float32 = base.engine.split()[-1] == "float32"
    return base if in_float32 else TextModel(job.spec.base, "float32")


def choose_passes(folder: Path, hyper: Hyperparameters, model: TextModel) -> Passes:
    """Choose how texts go through the model, once in the life of the job in that folder."""
    if hyper.method == "static" or hyper.student == "static":
        return Passes(model, _NEVER)  # sums of rows: nothing to multiply, and little to keep
    kept = folder / "arithmetic.txt"
    if not kept.exists():
        write_atomic(kept, best_arithmetic(model.device).encode())
    arithmetic: Arithmetic = "bfloat16" if kept.read_text() == "bfloat16" else "float32"
    return Passes(model, TOKENS_AT_ONCE, arithmetic)


def _teacher(job: Job, base: TextModel, documents_ND: Array) -> Vectors:
    """Return the teacher's vectors of the training pairs, on the axes that they are learned on."""
    teacher, name = base, "vectors"
    if folder := job.spec.teacher:
        teacher, name = TextModel(folder, "float32"), "vectors-teacher"
        _, documents_ND = job.encode_questions(teacher, name, "encode")
    vectors = job.encode_pairs(teacher, name, documents_ND)
    axes_TT = teachers_axes(documents_ND, bool(teacher.declared_dims))
    return replace(
        vectors,
        anchors_ND=normalize(vectors.anchors_ND) @ axes_TT.T,
        positives_ND=normalize(vectors.positives_ND) @ axes_TT.T,
    )
