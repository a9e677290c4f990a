"""What was found in a job's data before it was queued: kept with the job, and told.

`data.json` in the job's folder.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from services.trainer.data.pairs import Kind
from services.trainer.training.checkpoint import write_atomic

FILENAME = "data.json"


class DataReport(BaseModel):
    """Counts of what was found; what was left out is in `dropped` by its sum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    rows: int
    """Examples of the training data as they came: a row with two positives is two."""
    kept: int
    """Of them those that are trained on, or held out of them to measure."""
    validation_rows: int = 0
    """Of the validation data as it came; 0: a part of the training data is held out."""
    validation_kept: int = 0
    duplicates: int = 0
    """Left out: the same texts came before, in either file for itself. Negatives that only the
    later one had went to the first."""
    conflicts: int = 0
    """Left out: the same texts with another score or label came too; all of them."""
    false_negatives: int = 0
    """Negatives left out: somewhere they are a positive of the same anchor, or the anchor."""
    leaks: int = 0
    """Training examples left out: they share the text that is asked with the validation data."""
    leak_places: tuple[str, ...] = ()
    """Where the first of them stand, as `file:line is in file:line`."""
    shared_documents: int = 0
    """Texts of the validation data's positives, or scored pairs, that training has too; kept, as
    both search one collection."""
    too_long: int | None = None
    """Texts longer than the model reads, whose ends are never seen; None: not counted yet."""

    def describe(self) -> str:
        """Return it as a sentence, for the job's events."""
        found = {
            "duplicates left out": self.duplicates,
            "contradictions left out": self.conflicts,
            "false negatives left out": self.false_negatives,
            "examples left out that leak into the validation data": self.leaks,
            "documents shared with the validation data": self.shared_documents,
        }
        parts = [f"{number} {what}" for what, number in found.items() if number]
        return "; ".join([f"data: {self.kept} of {self.rows} examples kept", *parts])


def write_report(job_dir: Path, report: DataReport) -> None:
    write_atomic(job_dir / FILENAME, report.model_dump_json(indent=2).encode() + b"\n")


def read_report(job_dir: Path) -> DataReport | None:
    """Read a job's report; None if it has none, as a job that nests vectors."""
    try:
        return DataReport.model_validate_json((job_dir / FILENAME).read_bytes())
    except FileNotFoundError:
        return None
