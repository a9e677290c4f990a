"""Turns a request into a job's folder: everything is checked here, before anything is queued."""

import hashlib
import json
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.shared.card import read_card
from services.shared.errors import InvalidRequest
from services.shared.files import Files
from services.shared.folder import DEFAULT_MODEL, default_id, locate
from services.shared.safety import check_folder, has_two_towers
from services.trainer.data.pairs import Pair, read_pairs, split
from services.trainer.data.sample import MIN_QUERIES, MIN_VECTORS, check_vectors
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import (
    TRAINING,
    TRAINING_VECTORS,
    VALIDATION,
    VALIDATION_VECTORS,
    Spec,
    spec_path,
)
from services.trainer.results.layout import full_width
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
    metadata: dict[str, str] = field(default_factory=dict)
    tenant: str | None = None
    """Who asks for it; None: an operator."""

    @property
    def owner(self) -> str:
        """Whom it counts for among those who wait."""
        return self.metadata.get("user", "") if self.tenant is None else f"tenant {self.tenant}"

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
        files: those that were uploaded.
        folder: where jobs' folders go, under their ids.
        settings: what every job's process is told.
    """

    def __init__(self, files: Files, folder: Path, settings: TrainerSettings) -> None:
        self._files = files
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
            tenant=request.tenant,
            owner=request.owner,
            training_file=request.training_file,
            validation_file=request.validation_file,
            metadata=request.metadata,
        )

    def discard(self, job: Job) -> None:
        """Remove the folder of a job that is not queued after all."""
        shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def _model_spec(self, request: JobRequest, folder: Path) -> Spec:
        source = request.base_model or DEFAULT_MODEL
        base = _locate(source)
        full = full_width(base)
        pairs = self._fetch_pairs(request.training_file, folder / TRAINING, "training_file")
        if request.validation_file:
            self._fetch_pairs(request.validation_file, folder / VALIDATION, "validation_file")
        else:
            pairs = split(pairs, request.hyperparameters.seed).training
        card = read_card(base)
        base_model = card.id if card else default_id(base, source)
        root = (card and card.base_model) or base_model
        return Spec(
            base_dir=str(base),
            base_model=base_model,
            model_id=f"ft:{root}:{request.suffix or 'model'}:{_short(folder)}",
            data_name=self._filename(request.training_file, "training_file"),
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
            data_name=self._filename(request.training_file, "training_file"),
            hyperparameters=fill(request.hyperparameters, full, count),
            threads=self._settings.threads,
            checkpoint_steps=self._settings.checkpoint_steps,
        )

    def _filename(self, file_id: str, param: str) -> str:
        # Whether the caller may have it was seen before.
        return self._files.find(file_id, None, param).filename

    def _fetch_vectors(
        self, file_id: str, target: Path, param: str, at_least: int
    ) -> tuple[int, int]:
        filename = self._filename(file_id, param)
        self._files.blobs.fetch(file_id, target, param)
        return check_vectors(target, filename, param, at_least)

    def _fetch_pairs(self, file_id: str, target: Path, param: str) -> tuple[Pair, ...]:
        filename = self._filename(file_id, param)
        self._files.blobs.fetch(file_id, target, param)
        return read_pairs(target, filename, param)


def _short(folder: Path) -> str:
    """Return the first 8 digits of the job's number, for the id of what it makes."""
    return folder.name.removeprefix("job-")[:8]


def _locate(source: str) -> Path:
    try:
        base = locate(source)
        check_folder(base)
    except InvalidRequest as error:
        raise InvalidRequest(f"base_model: {error.message}", "base_model") from error
    if has_two_towers(base):
        raise InvalidRequest(
            "base_model must have one tower for queries and documents; a two-tower model can be "
            "served, not trained",
            "base_model",
        )
    return base
