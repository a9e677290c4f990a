"""A job's folder: the spec that goes in, and the result or the error that comes out.

spec.json            what to do
training.jsonl       examples of one kind, see `examples.py`; of a nest job training.npy, vectors of
                     documents, until it has ended
validation.jsonl     the same to measure on, if the caller gave them; validation.npy, of queries
found/               what searches of a collection found, of a job that mines there, until it has
                     ended; see `data/finds.py`
pictures/            those among the examples, each under the sha256 of its file
data.json            what was found in the data
lock                 held by the one process that works on the job
lease                touched as long as a service is at the job; a process that sees it age ends
events.jsonl         what happened so far
vectors/             vectors computed so far
checkpoints/         the newest two; best/, the best look of a job that may stop early
start/               the model that training starts from, where that is not the base itself
model/               the finished model; of a nest job rotation.safetensors instead
plot.png             picture of its quality
scores-before.npy    what each held-out query scored at each size, as `results/evaluate.py` says;
scores-after.npy     of the base, and of the finished model
report.json          what the training changed, for machines; report.html, for people
step_metrics.csv     the losses of its steps
result.json          written last: its presence means success
result_files.json    the ids under which the service stored what can be downloaded
reserve              room for a message, should the disk become full
error.json           why it failed
log.txt              the process's own log
"""

from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.shared.card import Quality
from services.shared.folder import DEFAULT_MODEL, locate
from services.trainer.data.pairs import Kind
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.training.checkpoint import write_atomic

TRAINING = "training.jsonl"
VALIDATION = "validation.jsonl"
TRAINING_VECTORS = "training.npy"
VALIDATION_VECTORS = "validation.npy"
MODEL = "model"
RESULT_FILE = "rotation.safetensors"
METRICS = "step_metrics.csv"
PLOT = "plot.png"
SCORES_BEFORE = "scores-before.npy"
SCORES_AFTER = "scores-after.npy"
REPORT = "report.json"
REPORT_PAGE = "report.html"
LOG = "log.txt"
LOCK = "lock"
LEASE = "lease"
RESERVE = "reserve"
CHECKPOINTS = "checkpoints"
FOUND = "found"
START = "start"
"""The model folder that a training starts from, where it is not the base's own."""
VECTORS = ("vectors", "vectors-after", "vectors-teacher")
RECORD = frozenset(
    {
        "spec.json", "result.json", "result_files.json", "error.json", "data.json", "events.jsonl",
        LOCK, LOG, METRICS, PLOT, REPORT, REPORT_PAGE, SCORES_BEFORE, SCORES_AFTER,
    }
)  # fmt: skip
"""What stays of a job whose model was deleted."""

M = TypeVar("M", bound="JsonFile")


class JsonFile(BaseModel):
    """A small file that is there whole, or not at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[M], path: Path) -> M | None:
        """Read the file; None if it is not there."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, path: Path) -> None:
        write_atomic(path, self.model_dump_json(indent=2).encode() + b"\n")


class Mining(BaseModel):
    """Hard negatives that the job finds itself, with the base model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ACCEPTED: ClassVar[str] = (
        "mine_negatives.negatives must be 1 to 100 for each pair, margin above 0 and at most 1, "
        "and collection the name or alias of a collection, of at most 255 characters"
    )

    negatives: int = Field(default=4, ge=1, le=100)
    """For each pair, beside those that it has; the loss takes a few at a time."""
    margin: float = Field(default=0.95, gt=0, le=1)
    """Texts that score above this share of the pair's positive may be right answers: left out."""
    collection: str = Field(default="", max_length=255)
    """Of the router's: what its searches find for the anchors may be taken too; empty: none."""


class Spec(JsonFile):
    """What a job's process is to do."""

    base_dir: str
    """Folder of the base model, or `DEFAULT_MODEL`, which each machine puts together for itself;
    empty for a nest job, which has none."""
    base_model: str
    """Its name, for the card; or empty."""
    teacher_dir: str = ""
    """The same of the teacher of a distill job; empty: the base model is it."""
    model_id: str
    data_name: str
    """What the user calls the training data."""
    kind: Kind = "pairs"
    """Of the training data, and of the validation data."""
    columns: dict[str, str] = {}
    """As the caller mapped them; empty: told by their names."""
    mining: Mining | None = None
    hyperparameters: Hyperparameters
    n_epochs: int = 0
    """As the caller asked for them; 0: not in epochs. The steps that they make count."""
    threads: int
    """0: one per core."""
    checkpoint_steps: int
    trace_to: str | None = None
    """Where spans go, see `shared/trace_export.py`; None: nowhere."""
    traceparent: str = ""
    """The span of the call that created the job; empty: it was not traced."""

    @property
    def base(self) -> Path:
        """The base model's folder on this machine."""
        return _on_this_machine(self.base_dir)

    @property
    def teacher(self) -> Path | None:
        """The teacher's; None: the base model is it."""
        return _on_this_machine(self.teacher_dir) if self.teacher_dir else None

    @property
    def is_shared(self) -> bool:
        """Whether several processes may train together.

        Where they may not, the first one works alone: heads are soon trained, what is mined or
        watched only it has seen, and losses of other kinds of examples are not shared.
        """
        hyper = self.hyperparameters
        is_alone = self.kind != "pairs" or self.mining or hyper.early_stopping
        return hyper.method == "full" and not is_alone


def _on_this_machine(kept: str) -> Path:
    return locate(kept) if kept == DEFAULT_MODEL else Path(kept)


class NestScores(BaseModel):
    """What a shortlist at one size keeps of the exact result, see `shortlist.py`; each 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int
    plain: float = Field(ge=0, le=1)
    """The vectors as they came, cut."""
    pca: float = Field(ge=0, le=1)
    """Turned onto their principal axes."""
    nested: float = Field(ge=0, le=1)
    """Turned by the rotation."""


class Result(JsonFile):
    """What a job has made."""

    model_id: str
    space_id: str = ""
    """Of the model; a nest job makes none."""
    quality: Quality | None = None
    """Of the model."""
    data_digest: str = ""
    """sha256 of the training examples."""
    questions_digest: str = ""
    """sha256 of what the quality was measured on: only equal ones can be compared in pairs."""
    code_version: str = ""
    """Of this package, when the job ran."""
    nest_quality: tuple[NestScores, ...] = ()
    """Of the rotation of a nest job."""
    num_pairs: int
    """Or other examples, or vectors of documents."""
    train_seconds: float
    """Of the last process; one that only resumed a finished training has almost none."""
    steps_per_second: float


FailureCode = Literal[
    "invalid_data", "training_failed", "disk_full", "out_of_memory", "killed", "internal_error"
]


class Failure(JsonFile):
    """Why a job cannot succeed."""

    message: str
    code: FailureCode = "internal_error"
    """For programs, and for the metrics."""
    param: str | None = None
    """The request's field that it is about, as gRPC calls it, where there is one."""


class ResultFiles(JsonFile):
    """What the service stored of what a job has made."""

    ids: dict[str, str] = {}
    """By the name in the job's folder."""


def spec_path(job_dir: Path) -> Path:
    return job_dir / "spec.json"


def result_path(job_dir: Path) -> Path:
    return job_dir / "result.json"


def failure_path(job_dir: Path) -> Path:
    return job_dir / "error.json"


def result_files_path(job_dir: Path) -> Path:
    return job_dir / "result_files.json"
