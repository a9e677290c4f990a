"""What promotions have made every encoder serve, kept in the database and told by a file.

The file is written in the transaction of the change: several trainers take turns, and the last
change is what stands in it.
"""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.shared.database import Base, Database
from services.shared.errors import WrongState
from services.shared.served import Served, write_served


class _ModelRow(Base):
    __tablename__ = "served_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    folder: Mapped[str]


class _AliasRow(Base):
    __tablename__ = "served_aliases"

    alias: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(index=True)


class ServedModels:
    """What all encoders shall serve. Synchronous and short; callers run it in a thread.

    Args:
        database: holds it.
        path: of the file that encoders follow.
    """

    def __init__(self, database: Database, path: Path) -> None:
        self._database = database
        self._path = path

    def write(self) -> None:
        """Write the file again, if it was lost."""
        with self._database.transaction() as session:
            self._write(session)

    def add(self, model_id: str, folder: Path) -> None:
        """Have a model loaded by every encoder that starts from now on."""
        with self._database.transaction() as session:
            session.merge(_ModelRow(id=model_id, folder=str(folder)))
            self._write(session)

    def remove(self, model_id: str) -> None:
        """Have it loaded no more, unless a name points at it; harmless if it was not there."""
        with self._database.transaction() as session:
            row = session.get(_ModelRow, model_id)
            if row is not None and _alias_of(session, model_id) is None:
                session.delete(row)
                self._write(session)

    def point(self, alias: str, model_id: str) -> None:
        """Have a name point at a model."""
        with self._database.transaction() as session:
            session.merge(_AliasRow(alias=alias, model_id=model_id))
            self._write(session)

    def named(self, alias: str) -> str:
        """Return what a name shall point at; "": nothing is said of it."""
        with self._database.reading() as session:
            row = session.get(_AliasRow, alias)
            return row.model_id if row is not None else ""

    def check_free(self, model_id: str) -> None:
        """Refuse a model that a name points at; WrongState."""
        with self._database.reading() as session:
            alias = _alias_of(session, model_id)
        if alias is not None:
            raise WrongState(
                f"the encoders' name {alias!r} points at {model_id}; promote another version to it "
                "before this one is deleted"
            )

    def _write(self, session: Session) -> None:
        session.flush()
        models = session.scalars(select(_ModelRow).order_by(_ModelRow.id))
        aliases = session.scalars(select(_AliasRow).order_by(_AliasRow.alias))
        write_served(
            self._path,
            Served(
                models={row.id: row.folder for row in models},
                aliases={row.alias: row.model_id for row in aliases},
            ),
        )


def _alias_of(session: Session, model_id: str) -> str | None:
    query = select(_AliasRow.alias).where(_AliasRow.model_id == model_id)
    return session.scalar(query.limit(1))
