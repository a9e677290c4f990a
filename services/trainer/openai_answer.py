"""What answers about jobs hold, in OpenAI's shapes.

Source: openai/openai-openapi, `FineTuningJob`, `FineTuningJobEvent`, `FineTuningJobCheckpoint`.
"""

import re
import time
from pathlib import Path
from typing import Any

from services.shared.errors import NotFound, ServiceError
from services.trainer.data.data_report import read_report
from services.trainer.jobs.events import Event, last_training
from services.trainer.jobs.hyperparameters import MAX_STEPS, Hyperparameters
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import (
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.training.checkpoint import Saved

_OPERATOR = "matryoshka"
_METHOD = re.compile(r"METHOD_([A-Z]+)")
_EVENT, _CHECKPOINT = "ftevent-", "ftckpt-"


def write_fine_tuning(job: Job, folder: Path) -> dict[str, object]:
    """Write a job, completed from its folder; reads files.

    Beyond OpenAI's fields: the state `paused`, `columns` and `mine_negatives` as they were asked
    for, `data` (what was found in the data), and `quality` once it has succeeded.
    """
    settings = _settings(job)
    spec = Spec.read(spec_path(folder))
    # OpenAI's names, where they mean something here.
    common = settings | {"learning_rate_multiplier": "auto", "n_epochs": "auto"}
    if spec and spec.n_epochs:
        common["n_epochs"] = spec.n_epochs
        del common["steps"]  # whoever sends these again may give one of the two
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "error": _write_error(job),
        "fine_tuned_model": job.model_id if job.state == "succeeded" else None,
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "hyperparameters": common,
        "model": job.base_model,
        "organization_id": job.tenant or _OPERATOR,
        "result_files": list(job.result_files),
        "seed": settings["seed"],
        "status": job.state,
        "trained_tokens": _trained_tokens(job, folder),
        "training_file": job.training_file,
        "validation_file": job.validation_file or None,
        "estimated_finish": _estimate(job, folder),
        "integrations": [],
        "metadata": job.metadata or None,
        "method": {"type": "matryoshka", "matryoshka": settings},
        "columns": spec.columns if spec and spec.columns else None,
        "mine_negatives": spec.mining.model_dump() if spec and spec.mining else None,
        "data": _data(folder),
        "quality": _quality(job, folder),
    }


def write_event(job: Job, folder: Path, event: Event) -> dict[str, object]:
    """Write an event; one of a step tells its losses, the last one what each size keeps."""
    data: object = None
    if event.loss:
        data = {
            "step": event.step,
            "total_steps": event.total_steps,
            "train_loss": _hyperparameters(job).total(event.loss),
            "loss": {str(dim): loss for dim, loss in event.loss.items()},
        }
    elif event.status == "succeeded":
        data = {"quality": _quality(job, folder)}
    return {
        "id": f"{_EVENT}{job.id}-{event.number}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": "error" if event.status == "failed" else "info",
        "message": event.message,
        "type": "message" if data is None else "metrics",
        "data": data,
    }


def write_checkpoint(job: Job, folder: Path, saved: Saved) -> dict[str, object]:
    """Write a checkpoint; its loss is of the last step that an event told of; reads files."""
    near = last_training(folder, saved.step)
    loss = _hyperparameters(job).total(near.loss) if near and near.loss else None
    return {
        "id": f"{_CHECKPOINT}{job.id}-{saved.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(saved.created_at),
        "fine_tuned_model_checkpoint": f"{job.model_id}:ckpt-step-{saved.step}",
        "fine_tuning_job_id": job.id,
        "metrics": {
            "step": float(saved.step),
            "train_loss": loss,
            "train_mean_token_accuracy": None,
            "valid_loss": None,
            "valid_mean_token_accuracy": None,
            "full_valid_loss": None,
            "full_valid_mean_token_accuracy": None,
        },
        "step_number": saved.step,
    }


def _settings(job: Job) -> dict[str, Any]:
    """Return all settings as they were used, in the form in which they can be asked for again."""
    used = _hyperparameters(job)
    settings = used.model_dump(mode="json", exclude={"full"}, exclude_none=True)
    # What the full size counts for cannot be asked for.
    settings["dim_weights"] = settings["dim_weights"][: len(used.matryoshka_dims)]
    return settings


def _hyperparameters(job: Job) -> Hyperparameters:
    return Hyperparameters.model_validate_json(job.hyperparameters)


def _data(folder: Path) -> dict[str, object] | None:
    report = read_report(folder)
    return report.model_dump(mode="json") if report else None


def _trained_tokens(job: Job, folder: Path) -> int | None:
    last = last_training(folder, MAX_STEPS) if job.state == "succeeded" else None
    return last.tokens if last and last.tokens else None


def event_number(job: Job, event_id: str) -> int:
    """Return the number of an event; NotFound."""
    return _number(event_id, f"{_EVENT}{job.id}-")


def checkpoint_step(job: Job, checkpoint_id: str) -> int:
    """Return the step of a checkpoint; NotFound."""
    return _number(checkpoint_id, f"{_CHECKPOINT}{job.id}-")


def _number(given: str, prefix: str) -> int:
    digits = given.removeprefix(prefix)
    if not given.startswith(prefix) or not digits.isascii() or not digits.isdigit():
        raise NotFound(f"after: there is no {given[:96]!r} in this list", "after")
    return int(digits[:18])


def _write_error(job: Job) -> dict[str, object] | None:
    """Write why a job failed, in the words of here."""
    if job.state != "failed":
        return None
    error = ServiceError(job.error, job.error_param or None)
    if job.error_code == "invalid_data":
        use_openais_words(error)
    return {
        "code": job.error_code or "internal_error",
        "message": error.message,
        "param": error.param,
    }


def use_openais_words(error: ServiceError) -> None:
    """Name fields and methods as they are called here."""
    if error.param == "base_model":
        error.param = "model"
    error.message = error.message.replace("base_model", "model")
    error.message = _METHOD.sub(lambda found: f"'{found[1].lower()}'", error.message)


def _estimate(job: Job, folder: Path) -> int | None:
    last = last_training(folder) if job.state == "running" else None
    if last is None or not last.steps_per_second:
        return None
    return int(max(time.time(), last.at + last.seconds_left))


def _quality(job: Job, folder: Path) -> list[dict[str, object]] | None:
    """Return what each size keeps, before and after; None: it has not succeeded."""
    result = Result.read(result_path(folder)) if job.state == "succeeded" else None
    if result is None:
        return None
    if result.quality is None:
        return [row.model_dump() for row in result.nest_quality]
    return [
        {"dim": before.dim, "before": before.values, "after": after.values}
        for before, after in zip(result.quality.before, result.quality.after, strict=True)
    ]
