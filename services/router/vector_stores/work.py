"""What is still to be done for the files of vector stores, in a database.

It is told from their rows, so that a router that was killed goes on where it was. Everything is
synchronous and short; callers run it in a thread.
"""

from collections.abc import Collection

from sqlalchemy import and_, delete, or_, select

from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.rows import (
    BatchFileRow,
    BatchRow,
    ErrorCode,
    FileRow,
    StoreFile,
    to_file,
)
from services.shared.database import Database


class StoreWork:
    """The work on the files of all vector stores.

    Args:
        database: holds their tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def numbers(self, store_id: str) -> list[int]:
        """Return the numbers of all files of a store."""
        with self._database.reading() as session:
            query = select(FileRow.number).where(FileRow.store_id == store_id)
            return list(session.scalars(query))

    def empty(self, store_id: str) -> None:
        """Note that a store's points are gone, all at once; what was in progress is cancelled."""
        with self._database.transaction() as session:
            for row in session.scalars(select(FileRow).where(FileRow.store_id == store_id)):
                row.num_points = row.usage_bytes = 0
                row.is_stale = False
                if row.state == "in_progress":
                    row.state = "cancelled"

    def remove_all(self, store_id: str) -> None:
        """Forget all files and batches of a store."""
        with self._database.transaction() as session:
            batches = select(BatchRow.number).where(BatchRow.store_id == store_id)
            session.execute(delete(BatchFileRow).where(BatchFileRow.batch_number.in_(batches)))
            session.execute(delete(BatchRow).where(BatchRow.store_id == store_id))
            session.execute(delete(FileRow).where(FileRow.store_id == store_id))

    def pending(self, without: Collection[int]) -> StoreFile | None:
        """Return the file for which something is to be done next; None: there is nothing."""
        has_leavings = and_(FileRow.state.in_(("failed", "cancelled")), FileRow.num_points > 0)
        is_stale = and_(FileRow.state == "completed", FileRow.is_stale)
        is_pending = or_(FileRow.state.in_(("in_progress", "deleting")), has_leavings, is_stale)
        query = select(FileRow).where(is_pending, FileRow.number.not_in(without))
        with self._database.reading() as session:
            row = session.scalar(query.order_by(FileRow.number).limit(1))
            return None if row is None else to_file(row)

    def reload(self, number: int) -> StoreFile | None:
        """Return a file as it stands now; None: it is gone."""
        with self._database.reading() as session:
            row = session.get(FileRow, number)
            return None if row is None else to_file(row)

    def set_points(self, number: int, num_points: int) -> None:
        """Note how many chunks may be in the collection."""
        with self._database.transaction() as session:
            if (row := session.get(FileRow, number)) is not None:
                row.num_points = num_points

    def complete(self, file: StoreFile, num_points: int, usage_bytes: int) -> None:
        """Note that a file is in the collection as it was when the work began."""
        with self._database.transaction() as session:
            row = session.get(FileRow, file.number)
            if row is None or row.state not in ("in_progress", "completed"):
                return
            row.num_points, row.usage_bytes = num_points, usage_bytes
            is_cut_so = Chunking(row.max_tokens, row.overlap) == file.chunking
            if row.revision == file.revision or is_cut_so:
                # Other attributes came meanwhile: the chunks stay, and get them next.
                row.state, row.is_stale = "completed", row.revision != file.revision

    def fail(self, file: StoreFile, code: ErrorCode, message: str) -> None:
        """Note that a file cannot be put into the collection."""
        with self._database.transaction() as session:
            row = session.get(FileRow, file.number)
            if row is not None and row.state in ("in_progress", "completed"):
                row.state, row.is_stale, row.usage_bytes = "failed", False, 0
                row.error_code, row.error_message = code, message

    def remove(self, number: int) -> None:
        """Forget a file."""
        with self._database.transaction() as session:
            if (row := session.get(FileRow, number)) is not None:
                session.execute(delete(BatchFileRow).where(BatchFileRow.file_number == number))
                session.delete(row)
