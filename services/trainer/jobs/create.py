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
from services.shared.folder import DEFAULT_MODEL, default_id
from services.trainer.data.checks import Checked, check
from services.trainer.data.columns import check_columns
from services.trainer.data.data_report import read_report, write_report
from services.trainer.data.dataset import NAMES, Dataset, read_dataset
from services.trainer.data.examples import Example, write_examples
from services.trainer.data.pairs import MIN_PAIRS, Kind, Questions, Split, split
from services.trainer.data.pictures import PICTURES, Pictures
from services.trainer.data.questions import ask, check_asked, check_learnable, keep_aside
from services.trainer.data.sample import MIN_QUERIES, MIN_VECTORS, check_vectors
from services.trainer.data.sources import Sources, without_query
from services.trainer.jobs.bases import (
    check_method,
    locate_base,
    locate_teacher,
    refuse_pictures,
    where,
)
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.hyperparameters import Wanted, few_steps, fill
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
from services.trainer.results.gate import caution
from services.trainer.results.layout import check_exportable, full_width
from services.trainer.settings import TrainerSettings
from services.trainer.training.accelerator import why_no_kernel

MAX_KEY_LENGTH = 128
# What requests did not have at first, and their hyperparameters.
_LATER, _LATER_SETTINGS = {"columns", "mining", "base_dir", "teacher"}, {"onnx", "loss_kernel"}
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
    base_dir: str = ""
    """Where the base lies, if `base_model` names a model that a job has made."""
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
        mining = self.mining.model_dump() if self.mining else {}
        values |= {"mining": {k: v for k, v in mining.items() if v}}
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

    def make(self, request: JobRequest, traceparent: str = "") -> Job:
        """Check model and data and write a new job's folder.

        Args:
            request: what is asked for.
            traceparent: of the call that asks; empty: it is not traced.

        Raises:
            InvalidRequest: the model or a hyperparameter cannot work, or the data is wrong;
                wrong data is reported with file and line.
            NotFound: no such file.
        """
        folder = self._folder / f"job-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            is_nest = request.hyperparameters.method == "nest"
            spec, warning = (self._nest_spec if is_nest else self._model_spec)(request, folder)
            if traceparent:
                trace = {"trace_to": self._settings.trace_to, "traceparent": traceparent}
                spec = spec.model_copy(update=trace)
            spec.write(spec_path(folder))
            events = EventLog(folder)
            if report := read_report(folder):
                events.append(Event(status="queued", message=report.describe()))
            if warning:
                events.append(Event(status="queued", message=f"data: {warning}"))
            if few := few_steps(request.hyperparameters, spec.hyperparameters):
                events.append(Event(status="queued", message=f"settings: {few}"))
            events.append(Event(status="queued", message="queued"))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Job(
            id=folder.name,
            # As it was asked for, so that it can be asked for again; the card has a name.
            base_model=request.base_model or spec.base_model,
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

    def _model_spec(self, request: JobRequest, folder: Path) -> tuple[Spec, str]:
        """Return what to do, and what the data is not worth; empty: it is enough."""
        source = request.base_dir or request.base_model or DEFAULT_MODEL
        base = locate_base(source)
        full = full_width(base)
        check_method(request.hyperparameters, base)
        if request.hyperparameters.onnx:
            check_exportable(base)
        if request.hyperparameters.loss_kernel:
            self._check_kernel()
        teacher = locate_teacher(request.teacher or request.hyperparameters.teacher, full)
        refusal = refuse_pictures(request.hyperparameters.method, base)
        checked = self._read_data(request, folder, refusal)
        examples, asked = _examples(request, checked)
        if request.hyperparameters.early_stopping:
            _check_watchable(examples, request.hyperparameters.seed)
        card = read_card(base)
        base_model = card.id if card else default_id(base, source)
        root = (card and card.base_model) or base_model
        spec = Spec(
            base_dir=where(source, base),
            base_model=base_model,
            teacher_dir=teacher,
            model_id=f"ft:{root}:{request.suffix or 'model'}:{_short(folder)}",
            data_name=self._sources.name(request.training_file, "training_file"),
            kind=checked.report.kind,
            columns=dict(request.columns),
            mining=request.mining,
            hyperparameters=fill(request.hyperparameters, full, len(examples)),
            n_epochs=request.hyperparameters.n_epochs,
            threads=self._settings.threads,
            checkpoint_steps=self._settings.checkpoint_steps,
        )
        return spec, caution(len(asked.names), "pairs" if asked.kind == "scored" else "queries")

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

    def _nest_spec(self, request: JobRequest, folder: Path) -> tuple[Spec, str]:
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
        spec = Spec(
            base_dir="",
            base_model="",
            model_id=f"nest:{request.suffix or 'rotation'}:{_short(folder)}",
            data_name=self._filename(request.training_file, "training_file"),
            hyperparameters=fill(request.hyperparameters, full, count),
            n_epochs=request.hyperparameters.n_epochs,
            threads=self._settings.threads,
            checkpoint_steps=self._settings.checkpoint_steps,
        )
        return spec, ""

    def _filename(self, file_id: str, param: str) -> str:
        # Whether the caller may have it was seen before.
        return self._files.find(file_id, None, param).filename

    def _fetch_vectors(
        self, file_id: str, target: Path, param: str, at_least: int
    ) -> tuple[int, int]:
        filename = self._filename(file_id, param)
        self._files.blobs.fetch(file_id, target, param)
        return check_vectors(target, filename, param, at_least)

    def _read_data(self, request: JobRequest, folder: Path, no_pictures: str) -> Checked:
        """Read, check and keep the examples, with a report of what was found in them."""
        pictures = Pictures(folder / PICTURES, self._settings.max_file_bytes, no_pictures)
        training = self._read(request, folder, "training_file", pictures)
        _check_kind(request, training.kind)
        validation = None
        if request.validation_file:
            validation = self._read(request, folder, "validation_file", pictures)
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

    def _read(self, request: JobRequest, folder: Path, param: str, pictures: Pictures) -> Dataset:
        """Read a source; what was fetched for it is gone afterwards."""
        fetched = folder / ".source"
        fetched.mkdir()
        try:
            files = self._sources.files(getattr(request, param), fetched, param)
            limit = self._settings.max_examples
            return read_dataset(files, request.columns, param, limit, pictures)
        finally:
            shutil.rmtree(fetched)


def _check_kind(request: JobRequest, kind: Kind) -> None:
    """Refuse examples that the request has no use for."""
    if kind == "pairs":
        return
    if request.hyperparameters.method == "distill":
        raise InvalidRequest(
            "training_file must hold pairs for METHOD_DISTILL, which learns a teacher's vectors of "
            f"them; it has {NAMES[kind]}, which METHOD_ADAPTOR, METHOD_LORA, METHOD_FULL and "
            "METHOD_STATIC learn from",
            "training_file",
        )
    if request.mining:
        raise InvalidRequest(
            f"mine_negatives must be left out for {NAMES[kind]}: only pairs have negatives",
            "mine_negatives",
        )
    if request.hyperparameters.loss_kernel:
        raise InvalidRequest(
            f"hyperparameters.loss_kernel must be left out for {NAMES[kind]}: pairs have it",
            "hyperparameters.loss_kernel",
        )


def _examples(request: JobRequest, checked: Checked) -> tuple[Sequence[Example], Questions]:
    """Return what is trained on, and what quality is measured on.

    Raises:
        InvalidRequest: none can be held out, or nothing be told from them.
    """
    data = Split(checked.training, checked.validation)
    if not checked.validation:
        data = split(checked.training, request.hyperparameters.seed)
    check_learnable(data.training)
    asked = ask(data)
    check_asked(asked)
    return data.training, asked


def _short(folder: Path) -> str:
    """Return the first 8 digits of the job's number, for the id of what it makes."""
    return folder.name.removeprefix("job-")[:8]


def _check_watchable(examples: Sequence[Example], seed: int) -> None:
    """Refuse early stopping where nothing can be kept aside to ask."""
    try:
        learned, _ = keep_aside(examples, seed)
        check_learnable([examples[row] for row in learned])
    except InvalidRequest as error:
        raise InvalidRequest(
            "hyperparameters.early_stopping must be left out: of the training data no part can be "
            "kept aside to ask, as shared texts tie all of it together, or a part tells nothing",
            "hyperparameters.early_stopping",
        ) from error
