"""The tables of vector stores' files and of the batches they came in, and what stands in a row.

A file goes from in_progress to completed, failed or cancelled, or is deleting, which nobody sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    ForeignKey,
    Select,
    UniqueConstraint,
    func,
    select,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.router.attributes import Attributes, Value
from services.router.vector_stores.chunks import Chunking
from services.shared.database import Base
from services.shared.errors import NotFound

Status = Literal["in_progress", "completed", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = ("in_progress", "completed", "failed", "cancelled")
ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]


class FileRow(Base):
    """A file in a store."""

    __tablename__ = "vector_store_files"
    __table_args__ = (UniqueConstraint("store_id", "file_id"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    store_id: Mapped[str] = mapped_column(index=True)
    file_id: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    # Counts what callers ask to be different; work for an older revision is done again.
    revision: Mapped[int] = mapped_column(default=0)
    is_stale: Mapped[bool] = mapped_column(default=False, index=True)
    created_at: Mapped[float]
    attributes: Mapped[dict[str, Value]] = mapped_column(JSON)
    max_tokens: Mapped[int]
    overlap: Mapped[int]
    usage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    num_points: Mapped[int] = mapped_column(default=0)
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    # The router that works on it, and when it last said so; of another, it is left alone so long.
    owner: Mapped[str | None]
    seen_at: Mapped[float | None]


class BatchRow(Base):
    """Files that were put into a store together."""

    __tablename__ = "vector_store_batches"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    store_id: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    is_cancelled: Mapped[bool] = mapped_column(default=False)


class BatchFileRow(Base):
    """One of them."""

    __tablename__ = "vector_store_batch_files"

    batch_number: Mapped[int] = mapped_column(
        ForeignKey(BatchRow.number, ondelete="CASCADE"), primary_key=True
    )
    file_number: Mapped[int] = mapped_column(primary_key=True, index=True)


@dataclass(frozen=True, slots=True)
class FileCounts:
    """Files by status."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file to be put into a store."""

    file_id: str
    attributes: Attributes
    chunking: Chunking


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """A file in a store as it stands now."""

    number: int
    store_id: str
    file_id: str
    state: Status | Literal["deleting"]
    revision: int
    created_at: float
    attributes: Attributes
    chunking: Chunking
    usage_bytes: int
    num_points: int
    """Chunks that may be in the collection: noted before they are written."""
    error: tuple[ErrorCode, str] | None


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Files that were put into a store together, as they stand now."""

    id: str
    store_id: str
    created_at: float
    status: Status
    counts: FileCounts


def add_up(session: Session, store_ids: Sequence[str]) -> dict[str, tuple[FileCounts, int]]:
    """Return how many files stores have in each status, and what these take."""
    columns = (FileRow.store_id, FileRow.state, func.count(), func.sum(FileRow.usage_bytes))
    query = select(*columns).where(FileRow.store_id.in_(store_ids), is_seen())
    counts: dict[str, dict[str, int]] = {store_id: {} for store_id in store_ids}
    usage_bytes = dict.fromkeys(store_ids, 0)
    for store_id, state, count, size in session.execute(
        query.group_by(FileRow.store_id, FileRow.state)
    ):
        counts[store_id][state] = count
        usage_bytes[store_id] += int(size)
    return {id_: (FileCounts(**counts[id_]), usage_bytes[id_]) for id_ in store_ids}


def is_seen() -> ColumnElement[bool]:
    return FileRow.state.in_(STATUSES)


def is_in(batch: BatchRow) -> ColumnElement[bool]:
    numbers: Select[int] = select(BatchFileRow.file_number).where(
        BatchFileRow.batch_number == batch.number
    )
    return FileRow.number.in_(numbers)


def find_file(session: Session, store_id: str, file_id: str) -> FileRow:
    row = session.scalar(
        select(FileRow).where(FileRow.store_id == store_id, FileRow.file_id == file_id, is_seen())
    )
    if row is None:
        raise NotFound(f"vector store {store_id} has no file {file_id[:64]!r}", "file_id")
    return row


def find_batch(session: Session, store_id: str, batch_id: str) -> BatchRow:
    batch = session.scalar(
        select(BatchRow).where(BatchRow.store_id == store_id, BatchRow.id == batch_id)
    )
    if batch is None:
        raise NotFound(f"vector store {store_id} has no file batch {batch_id[:64]!r}", "batch_id")
    return batch


def to_batch(session: Session, batch: BatchRow) -> FileBatch:
    query = select(FileRow.state, func.count()).where(is_in(batch), is_seen())
    counts = FileCounts(**dict(session.execute(query.group_by(FileRow.state)).all()))
    status: Status = "completed"
    if batch.is_cancelled:
        status = "cancelled"
    elif counts.in_progress:
        status = "in_progress"
    elif counts.failed and counts.failed == counts.total:
        status = "failed"
    return FileBatch(batch.id, batch.store_id, batch.created_at, status, counts)


def to_file(row: FileRow) -> StoreFile:
    error = None
    if row.error_code is not None:
        error = (cast(ErrorCode, row.error_code), row.error_message or "")
    return StoreFile(
        number=row.number,
        store_id=row.store_id,
        file_id=row.file_id,
        state=cast(Status, row.state),
        revision=row.revision,
        created_at=row.created_at,
        attributes=row.attributes,
        chunking=Chunking(row.max_tokens, row.overlap),
        usage_bytes=row.usage_bytes,
        num_points=row.num_points,
        error=error,
    )
