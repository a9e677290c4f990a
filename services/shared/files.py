"""Uploaded files: what each is called and for, in a database; its bytes among the blobs.

A file that was acknowledged is there until somebody deletes it or its time is over. One that is
deleted is gone for everybody at once, and its bytes go before its row: a deletion that was cut off
is ended by `sweep`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import BigInteger, ColumnElement, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.shared.blobs import Blobs
from services.shared.database import Base, Database, fetch_page
from services.shared.errors import NotFound
from services.shared.paging import Page, Paging


class _FileRow(Base):
    __tablename__ = "uploaded_files"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(index=True)
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float]
    expires_at: Mapped[float | None] = mapped_column(index=True)
    is_deleted: Mapped[bool] = mapped_column(index=True, default=False)
    tenant: Mapped[str | None] = mapped_column(index=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """An uploaded file."""

    id: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: float
    """Unix time, as the other."""
    expires_at: float | None = None
    tenant: str | None = None
    """Whose it is; None: the operator's."""


class Files:
    """All uploaded files. Where a `tenant` is asked for, None is an operator, who sees all of them.

    Args:
        database: holds their table.
        blobs: holds their bytes.
    """

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self.blobs = blobs

    async def add(self, file: File) -> None:
        """Note a file whose bytes are stored."""
        row = _FileRow(
            id=file.id, filename=file.filename, purpose=file.purpose, num_bytes=file.num_bytes,
            created_at=file.created_at, expires_at=file.expires_at, is_deleted=False,
            tenant=file.tenant,
        )  # fmt: skip

        def add() -> None:
            with self._database.transaction() as session:
                session.add(row)

        await asyncio.to_thread(add)

    async def get(self, file_id: str, tenant: str | None, param: str = "file_id") -> File:
        """Return a file.

        Raises:
            NotFound: no such file, or it is another tenant's.
        """
        return (await self.get_all([file_id], tenant, param))[file_id]

    async def get_all(
        self, file_ids: Sequence[str], tenant: str | None, param: str
    ) -> dict[str, File]:
        """Return several files by id; NotFound names the first that is not there."""
        return await asyncio.to_thread(self._get_all, file_ids, tenant, param)

    def find(self, file_id: str, tenant: str | None, param: str) -> File:
        """Return a file, as `get`; for threads."""
        return self._get_all([file_id], tenant, param)[file_id]

    def _get_all(self, file_ids: Sequence[str], tenant: str | None, param: str) -> dict[str, File]:
        query = select(_FileRow).where(_FileRow.id.in_(file_ids), *_visible(), *_own(tenant))
        with self._database.reading() as session:
            rows = session.scalars(query)
            found = {row.id: _to_file(row) for row in rows}
        for file_id in file_ids:
            if file_id not in found:
                raise _not_found(file_id, param)
        return found

    async def names(self, file_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of those files that are there."""

        def read() -> dict[str, str]:
            with self._database.reading() as session:
                query = select(_FileRow.id, _FileRow.filename).where(_FileRow.id.in_(file_ids))
                return dict(session.execute(query.where(*_visible())).all())

        return await asyncio.to_thread(read)

    async def page(self, paging: Paging, purpose: str, tenant: str | None) -> Page[File]:
        """Return a page of files, of one purpose or (empty) of all; NotFound for a cursor."""
        return await asyncio.to_thread(self._page, paging, purpose, tenant)

    def _page(self, paging: Paging, purpose: str, tenant: str | None) -> Page[File]:
        with self._database.reading() as session:
            query = select(_FileRow).where(*_visible(), *_own(tenant))
            if purpose:
                query = query.where(_FileRow.purpose == purpose)
            after = _number(session, paging.after, tenant, "after")
            before = _number(session, paging.before, tenant, "before")
            page = fetch_page(session, query, _FileRow.number, paging, after, before)
            return Page([_to_file(row) for row in page.items], page.has_more)

    async def fetch(self, file_id: str, target: Path) -> None:
        """Copy a file's bytes to a local path; NotFound."""
        await asyncio.to_thread(self.blobs.fetch, file_id, target, "file_id")

    def read(self, file_id: str) -> AsyncIterator[bytes]:
        """Yield a file's bytes."""
        return self.blobs.read(file_id)

    async def hide(self, file_id: str, tenant: str | None) -> None:
        """Make a file gone for everybody; `remove` then frees its bytes. NotFound."""

        def hide() -> None:
            with self._database.transaction() as session:
                is_meant = (_FileRow.id == file_id, *_visible(), *_own(tenant))
                query = select(_FileRow).where(*is_meant)
                if (row := session.scalar(query)) is None:
                    raise _not_found(file_id, "file_id")
                row.is_deleted = True

        await asyncio.to_thread(hide)

    async def remove(self, file_id: str) -> None:
        """Free the bytes of a hidden file, and forget it."""

        def remove() -> None:
            self.blobs.remove(file_id)
            with self._database.transaction() as session:
                if (
                    row := session.scalar(select(_FileRow).where(_FileRow.id == file_id))
                ) is not None:
                    session.delete(row)

        await asyncio.to_thread(remove)

    async def gone(self) -> list[str]:
        """Return the ids of files whose time is over or whose deletion was cut off."""

        def read() -> list[str]:
            with self._database.reading() as session:
                over = or_(_FileRow.is_deleted, _FileRow.expires_at <= time.time())
                return list(session.scalars(select(_FileRow.id).where(over)))

        return await asyncio.to_thread(read)


def _visible() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    is_alive = or_(_FileRow.expires_at.is_(None), _FileRow.expires_at > time.time())
    return (_FileRow.is_deleted.is_(False), is_alive)


def _own(tenant: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if tenant is None else (_FileRow.tenant == tenant,)


def _number(session: Session, file_id: str, tenant: str | None, param: str) -> int | None:
    if not file_id:
        return None
    query = select(_FileRow.number).where(_FileRow.id == file_id, *_own(tenant))
    number = session.scalar(query)
    if number is None:
        raise _not_found(file_id, param)
    return number


def _not_found(file_id: str, param: str) -> NotFound:
    return NotFound(f"{param}: there is no file {file_id[:64]!r}; upload it first", param)


def _to_file(row: _FileRow) -> File:
    return File(
        id=row.id,
        filename=row.filename,
        purpose=row.purpose,
        num_bytes=row.num_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        tenant=row.tenant,
    )
