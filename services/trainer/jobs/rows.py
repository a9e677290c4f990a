"""The tables of jobs, and what stands in a row.

A job goes from queued to running to one of the three ends, and may be paused in between. Who runs
it says so in its row, again and again: see `leases.py`.
"""

from dataclasses import dataclass, field
from typing import Literal, cast

from sqlalchemy import JSON, ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from services.shared.database import Base
from services.shared.errors import NotFound

State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
Wish = Literal["paused", "cancelled"]


class JobTagRow(Base):
    """One pair of a job's metadata."""

    __tablename__ = "job_metadata"

    job_number: Mapped[int] = mapped_column(
        ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class JobRow(Base):
    """A job."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    error: Mapped[str]
    base_model: Mapped[str]
    model_id: Mapped[str] = mapped_column(index=True)
    hyperparameters: Mapped[str]
    # What follows came later and is empty in rows of before.
    tenant: Mapped[str | None] = mapped_column(index=True)
    owner: Mapped[str | None]
    training_file: Mapped[str | None]
    validation_file: Mapped[str | None]
    result_files: Mapped[list[str] | None] = mapped_column(JSON)
    error_code: Mapped[str | None]
    error_param: Mapped[str | None]
    queued_at: Mapped[float | None]
    # What its owner wants of a running job; whoever runs it does it.
    wish: Mapped[str | None]
    # Who runs it, and until when nobody else may.
    service: Mapped[str | None]
    lease_until: Mapped[float | None]
    tags: Mapped[list[JobTagRow]] = relationship(lazy="selectin", cascade="all, delete-orphan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands now."""

    id: str
    base_model: str
    model_id: str
    hyperparameters: str
    """JSON of `hyperparameters.Hyperparameters`."""
    tenant: str | None = None
    """Whose it is; None: the operator's."""
    owner: str = ""
    """Whom it counts for among those who wait: the tenant, or the metadata's `user`."""
    training_file: str = ""
    validation_file: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    state: State = "queued"
    wish: Wish | None = None
    """What its owner wants of it while it runs."""
    created_at: float = 0.0
    """Unix time, as the others."""
    queued_at: float | None = None
    """Of the last time that it began to wait; None: it did not, it is gone on with."""
    started_at: float | None = None
    finished_at: float | None = None
    error: str = ""
    error_code: str = ""
    """Why it failed, for programs."""
    error_param: str = ""
    """The request's field that it failed by, where there is one."""
    result_files: tuple[str, ...] = ()
    """Ids of the files that it has made."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def find_row(session: Session, job_id: str, tenant: str | None = None, param: str = "id") -> JobRow:
    """Return a job's row; NotFound, also for another tenant's. No tenant sees all."""
    query = select(JobRow).where(JobRow.id == job_id)
    if tenant is not None:
        query = query.where(JobRow.tenant == tenant)
    row = session.scalar(query)
    if row is None:
        raise NotFound(f"there is no job {job_id[:64]!r}", param)
    return row


def to_job(row: JobRow) -> Job:
    return Job(
        id=row.id,
        base_model=row.base_model,
        model_id=row.model_id,
        hyperparameters=row.hyperparameters,
        tenant=row.tenant,
        owner=row.owner or "",
        training_file=row.training_file or "",
        validation_file=row.validation_file or "",
        metadata={tag.key: tag.value for tag in row.tags},
        state=cast(State, row.state),
        wish=cast("Wish | None", row.wish),
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=row.error,
        error_code=row.error_code or "",
        error_param=row.error_param or "",
        result_files=tuple(row.result_files or ()),
    )
