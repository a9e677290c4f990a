"""Turns a request into a job's folder: everything is checked here, before anything is queued."""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.shared.blobs import Blobs
from services.shared.card import read_card
from services.shared.errors import InvalidRequest
from services.shared.folder import DEFAULT_MODEL, default_id, locate
from services.shared.safety import check_folder, has_two_towers
from services.trainer.data.pairs import Pair, read_pairs, split
from services.trainer.data.sample import MIN_QUERIES, MIN_VECTORS, check_vectors
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.jobs.jobs import Job, Jobs
from services.trainer.jobs.spec import (
    TRAINING,
    TRAINING_VECTORS,
    VALIDATION,
    VALIDATION_VECTORS,
    Spec,
    spec_path,
)
from services.trainer.results.layout import full_width, network_weights
from services.trainer.settings import TrainerSettings

MAX_KEY_LENGTH = 128
_SUFFIX = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job as the caller asked for it."""

    base_model: str
    """Empty: the default model; nesting has none."""
    training_file: str
    """Pairs, or vectors of documents to nest."""
    validation_file: str
    """Empty: hold out a part of the training file. Nesting: vectors of queries."""
    suffix: str
    hyperparameters: Wanted

    def digest(self) -> str:
        """Return a digest that is equal for equal requests only."""
        values = asdict(self) | {"hyperparameters": self.hyperparameters.model_dump()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_form(request: JobRequest, key: str) -> None:
    """Refuse what can be seen to be wrong without reading a file.

    Raises:
        InvalidRequest: names the field and what it may be.
    """
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidRequest(
            f"idempotency_key must have at most {MAX_KEY_LENGTH} characters, got {len(key)}",
            "idempotency_key",
        )
    if request.suffix and not _SUFFIX.fullmatch(request.suffix):
        raise InvalidRequest("suffix must be 1 to 64 letters, digits or '-'", "suffix")
    if not request.training_file:
        raise InvalidRequest("training_file must be the id of an uploaded file", "training_file")
    if request.hyperparameters.method == "nest" and request.base_model:
        raise InvalidRequest(
            "base_model must be empty for METHOD_NEST, which learns from vectors alone",
            "base_model",
        )


class Drafts:
    """Makes the folders of new jobs.

    Args:
        jobs: knows the names of files.
        blobs: holds the files.
        folder: where jobs' folders go, under their ids.
        settings: what every job's process is told.
    """

    def __init__(self, jobs: Jobs, blobs: Blobs, folder: Path, settings: TrainerSettings) -> None:
        self._jobs = jobs
        self._blobs = blobs
        self._folder = folder
        self._settings = settings

    def make(self, request: JobRequest) -> Job:
        """Check model and data and write a new job's folder.

        Raises:
            InvalidRequest: the model or a hyperparameter cannot work, or the data is wrong;
                wrong data is reported with file and line.
            NotFound: no such file.
        """
        folder = self._folder / f"job-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            is_nest = request.hyperparameters.method == "nest"
            spec = (self._nest_spec if is_nest else self._model_spec)(request, folder)
            spec.write(spec_path(folder))
            EventLog(folder).append(Event(status="queued", message="queued"))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Job(
            id=folder.name,
            base_model=spec.base_model,
            model_id=spec.model_id,
            hyperparameters=spec.hyperparameters.model_dump_json(),
        )

    def discard(self, job: Job) -> None:
        """Remove the folder of a job that is not queued after all."""
        shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def _model_spec(self, request: JobRequest, folder: Path) -> Spec:
        source = request.base_model or DEFAULT_MODEL
        base = _locate(source)
        full = full_width(base)
        _check_method(request.hyperparameters, base)
        teacher = _locate_teacher(request.hyperparameters.teacher, full)
        pairs = self._fetch_pairs(request.training_file, folder / TRAINING, "training_file")
        if request.validation_file:
            self._fetch_pairs(request.validation_file, folder / VALIDATION, "validation_file")
        else:
            pairs = split(pairs, request.hyperparameters.seed).training
        if request.hyperparameters.early_stopping:
            _check_watchable(pairs, request.hyperparameters.seed)
        card = read_card(base)
        base_model = card.id if card else default_id(base, source)
        root = (card and card.base_model) or base_model
        return Spec(
            base_dir=str(base),
            base_model=base_model,
            teacher_dir=teacher,
            model_id=f"ft:{root}:{request.suffix or 'model'}:{_short(folder)}",
            data_name=self._jobs.filename(request.training_file, "training_file"),
            hyperparameters=fill(request.hyperparameters, full, len(pairs)),
            threads=self._settings.threads,
            checkpoint_steps=self._settings.checkpoint_steps,
        )

    def _nest_spec(self, request: JobRequest, folder: Path) -> Spec:
        count, full = self._fetch_vectors(
            request.training_file, folder / TRAINING_VECTORS, "training_file", MIN_VECTORS
        )
        if request.validation_file:
            queries = folder / VALIDATION_VECTORS
            _, width = self._fetch_vectors(
                request.validation_file, queries, "validation_file", MIN_QUERIES
            )
            if width != full:
                raise InvalidRequest(
                    f"validation_file must hold vectors of {full} numbers as training_file does, "
                    f"got {width}",
                    "validation_file",
                )
        return Spec(
            base_dir="",
            base_model="",
            model_id=f"nest:{request.suffix or 'rotation'}:{_short(folder)}",
            data_name=self._jobs.filename(request.training_file, "training_file"),
            hyperparameters=fill(request.hyperparameters, full, count),
            threads=self._settings.threads,
            checkpoint_steps=self._settings.checkpoint_steps,
        )

    def _fetch_vectors(
        self, file_id: str, target: Path, param: str, at_least: int
    ) -> tuple[int, int]:
        filename = self._jobs.filename(file_id, param)
        self._blobs.fetch(file_id, target, param)
        return check_vectors(target, filename, param, at_least)

    def _fetch_pairs(self, file_id: str, target: Path, param: str) -> tuple[Pair, ...]:
        filename = self._jobs.filename(file_id, param)
        self._blobs.fetch(file_id, target, param)
        return read_pairs(target, filename, param)


def _short(folder: Path) -> str:
    """Return the first 8 digits of the job's number, for the id of what it makes."""
    return folder.name.removeprefix("job-")[:8]


def _check_method(wanted: Wanted, base: Path) -> None:
    """Refuse LoRA where the model has no such layers."""
    if wanted.method != "lora":
        return
    known = network_weights(base)
    if not known:
        raise InvalidRequest("base_model must be a transformer for METHOD_LORA", "base_model")
    for target in wanted.lora.targets if wanted.lora else ():
        if not any(name.endswith(f".{target}.weight") for name in known):
            raise InvalidRequest(
                "hyperparameters.lora.targets must be last parts of the names of the model's "
                f"linear layers, for example 'query'; it has none called {target[:64]!r}",
                "hyperparameters.lora.targets",
            )


def _locate_teacher(source: str, full: int) -> str:
    """Return the teacher's folder; empty for none but the base."""
    if not source:
        return ""
    folder = _locate(source, "hyperparameters.distillation.teacher")
    if (width := full_width(folder)) < full:
        raise InvalidRequest(
            f"hyperparameters.distillation.teacher must make vectors of at least {full} numbers, "
            f"as many as the base model's; it makes {width}",
            "hyperparameters.distillation.teacher",
        )
    return str(folder)


def _check_watchable(pairs: Sequence[Pair], seed: int) -> None:
    """Refuse early stopping where nothing can be kept aside to ask."""
    try:
        split(pairs, seed)
    except InvalidRequest as error:
        raise InvalidRequest(
            "hyperparameters.early_stopping must be left out: shared texts tie all training pairs "
            "together, so that none can be kept aside to ask",
            "hyperparameters.early_stopping",
        ) from error


def _locate(source: str, param: str = "base_model") -> Path:
    try:
        base = locate(source)
        check_folder(base)
    except InvalidRequest as error:
        raise InvalidRequest(f"{param}: {error.message}", param) from error
    if has_two_towers(base):
        raise InvalidRequest(
            f"{param} must have one tower for queries and documents; a two-tower model can be "
            "served, not trained",
            param,
        )
    return base
