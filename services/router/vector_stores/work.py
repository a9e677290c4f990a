"""What is still to be done for the files of vector stores, in a database.

It is told from their rows, so that a router that was killed goes on where it was. Several routers
may share a database: who works on a file says so in its row, again and again; what nobody was seen
at for a while another one takes, and who was only slow finds that out before it writes on.
Everything is synchronous and short; callers run it in a thread.
"""

import time
from collections.abc import Collection

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

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
        owner: the router that works here, by the same name after a restart.
        lease_s: a file that no router was seen at for so long is gone on with by another.
    """

    def __init__(self, database: Database, owner: str, lease_s: float) -> None:
        self._database = database
        self._owner = owner
        self._lease_s = lease_s

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
        """Return the file for which something is to be done next; None: there is nothing.

        Args:
            without: numbers of files that are not asked for. Nor are those of other routers.
        """
        has_leavings = and_(FileRow.state.in_(("failed", "cancelled")), FileRow.num_points > 0)
        is_stale = and_(FileRow.state == "completed", FileRow.is_stale)
        is_pending = or_(FileRow.state.in_(("in_progress", "deleting")), has_leavings, is_stale)
        query = select(FileRow).where(is_pending, self._is_free(), FileRow.number.not_in(without))
        with self._database.reading() as session:
            row = session.scalar(query.order_by(FileRow.number).limit(1))
            return None if row is None else to_file(row)

    def take(self, number: int) -> StoreFile | None:
        """Begin to work on a file; None: it is gone, or another router is at it."""
        with self._database.transaction() as session:
            row = session.scalar(select(FileRow).where(FileRow.number == number, self._is_free()))
            if row is None:
                return None
            row.owner, row.seen_at = self._owner, time.time()
            return to_file(row)

    def beat(self, numbers: Collection[int]) -> dict[int, StoreFile]:
        """Say that we are at some files; return those that are still ours, as they stand now."""
        with self._database.transaction() as session:
            ours = (FileRow.number.in_(numbers), FileRow.owner == self._owner)
            rows = session.scalars(select(FileRow).where(*ours)).all()
            for row in rows:
                row.seen_at = time.time()
            return {row.number: to_file(row) for row in rows}

    def release(self, number: int) -> None:
        """Let a file go, for whoever comes next."""
        with self._database.transaction() as session:
            if (row := self._own(session, number)) is not None:
                row.owner = row.seen_at = None

    def _is_free(self) -> ColumnElement[bool]:
        """What is ours is too: it is from before a restart, or was not let go of."""
        is_left = FileRow.seen_at < time.time() - self._lease_s
        return or_(FileRow.owner.is_(None), FileRow.owner == self._owner, is_left)

    def _own(self, session: Session, number: int) -> FileRow | None:
        row = session.get(FileRow, number)
        return row if row is not None and row.owner == self._owner else None

    def set_points(self, file: StoreFile, num_points: int) -> bool:
        """Note how many chunks may be in the collection; False: the work is no longer ours.

        That is, when another router has taken it, or somebody has asked for something else.
        """
        with self._database.transaction() as session:
            row = self._own(session, file.number)
            if row is None or row.state != file.state:
                return False
            row.num_points = num_points
            return True

    def complete(self, file: StoreFile, num_points: int, usage_bytes: int) -> None:
        """Note that a file is in the collection as it was when the work began."""
        with self._database.transaction() as session:
            row = self._own(session, file.number)
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
            row = self._own(session, file.number)
            if row is not None and row.state in ("in_progress", "completed"):
                row.state, row.is_stale, row.usage_bytes = "failed", False, 0
                row.error_code, row.error_message = code, message

    def remove(self, number: int) -> None:
        """Forget a file."""
        with self._database.transaction() as session:
            if (row := self._own(session, number)) is not None:
                session.execute(delete(BatchFileRow).where(BatchFileRow.file_number == number))
                session.delete(row)
