"""What the two halves of migrations have in common, in a database: it outlives routers.

Of several routers that share the database each adds to the same numbers. Everything is synchronous
and short; callers run it in a thread.
"""

from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from services.shared.database import Base, Database

OTHER = "(other)"
"""The slice of all that came when there were too many."""


class _Row(Base):
    __tablename__ = "migration_agreements"

    change_id: Mapped[str] = mapped_column(primary_key=True)
    slice: Mapped[str] = mapped_column(primary_key=True)
    num_compared: Mapped[int]
    overlap: Mapped[float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the two collections' answers to a slice's searches have in common."""

    num_compared: int
    overlap: float
    """Mean share of hits that both found, 0..1."""


class Agreements:
    """Those of all migrations.

    Args:
        database: holds their table.
        max_slices: of one migration that are told apart; all further ones are one.
    """

    def __init__(self, database: Database, max_slices: int) -> None:
        self._database = database
        self._max_slices = max_slices

    def observe(self, change_id: str, slice_: str, overlap: float) -> tuple[str, Agreement]:
        """Take note of one search that both answered.

        Args:
            change_id: of the migration.
            slice_: of the search.
            overlap: share of hits that both found, 0..1.

        Returns:
            The slice that it is counted in, and what is known of that now.
        """
        with self._database.transaction() as session:
            row = session.get(_Row, (change_id, slice_))
            if row is None:
                of_change = _Row.change_id == change_id
                num_slices = session.scalar(select(func.count()).where(of_change)) or 0
                slice_ = slice_ if num_slices < self._max_slices else OTHER
                row = session.get(_Row, (change_id, slice_))
            if row is None:
                row = _Row(change_id=change_id, slice=slice_, num_compared=0, overlap=0.0)
                session.add(row)
            row.num_compared += 1
            row.overlap += (overlap - row.overlap) / row.num_compared
            return slice_, Agreement(row.num_compared, row.overlap)

    def of(self, change_id: str) -> dict[str, Agreement]:
        """Return {slice: agreement} of a migration, the least first."""
        wanted = select(_Row).where(_Row.change_id == change_id).order_by(_Row.overlap, _Row.slice)
        with self._database.reading() as session:
            return {
                row.slice: Agreement(row.num_compared, row.overlap)
                for row in session.scalars(wanted)
            }

    def forget(self, change_id: str) -> None:
        """Drop what is known of a migration that has ended."""
        with self._database.transaction() as session:
            session.execute(delete(_Row).where(_Row.change_id == change_id))
