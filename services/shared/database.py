"""A database of small tables: SQLite by default, any other by URL. What survives a restart.

Everything here is synchronous and short; callers run it in a thread.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Select, create_engine, event, inspect, text
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session
from sqlalchemy.schema import CreateColumn

from services.shared.paging import Page, Paging

_IS_WRITING = "matryoshka_is_writing"
_POSTGRES_LOCK = 0x6D617472796F
"""Any number will do, the same for all routers."""


class Base(DeclarativeBase):
    """The tables."""


class Database:
    """One database.

    Args:
        url: as SQLAlchemy names it.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        # Each reads before it writes, so writers take turns, those of other processes too; none
        # takes long. Here among themselves: who waits at the database may be passed over.
        self._turn = threading.Lock()
        self._writing = self._engine.execution_options(**{_IS_WRITING: True})
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _tune_sqlite)
        event.listen(self._engine, "begin", _take_turn)

    def open(self) -> None:
        """Make the tables that are not there, and the columns that tables of before lack."""
        with self._writing.begin() as connection:
            Base.metadata.create_all(connection)
            _add_columns(connection)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Read in the block, without waiting for those who write."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Do everything in the block, or nothing; when it ends, it is durable."""
        with (
            self._turn,
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session


def fetch_page(
    session: Session,
    query: Select[Any],
    number: InstrumentedAttribute[int],
    paging: Paging,
    after: int | None,
    before: int | None,
) -> Page[Any]:
    """Read one page of rows, newest first unless the paging says otherwise.

    Args:
        session: of the transaction.
        query: the rows that the list is of, in any order.
        number: the column that counts rows up as they are made.
        paging: what is asked for.
        after: number of the row that the page follows.
        before: number of the row that the page ends before.
    """
    ascending = paging.order == "asc"
    if after is not None:
        query = query.where(number > after if ascending else number < after)
    if before is not None:
        query = query.where(number < before if ascending else number > before)
    # A page before a row is read from that row on, and turned round.
    is_backward = before is not None and after is None
    upward = ascending != is_backward
    query = query.order_by(number.asc() if upward else number.desc()).limit(paging.limit + 1)
    rows = list(session.scalars(query))
    shown = rows[: paging.limit]
    return Page(shown[::-1] if is_backward else shown, len(rows) > paging.limit)


def _add_columns(connection: Connection) -> None:
    """Add what came later: columns that may be empty, or have a default in the database."""
    seen = inspect(connection)
    for table in Base.metadata.sorted_tables:
        present = {column["name"] for column in seen.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                spec = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {spec}"))
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _take_turn(connection: Connection) -> None:
    """Wait until no other process writes; until the end of the transaction none other does."""
    if not connection.get_execution_options().get(_IS_WRITING):
        return
    if connection.dialect.name == "sqlite":
        # By default it would begin to write at the first change, after what it is made of was read.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")


def _tune_sqlite(connection: Any, _: object) -> None:  # noqa: ANN401 (the driver's own)
    """Let reads go on beside a write, and sync every commit: what was acknowledged is not lost."""
    connection.isolation_level = None  # transactions begin where we say so
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
