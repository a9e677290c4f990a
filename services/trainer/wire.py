"""Protobuf messages of the trainer to our own types and back; nothing further in knows them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.shared.card import AnyScores, Quality
from services.shared.errors import InvalidRequest
from services.shared.pb import trainer_pb2 as pb
from services.trainer.data.data_report import read_report
from services.trainer.jobs.create import JobRequest
from services.trainer.jobs.events import Event, last_step
from services.trainer.jobs.hyperparameters import (
    EarlyStopping,
    Head,
    Hyperparameters,
    Lora,
    Method,
    Student,
    Wanted,
)
from services.trainer.jobs.metadata import read_metadata
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import (
    MODEL,
    PLOT,
    RESULT_FILE,
    Mining,
    Result,
    ResultFiles,
    Spec,
    result_files_path,
    result_path,
    spec_path,
)
from services.trainer.training.checkpoint import Saved

_METHODS: dict[int, Method] = {
    pb.METHOD_UNSPECIFIED: "adaptor",
    pb.METHOD_ADAPTOR: "adaptor",
    pb.METHOD_FULL: "full",
    pb.METHOD_NEST: "nest",
    pb.METHOD_LORA: "lora",
    pb.METHOD_STATIC: "static",
    pb.METHOD_DISTILL: "distill",
}
_HEADS: dict[int, Head | None] = {
    pb.HEAD_UNSPECIFIED: None,
    pb.HEAD_ROTATION: "rotation",
    pb.HEAD_DENSE: "dense",
    pb.HEAD_RESIDUAL: "residual",
}
_STUDENTS: dict[int, Student | None] = {
    pb.STUDENT_UNSPECIFIED: None,
    pb.STUDENT_BASE: "base",
    pb.STUDENT_STATIC: "static",
}


def read_request(message: pb.CreateJobRequest) -> JobRequest:
    """Read a request.

    Raises:
        InvalidRequest: an enum has a value that this release does not know.
    """
    given = message.hyperparameters
    _check_known(given.method, _METHODS, pb.Method.Name, "method")
    _check_known(given.head, _HEADS, pb.Head.Name, "head")
    _check_known(given.distillation.student, _STUDENTS, pb.Student.Name, "distillation.student")
    return JobRequest(
        base_model=message.base_model,
        training_file=message.training_file,
        validation_file=message.validation_file,
        suffix=message.suffix,
        metadata=read_metadata(dict(message.metadata)),
        hyperparameters=_read_hyperparameters(given),
        columns=dict(message.columns),
        mining=_read_mining(message),
    )


def _read_mining(message: pb.CreateJobRequest) -> Mining | None:
    """Read how negatives are mined; InvalidRequest if that cannot be."""
    if not message.HasField("mine_negatives"):
        return None
    given = {field.name: value for field, value in message.mine_negatives.ListFields()}
    try:
        return Mining.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest(Mining.ACCEPTED, "mine_negatives") from error


def _read_hyperparameters(given: pb.Hyperparameters) -> Wanted:
    lora, stopping, distillation = given.lora, given.early_stopping, given.distillation
    return Wanted(
        method=_METHODS[given.method],
        head=_HEADS[given.head],
        matryoshka_dims=tuple(given.matryoshka_dims),
        steps=given.steps,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        seed=given.seed,
        lora=Lora(rank=lora.rank, alpha=lora.alpha, targets=tuple(lora.targets))
        if given.HasField("lora")
        else None,
        dim_weights=tuple(given.dim_weights),
        evaluated_dims=tuple(given.evaluated_dims),
        early_stopping=EarlyStopping(
            dim=stopping.dim, every_steps=stopping.every_steps, patience=stopping.patience
        )
        if given.HasField("early_stopping")
        else None,
        student=_STUDENTS[distillation.student] or "base"
        if given.HasField("distillation")
        else None,
        teacher=distillation.teacher,
        onnx=given.onnx,
        loss_kernel=given.loss_kernel,
    )


def _check_known(
    number: int, known: Mapping[int, object], name: Callable[[Any], str], field: str
) -> None:
    if number not in known:
        names = ", ".join(name(value) for value in known if value)
        raise InvalidRequest(
            f"hyperparameters.{field} must be one of {names}", f"hyperparameters.{field}"
        )


def write_job(job: Job, folder: Path, with_plot: bool) -> pb.Job:
    """Write a job, completed from its folder; reads files.

    Args:
        job: its state.
        folder: its folder.
        with_plot: whether to send the picture; lists leave it out.
    """
    message = pb.Job(
        id=job.id,
        status=_status(job.state),
        created_at=int(job.created_at),
        started_at=int(job.started_at or 0),
        finished_at=int(job.finished_at or 0),
        error=job.error,
        base_model=job.base_model,
        hyperparameters=write_hyperparameters(
            Hyperparameters.model_validate_json(job.hyperparameters)
        ),
        model_id=job.model_id,
        step=last_step(folder),
        training_file=job.training_file,
        validation_file=job.validation_file,
        metadata=job.metadata,
        result_files=job.result_files,
        error_code=job.error_code,
        error_param=job.error_param,
    )
    if report := read_report(folder):
        kind = pb.DataKind.Value(f"DATA_KIND_{report.kind.upper()}")
        message.data.CopyFrom(pb.DataReport(**report.model_dump(exclude={"kind"}), kind=kind))
    if spec := Spec.read(spec_path(folder)):
        message.columns.update(spec.columns)
        if spec.mining:
            message.mine_negatives.CopyFrom(pb.Mining(**spec.mining.model_dump()))
    result = Result.read(result_path(folder)) if job.state == "succeeded" else None
    if result:
        if result.quality:
            message.model_dir = str(folder / MODEL)
            message.quality.extend(write_quality(result.quality))
        if stored := ResultFiles.read(result_files_path(folder)):
            message.result_file = stored.ids.get(RESULT_FILE, "")
        message.nest_quality.extend(
            pb.NestQuality(dim=row.dim, plain=row.plain, pca=row.pca, nested=row.nested)
            for row in result.nest_quality
        )
        if with_plot:
            message.plot_png = (folder / PLOT).read_bytes()
    return message


def write_checkpoint(saved: Saved) -> pb.Checkpoint:
    return pb.Checkpoint(
        step=saved.step, created_at=int(saved.created_at), num_bytes=saved.num_bytes
    )


def write_event(event: Event) -> pb.Event:
    return pb.Event(
        number=event.number,
        at=event.at,
        status=_status(event.status),
        message=event.message,
        phase=event.phase,
        step=event.step,
        total_steps=event.total_steps,
        loss=event.loss,
        steps_per_second=event.steps_per_second,
        seconds_left=event.seconds_left,
        gradient_norm=event.gradient_norm,
        tokens=event.tokens,
        utilization=event.utilization,
    )


def _status(state: str) -> pb.JobStatus.ValueType:
    return pb.JobStatus.Value(f"JOB_STATUS_{state.upper()}")


def write_hyperparameters(hyper: Hyperparameters) -> pb.Hyperparameters:
    lora, stopping = hyper.lora, hyper.early_stopping
    is_distilled = hyper.student is not None
    return pb.Hyperparameters(
        method=_number(_METHODS, hyper.method),
        head=_number(_HEADS, hyper.head),
        matryoshka_dims=hyper.matryoshka_dims,
        steps=hyper.steps,
        batch_size=hyper.batch_size,
        learning_rate=hyper.learning_rate,
        seed=hyper.seed,
        lora=pb.Lora(**lora.model_dump()) if lora else None,
        # As many as the sizes beside it.
        dim_weights=hyper.dim_weights[: len(hyper.matryoshka_dims)],
        evaluated_dims=hyper.evaluated_dims,
        early_stopping=pb.EarlyStopping(**stopping.model_dump()) if stopping else None,
        distillation=pb.Distillation(
            teacher=hyper.teacher, student=_number(_STUDENTS, hyper.student)
        )
        if is_distilled
        else None,
        onnx=hyper.onnx,
        loss_kernel=hyper.loss_kernel,
    )


def _number(known: Mapping[int, object], value: object) -> Any:  # noqa: ANN401 (an enum's own type)
    """Return the enum's number of a value of ours; of several the one with a name."""
    return max(number for number, ours in known.items() if ours == value)


def write_quality(quality: Quality) -> list[pb.DimQuality]:
    """Write one row a size."""
    return [
        pb.DimQuality(dim=before.dim, before=write_scores(before), after=write_scores(after))
        for before, after in zip(quality.before, quality.after, strict=True)
    ]


def write_scores(scores: AnyScores) -> pb.Scores:
    return pb.Scores(**scores.values)
