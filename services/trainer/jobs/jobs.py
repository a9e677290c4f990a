"""The states of jobs, and the names of files, in a database: what survives a restart.

Every function is synchronous and short; the service calls them in a thread. A job goes from
queued to running to one of the three ends; a running one whose process is lost is queued again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import create_engine, event, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.shared.errors import AlreadyExists, NotFound, Overloaded

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")


class _Base(DeclarativeBase):
    """The tables."""


class _FileRow(_Base):
    __tablename__ = "files"

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    num_bytes: Mapped[int]
    created_at: Mapped[float]


class _JobRow(_Base):
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
    model_id: Mapped[str]
    hyperparameters: Mapped[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands now."""

    id: str
    base_model: str
    model_id: str
    hyperparameters: str
    """JSON of `hyperparameters.Hyperparameters`."""
    state: State = "queued"
    created_at: float = 0.0
    """Unix time, as the others."""
    started_at: float | None = None
    finished_at: float | None = None
    error: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class Jobs:
    """All jobs and files.

    Args:
        database_url: as SQLAlchemy names it.
    """

    def __init__(self, database_url: str) -> None:
        self._engine = create_engine(database_url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _tune_sqlite)
        _Base.metadata.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    def add_file(self, file_id: str, filename: str, num_bytes: int) -> None:
        with self._transaction() as session:
            session.add(
                _FileRow(id=file_id, filename=filename, num_bytes=num_bytes, created_at=time.time())
            )

    def remove_file(self, file_id: str) -> None:
        with self._transaction() as session:
            if (row := session.get(_FileRow, file_id)) is not None:
                session.delete(row)

    def filename(self, file_id: str, param: str) -> str:
        """Return what the user called a file.

        Raises:
            NotFound: no such file.
        """
        with self._transaction() as session:
            row = session.get(_FileRow, file_id)
            if row is None:
                raise NotFound(f"{param}: no file {file_id[:64]!r}; upload it first", param)
            return row.filename

    def find_by_key(self, key: str, request_digest: str) -> Job | None:
        """Find the job that an idempotency key has made.

        Raises:
            AlreadyExists: the key was used with another request.
        """
        with self._transaction() as session:
            row = session.scalar(select(_JobRow).where(_JobRow.idempotency_key == key))
            if row is None:
                return None
            if row.request_digest != request_digest:
                raise AlreadyExists(
                    "this idempotency_key was used with a different request; use a new one",
                    "idempotency_key",
                )
            return _to_job(row)

    def check_room(self, max_queued: int) -> None:
        """Refuse one more job when too many wait.

        Raises:
            Overloaded: try again later.
        """
        if self.count()["queued"] >= max_queued:
            raise Overloaded(f"{max_queued} jobs are waiting already; try again later")

    def add(self, job: Job, key: str | None, request_digest: str) -> Job:
        """Add a queued job, or return the one that the key has made meanwhile.

        Raises:
            AlreadyExists: the key was used with another request.
        """
        row = _JobRow(
            id=job.id, idempotency_key=key, request_digest=request_digest, state="queued",
            created_at=time.time(), error="", base_model=job.base_model,
            model_id=job.model_id, hyperparameters=job.hyperparameters,
        )  # fmt: skip
        try:
            with self._transaction() as session:
                session.add(row)
        except IntegrityError:
            if key and (found := self.find_by_key(key, request_digest)):
                return found
            raise
        return _to_job(row)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFound: no such job.
        """
        with self._transaction() as session:
            return _to_job(_row(session, job_id))

    def page(self, limit: int, after: str) -> tuple[list[Job], bool]:
        """Return jobs, newest first, created before `after`; and whether there are more.

        Raises:
            NotFound: no job `after`.
        """
        with self._transaction() as session:
            query = select(_JobRow).order_by(_JobRow.number.desc()).limit(limit + 1)
            if after:
                query = query.where(_JobRow.number < _row(session, after).number)
            rows = session.scalars(query).all()
            return [_to_job(row) for row in rows[:limit]], len(rows) > limit

    def states(self) -> dict[str, State]:
        """Return the state of every job, by id."""
        with self._transaction() as session:
            rows = session.execute(select(_JobRow.id, _JobRow.state))
            return {job_id: cast(State, state) for job_id, state in rows}

    def claim(self) -> Job | None:
        """Take the oldest queued job and call it running; None if none waits."""
        with self._transaction() as session:
            oldest = select(_JobRow).where(_JobRow.state == "queued").order_by(_JobRow.number)
            row = session.scalar(oldest.limit(1).with_for_update(skip_locked=True))
            if row is None:
                return None
            row.state = "running"
            row.started_at = row.started_at or time.time()
            return _to_job(row)

    def requeue_running(self) -> None:
        """Queue again what ran when the last service ended."""
        with self._transaction() as session:
            session.execute(
                update(_JobRow).where(_JobRow.state == "running").values(state="queued")
            )

    def cancel_queued(self, job_id: str) -> bool:
        """Cancel a job that waits; return whether it did."""
        with self._transaction() as session:
            row = session.scalar(
                select(_JobRow).where(_JobRow.id == job_id, _JobRow.state == "queued")
            )
            if row is not None:
                row.state, row.finished_at = "cancelled", time.time()
            return row is not None

    def end(self, job_id: str, state: State, error: str = "") -> Job:
        """Write how a job ended."""
        with self._transaction() as session:
            row = _row(session, job_id)
            row.state, row.error, row.finished_at = state, error, time.time()
            return _to_job(row)

    def count(self) -> dict[State, int]:
        """Return how many jobs are in each state."""
        with self._transaction() as session:
            query = select(_JobRow.state, func.count()).group_by(_JobRow.state)
            found = dict(session.execute(query).all())
            return {state: found.get(state, 0) for state in STATES}

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session


def _row(session: Session, job_id: str) -> _JobRow:
    row = session.scalar(select(_JobRow).where(_JobRow.id == job_id))
    if row is None:
        raise NotFound(f"there is no job {job_id[:64]!r}", "id")
    return row


def _to_job(row: _JobRow) -> Job:
    return Job(
        id=row.id,
        base_model=row.base_model,
        model_id=row.model_id,
        hyperparameters=row.hyperparameters,
        state=cast(State, row.state),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=row.error,
    )


def _tune_sqlite(connection: object, _: object) -> None:
    """Let reads go on beside a write, and sync every commit: an acknowledged job is not lost."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
