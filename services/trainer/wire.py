"""Protobuf messages of the trainer to our own types and back; nothing further in knows them."""

from pathlib import Path

from pydantic import ValidationError

from services.shared.card import DimScores, Quality
from services.shared.errors import InvalidRequest
from services.shared.pb import trainer_pb2 as pb
from services.trainer.data.data_report import read_report
from services.trainer.jobs.create import JobRequest
from services.trainer.jobs.events import Event, last_step
from services.trainer.jobs.hyperparameters import Head, Hyperparameters, Method, Wanted
from services.trainer.jobs.metadata import read_metadata
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import (
    MODEL,
    PLOT,
    RESULT_FILE,
    Mining,
    Result,
    ResultFiles,
    result_files_path,
    result_path,
)
from services.trainer.training.checkpoint import Saved

_METHODS: dict[int, Method] = {
    pb.METHOD_UNSPECIFIED: "adaptor",
    pb.METHOD_ADAPTOR: "adaptor",
    pb.METHOD_FULL: "full",
    pb.METHOD_NEST: "nest",
}
_HEADS: dict[int, Head | None] = {
    pb.HEAD_UNSPECIFIED: None,
    pb.HEAD_ROTATION: "rotation",
    pb.HEAD_DENSE: "dense",
}
_METHOD_NUMBERS = {
    "adaptor": pb.METHOD_ADAPTOR,
    "full": pb.METHOD_FULL,
    "nest": pb.METHOD_NEST,
}
_HEAD_NUMBERS = {None: pb.HEAD_UNSPECIFIED, "rotation": pb.HEAD_ROTATION, "dense": pb.HEAD_DENSE}


def read_request(message: pb.CreateJobRequest) -> JobRequest:
    """Read a request.

    Raises:
        InvalidRequest: an enum has a value that this release does not know.
    """
    given = message.hyperparameters
    if given.method not in _METHODS or given.head not in _HEADS:
        raise InvalidRequest(
            "hyperparameters.method must be METHOD_ADAPTOR, METHOD_FULL or METHOD_NEST, and head "
            "HEAD_ROTATION or HEAD_DENSE",
            "hyperparameters.method",
        )
    return JobRequest(
        base_model=message.base_model,
        training_file=message.training_file,
        validation_file=message.validation_file,
        suffix=message.suffix,
        metadata=read_metadata(dict(message.metadata)),
        hyperparameters=Wanted(
            method=_METHODS[given.method],
            head=_HEADS[given.head],
            matryoshka_dims=tuple(given.matryoshka_dims),
            steps=given.steps,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            seed=given.seed,
        ),
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
    )
    if report := read_report(folder):
        kind = pb.DataKind.Value(f"DATA_KIND_{report.kind.upper()}")
        message.data.CopyFrom(pb.DataReport(**report.model_dump(exclude={"kind"}), kind=kind))
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
    )


def _status(state: str) -> pb.JobStatus.ValueType:
    return pb.JobStatus.Value(f"JOB_STATUS_{state.upper()}")


def write_hyperparameters(hyper: Hyperparameters) -> pb.Hyperparameters:
    return pb.Hyperparameters(
        method=_METHOD_NUMBERS[hyper.method],
        head=_HEAD_NUMBERS[hyper.head],
        matryoshka_dims=hyper.matryoshka_dims,
        steps=hyper.steps,
        batch_size=hyper.batch_size,
        learning_rate=hyper.learning_rate,
        seed=hyper.seed,
    )


def write_quality(quality: Quality) -> list[pb.DimQuality]:
    """Write one row a size."""
    return [
        pb.DimQuality(dim=before.dim, before=write_scores(before), after=write_scores(after))
        for before, after in zip(quality.before, quality.after, strict=True)
    ]


def write_scores(scores: DimScores) -> pb.Scores:
    return pb.Scores(ndcg10=scores.ndcg10, recall10=scores.recall10, mrr10=scores.mrr10)
