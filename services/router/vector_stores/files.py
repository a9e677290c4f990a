"""The files of vector stores, as their callers see and change them, in a database.

What is asked for is noted here and done elsewhere (`ingest.py`). Everything is synchronous and
short; callers run it in a thread.
"""

import time
import uuid
from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from services.router.attributes import Attributes
from services.router.vector_stores.attributes import are_same
from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.rows import (
    Attachment,
    BatchFileRow,
    BatchRow,
    FileBatch,
    FileRow,
    Status,
    StoreFile,
    find_batch,
    find_file,
    is_in,
    is_seen,
    to_batch,
    to_file,
)
from services.shared.database import Database, fetch_page
from services.shared.errors import Unavailable
from services.shared.paging import Page, Paging


class StoreFiles:
    """The files of all vector stores.

    Args:
        database: holds their tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def attach(self, store_id: str, attachments: Sequence[Attachment]) -> list[StoreFile]:
        """Put files into a store; one that is there already as wanted stays as it is.

        Raises:
            Unavailable: one of them is just being removed from the store.
        """
        with self._database.transaction() as session:
            return [to_file(_attach(session, store_id, wanted)) for wanted in attachments]

    def attach_batch(self, store_id: str, attachments: Sequence[Attachment]) -> FileBatch:
        """Put files into a store together; see `attach`."""
        batch = BatchRow(id=f"vsfb_{uuid.uuid4().hex}", store_id=store_id, created_at=time.time())
        with self._database.transaction() as session:
            batch.is_cancelled = False
            session.add(batch)
            rows = [_attach(session, store_id, wanted) for wanted in attachments]
            session.flush()
            session.add_all(
                BatchFileRow(batch_number=batch.number, file_number=row.number) for row in rows
            )
            session.flush()
            return to_batch(session, batch)

    def get(self, store_id: str, file_id: str) -> StoreFile:
        """Return a file of a store; NotFound."""
        with self._database.reading() as session:
            return to_file(find_file(session, store_id, file_id))

    def find(self, store_id: str, file_ids: Collection[str]) -> dict[str, StoreFile]:
        """Return those of some files whose chunks may be shown, by id."""
        shown = ("in_progress", "completed")
        query = select(FileRow).where(
            FileRow.store_id == store_id, FileRow.file_id.in_(file_ids), FileRow.state.in_(shown)
        )
        with self._database.reading() as session:
            return {row.file_id: to_file(row) for row in session.scalars(query)}

    def page(
        self, store_id: str, paging: Paging, status: Status | None, batch_id: str = ""
    ) -> Page[StoreFile]:
        """Return a page of a store's files, or of a batch's; NotFound for batch or cursor."""
        with self._database.reading() as session:
            query = select(FileRow).where(FileRow.store_id == store_id)
            query = query.where(FileRow.state == status if status else is_seen())
            if batch_id:
                query = query.where(is_in(find_batch(session, store_id, batch_id)))
            after = find_file(session, store_id, paging.after).number if paging.after else None
            before = find_file(session, store_id, paging.before).number if paging.before else None
            page = fetch_page(session, query, FileRow.number, paging, after, before)
            return Page([to_file(row) for row in page.items], page.has_more)

    def set_attributes(self, store_id: str, file_id: str, attributes: Attributes) -> StoreFile:
        """Give a file other attributes; its chunks get them in the background. NotFound."""
        with self._database.transaction() as session:
            row = find_file(session, store_id, file_id)
            if not are_same(row.attributes, attributes):
                _set_attributes(row, attributes)
                row.revision += 1
                row.is_stale = True
            return to_file(row)

    def get_batch(self, store_id: str, batch_id: str) -> FileBatch:
        """Return a batch; NotFound."""
        with self._database.reading() as session:
            return to_batch(session, find_batch(session, store_id, batch_id))

    def cancel_batch(self, store_id: str, batch_id: str) -> tuple[FileBatch, list[int]]:
        """Cancel what is in progress of a batch; return it, and the files that were. NotFound."""
        with self._database.transaction() as session:
            batch = find_batch(session, store_id, batch_id)
            rows = session.scalars(
                select(FileRow).where(is_in(batch), FileRow.state == "in_progress")
            ).all()
            for row in rows:
                row.state = "cancelled"
            # One that had ended before stays as it was.
            batch.is_cancelled = batch.is_cancelled or bool(rows)
            session.flush()
            return to_batch(session, batch), [row.number for row in rows]

    def hide(self, store_id: str, file_id: str) -> StoreFile:
        """Make a file gone for everybody; its points are then to be deleted. NotFound."""
        with self._database.transaction() as session:
            row = find_file(session, store_id, file_id)
            row.state = "deleting"
            return to_file(row)

    def hide_everywhere(self, file_id: str) -> list[StoreFile]:
        """Make a file gone from every store."""
        with self._database.transaction() as session:
            rows = session.scalars(select(FileRow).where(FileRow.file_id == file_id)).all()
            for row in rows:
                row.state = "deleting"
            return [to_file(row) for row in rows]


def _attach(session: Session, store_id: str, wanted: Attachment) -> FileRow:
    row = session.scalar(
        select(FileRow).where(FileRow.store_id == store_id, FileRow.file_id == wanted.file_id)
    )
    if row is None:
        row = FileRow(
            store_id=store_id, file_id=wanted.file_id, created_at=time.time(), revision=0,
            is_stale=False, usage_bytes=0, num_points=0, state="",
            attributes={}, max_tokens=0, overlap=0,
        )  # fmt: skip
        session.add(row)
    elif row.state == "deleting":
        raise Unavailable(f"file {wanted.file_id} is just being removed from the vector store")
    chunking = Chunking(row.max_tokens, row.overlap)
    is_same = are_same(row.attributes, wanted.attributes) and chunking == wanted.chunking
    if not (is_same and row.state in ("in_progress", "completed")):
        row.state, row.error_code, row.error_message = "in_progress", None, None
        _set_attributes(row, wanted.attributes)
        row.max_tokens, row.overlap = wanted.chunking.max_tokens, wanted.chunking.overlap
        row.revision += 1
    session.flush()
    return row


def _set_attributes(row: FileRow, attributes: Attributes) -> None:
    row.attributes = attributes
    flag_modified(row, "attributes")  # else 1 in the place of True would not be written
