"""Turns a request into a job's folder: everything is checked here, before anything is queued."""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.shared.card import read_card
from services.shared.errors import InvalidRequest
from services.shared.files import Files
from services.shared.folder import DEFAULT_MODEL, default_id, locate
from services.shared.safety import check_folder, has_two_towers
from services.trainer.data.checks import Checked, check
from services.trainer.data.columns import check_columns
from services.trainer.data.data_report import read_report, write_report
from services.trainer.data.dataset import NAMES, Dataset, read_dataset
from services.trainer.data.examples import write_examples
from services.trainer.data.pairs import MIN_PAIRS, Pair, split
from services.trainer.data.sample import MIN_QUERIES, MIN_VECTORS, check_vectors
from services.trainer.data.sources import Sources, without_query
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import (
    TRAINING,
    TRAINING_VECTORS,
    VALIDATION,
    VALIDATION_VECTORS,
    Mining,
    Spec,
    spec_path,
)
from services.trainer.results.layout import check_exportable, full_width, network_weights
from services.trainer.settings import TrainerSettings
from services.trainer.training.accelerator import why_no_kernel

MAX_KEY_LENGTH = 128
# What requests did not have at first, and their hyperparameters.
_LATER, _LATER_SETTINGS = {"columns", "mining", "teacher"}, {"onnx", "loss_kernel"}
_SUFFIX = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job as the caller asked for it."""

    base_model: str
    """Empty: the default model; nesting has none."""
    training_file: str
    """Examples, or vectors of documents to nest: an uploaded file's id; examples also a path or an
    address, see `sources.py`."""
    validation_file: str
    """Empty: hold out a part of the training file. Nesting: vectors of queries."""
    suffix: str
    hyperparameters: Wanted
    metadata: dict[str, str] = field(default_factory=dict)
    tenant: str | None = None
    """Who asks for it; None: an operator."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """From a field of the files to its role, see `columns.py`; empty: told by their names."""
    mining: Mining | None = None
    teacher: str = ""
    """Where the teacher lies, if the hyperparameters name a model that a job has made."""

    @property
    def owner(self) -> str:
        """Whom it counts for among those who wait."""
        return self.metadata.get("user", "") if self.tenant is None else f"tenant {self.tenant}"

    def digest(self) -> str:
        """Return a digest that is equal for equal requests only.

        Fields that came later count if they are used: a key keeps its job over an upgrade.
        """
        hyper = self.hyperparameters.model_dump()
        hyper = {k: v for k, v in hyper.items() if v or k not in _LATER_SETTINGS}
        values = asdict(self) | {"hyperparameters": hyper}
        values |= {"mining": self.mining.model_dump() if self.mining else None}
        values = {k: v for k, v in values.items() if v or k not in _LATER}
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
        raise InvalidRequest(
            "training_file must be the id of an uploaded file, or a path or address that the "
            "trainer may read",
            "training_file",
        )
    check_columns(request.columns)
    if request.hyperparameters.method == "nest" and (request.columns or request.mining):
        raise InvalidRequest(
            "columns and mine_negatives must be left out for METHOD_NEST, which learns from "
            "vectors alone",
            "columns" if request.columns else "mine_negatives",
        )
    if request.hyperparameters.method == "distill" and request.mining:
        raise InvalidRequest(
            "mine_negatives must be left out for METHOD_DISTILL, which learns from a teacher alone",
            "mine_negatives",
        )
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
        self._sources = Sources(files, settings)

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
            events = EventLog(folder)
            if report := read_report(folder):
                events.append(Event(status="queued", message=report.describe()))
            events.append(Event(status="queued", message="queued"))
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
            training_file=without_query(request.training_file),
            validation_file=without_query(request.validation_file),
            metadata=request.metadata,
        )

    def discard(self, job: Job) -> None:
        """Remove the folder of a job that is not queued after all."""
        shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def _model_spec(self, request: JobRequest, folder: Path) -> Spec:
        source = request.base_model or DEFAULT_MODEL
        base = _locate(source)
        full = full_width(base)
        _check_method(request.hyperparameters, base)
        if request.hyperparameters.onnx:
            check_exportable(base)
        if request.hyperparameters.loss_kernel:
            self._check_kernel()
        teacher = _locate_teacher(request.teacher or request.hyperparameters.teacher, full)
        checked = self._read_data(request, folder)
        pairs = _training_pairs(request, checked)
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
            data_name=self._sources.name(request.training_file, "training_file"),
            kind=checked.report.kind,
            columns=dict(request.columns),
            mining=request.mining,
            hyperparameters=fill(request.hyperparameters, full, len(pairs)),
            threads=self._settings.threads,
            checkpoint_steps=self._settings.checkpoint_steps,
        )

    def _check_kernel(self) -> None:
        """Refuse the loss kernel where jobs have no accelerator."""
        is_here = self._settings.launcher == "local"
        reason = why_no_kernel() if is_here else ""
        if not is_here and not self._settings.kubernetes_gpus:
            reason = "jobs' pods have no GPUs (MATRYOSHKA_TRAINER_KUBERNETES_GPUS)"
        if reason:
            raise InvalidRequest(
                f"hyperparameters.loss_kernel must be left out: {reason}",
                "hyperparameters.loss_kernel",
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

    def _read_data(self, request: JobRequest, folder: Path) -> Checked:
        """Read, check and keep the examples, with a report of what was found in them."""
        training = self._read(request, folder, "training_file")
        if training.kind != "pairs":
            method = request.hyperparameters.method.upper()
            raise InvalidRequest(
                f"training_file must hold pairs, which METHOD_{method} learns from; it has "
                f"{NAMES[training.kind]}",
                "training_file",
            )
        validation = None
        if request.validation_file:
            validation = self._read(request, folder, "validation_file")
            if validation.kind != training.kind:
                raise InvalidRequest(
                    f"validation_file must hold {NAMES[training.kind]} as training_file does, it "
                    f"has {NAMES[validation.kind]}",
                    "validation_file",
                )
        checked = check(training, validation)
        for examples, param in (
            (checked.training, "training_file"),
            *([(checked.validation, "validation_file")] if validation else []),
        ):
            if len(examples) < MIN_PAIRS:
                raise InvalidRequest(
                    f"{param} has {len(examples)} {NAMES[training.kind]} left, at least "
                    f"{MIN_PAIRS} are needed; {checked.report.describe()}",
                    param,
                )
        write_examples(folder / TRAINING, checked.training)
        if validation:
            write_examples(folder / VALIDATION, checked.validation)
        write_report(folder, checked.report)
        return checked

    def _read(self, request: JobRequest, folder: Path, param: str) -> Dataset:
        """Read a source; what was fetched for it is gone afterwards."""
        fetched = folder / ".source"
        fetched.mkdir()
        try:
            files = self._sources.files(getattr(request, param), fetched, param)
            limit = self._settings.max_examples
            return read_dataset(files, request.columns, param, limit)
        finally:
            shutil.rmtree(fetched)


def _training_pairs(request: JobRequest, checked: Checked) -> Sequence[Pair]:
    """Return what is trained on; InvalidRequest if none can be held out."""
    pairs = [example for example in checked.training if isinstance(example, Pair)]
    if checked.validation:
        return pairs
    return split(pairs, request.hyperparameters.seed).training


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
