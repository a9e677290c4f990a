"""Vector stores, as OpenAI knows them, in a database: each stands before one collection.

A store goes from creating to open to expired or deleting; callers see the open and the expired
ones. What was cut off half-way is told from its state. Everything is synchronous and short;
callers run it in a thread.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import JSON, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.router.vector_stores.rows import FileCounts, add_up
from services.shared.database import Base, Database, fetch_page
from services.shared.errors import NotFound, Unavailable, WrongState
from services.shared.paging import Page, Paging

State = Literal["creating", "open", "expired", "deleting"]
_SEEN: tuple[State, ...] = ("open", "expired")
_DAY_S = 86_400
# A store that is used is written so often at most: a sync of the disk for each search is too much.
_TOUCH_S = 60.0
# One that is created for so long is no longer: its router has ended.
_CREATION_S = 3600.0
_NO_FILES = FileCounts()


class _StoreRow(Base):
    __tablename__ = "vector_stores"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(index=True)
    collection: Mapped[str]
    model: Mapped[str]
    dim: Mapped[int]
    auto_tokens: Mapped[int]
    name: Mapped[str]
    description: Mapped[str | None]
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[float]
    last_active_at: Mapped[float]
    expires_days: Mapped[int | None]
    tenant: Mapped[str | None] = mapped_column(index=True)
    # The router that creates it; None: of before it was noted.
    creator: Mapped[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStore:
    """A vector store as it stands now."""

    id: str
    tenant: str | None = None
    """Whose it is; None: the operator's."""
    collection: str
    """Name of the router's collection."""
    model: str
    """Id of the encoder's model."""
    dim: int = 0
    """Width of the full vector."""
    auto_tokens: int = 0
    """Tokens of a chunk when nobody says how a file is cut."""
    name: str = ""
    description: str | None = None
    metadata: dict[str, str]
    created_at: float = 0.0
    """Unix time, as the other."""
    last_active_at: float = 0.0
    expires_days: int | None = None
    """Days after it was last active."""
    is_expired: bool = False
    counts: FileCounts = _NO_FILES
    usage_bytes: int = 0

    def check_open(self) -> None:
        """Refuse a store that has expired; WrongState."""
        if self.is_expired:
            raise WrongState(
                f"vector store {self.id} has expired; create a new one with the same files",
                "vector_store_id",
            )

    @property
    def expires_at(self) -> float | None:
        if self.expires_days is None:
            return None
        return self.last_active_at + self.expires_days * _DAY_S


@dataclass(frozen=True, slots=True)
class Changes:
    """What a caller wants to be different; what is not named in `fields` stays."""

    fields: frozenset[str]
    name: str = ""
    metadata: dict[str, str] | None = None
    expires_days: int | None = None


class VectorStores:
    """All vector stores. Where a `tenant` is asked for, None is an operator, who sees all of them.

    Args:
        database: holds their table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, store: VectorStore, creator: str) -> None:
        """Note a store whose collection a router is about to create; nobody sees it yet."""
        now = time.time()
        row = _StoreRow(
            id=store.id, state="creating", collection=store.collection, model=store.model,
            dim=store.dim, auto_tokens=store.auto_tokens, name=store.name,
            description=store.description,
            tags=store.metadata, created_at=now, last_active_at=now,
            expires_days=store.expires_days, tenant=store.tenant,
            creator=creator,
        )  # fmt: skip
        with self._database.transaction() as session:
            session.add(row)

    def open(self, store_id: str, model: str, dim: int, auto_tokens: int) -> None:
        """Note that a store's collection is there, and for which model; now it is seen.

        Raises:
            Unavailable: it took so long that it was given up.
        """
        with self._database.transaction() as session:
            row = _row(session, store_id)
            if row is None or row.state != "creating":
                raise Unavailable("the vector store could not be created in time; try again")
            row.state, row.model, row.dim, row.auto_tokens = "open", model, dim, auto_tokens

    def give_up(self, creator: str) -> None:
        """Let go of stores whose callers never got an answer: a router's, and old ones of others.

        Args:
            creator: the router, which is not creating any.
        """
        is_creating = _StoreRow.state == "creating"
        is_its = or_(_StoreRow.creator == creator, _StoreRow.creator.is_(None))
        is_old = _StoreRow.created_at < time.time() - _CREATION_S
        with self._database.transaction() as session:
            session.execute(
                update(_StoreRow).where(is_creating, or_(is_its, is_old)).values(state="deleting")
            )

    def set_state(self, store_id: str, state: State) -> None:
        """Say how far a store has come."""
        with self._database.transaction() as session:
            if (row := _row(session, store_id)) is not None:
                row.state = state

    def get(self, store_id: str, tenant: str | None) -> VectorStore:
        """Return a store.

        Raises:
            NotFound: no such store, or it is another tenant's.
        """
        with self._database.reading() as session:
            return _describe(session, [_seen(session, store_id, tenant)])[0]

    def use(self, store_id: str, tenant: str | None) -> VectorStore:
        """Return a store that is about to be used, and note that it is active.

        Raises:
            NotFound: no such store.
            WrongState: it has expired.
        """
        with self._database.reading() as session:
            store = _to_store(_seen(session, store_id, tenant))
        store.check_open()
        now = time.time()
        if now - store.last_active_at > _TOUCH_S:
            with self._database.transaction() as session:
                if (row := _row(session, store_id)) is not None:
                    row.last_active_at = now
        return store

    def page(self, paging: Paging, tenant: str | None) -> Page[VectorStore]:
        """Return a page of stores; NotFound if a cursor is no store."""
        with self._database.reading() as session:
            query = select(_StoreRow).where(_StoreRow.state.in_(_SEEN))
            if tenant is not None:
                query = query.where(_StoreRow.tenant == tenant)
            after = _seen(session, paging.after, tenant).number if paging.after else None
            before = _seen(session, paging.before, tenant).number if paging.before else None
            page = fetch_page(session, query, _StoreRow.number, paging, after, before)
            return Page(_describe(session, page.items), page.has_more)

    def change(self, store_id: str, changes: Changes, tenant: str | None) -> VectorStore:
        """Change what a caller may change.

        Raises:
            NotFound: no such store.
            WrongState: it has expired, and its expiry is to change.
        """
        with self._database.transaction() as session:
            row = _seen(session, store_id, tenant)
            if "name" in changes.fields:
                row.name = changes.name
            if "metadata" in changes.fields:
                row.tags = changes.metadata or {}
            if "expires_after" in changes.fields:
                if _to_store(row).is_expired:
                    raise WrongState(
                        f"vector store {store_id} has expired, and its content is gone; create a "
                        "new one with the same files",
                        "expires_after",
                    )
                row.expires_days = changes.expires_days
                row.last_active_at = time.time()
            session.flush()
            return _describe(session, [row])[0]

    def remove(self, store_id: str) -> None:
        """Forget a store."""
        with self._database.transaction() as session:
            if (row := _row(session, store_id)) is not None:
                session.delete(row)

    def in_state(self, *states: State) -> list[VectorStore]:
        """Return the stores in these states."""
        with self._database.reading() as session:
            return list(
                map(
                    _to_store,
                    session.scalars(select(_StoreRow).where(_StoreRow.state.in_(states))),
                )
            )

    def overdue(self) -> list[VectorStore]:
        """Return the open stores whose time is over."""
        return [store for store in self.in_state("open") if store.is_expired]


def _row(session: Session, store_id: str) -> _StoreRow | None:
    return session.scalar(select(_StoreRow).where(_StoreRow.id == store_id))


def _seen(session: Session, store_id: str, tenant: str | None) -> _StoreRow:
    row = _row(session, store_id)
    if row is None or row.state not in _SEEN or tenant not in (None, row.tenant):
        raise NotFound(f"there is no vector store {store_id[:64]!r}", "vector_store_id")
    return row


def _describe(session: Session, rows: Sequence[_StoreRow]) -> list[VectorStore]:
    """Return stores with what their files add up to."""
    sums = add_up(session, [row.id for row in rows])
    return [_to_store(row, *sums[row.id]) for row in rows]


def _to_store(row: _StoreRow, counts: FileCounts = _NO_FILES, usage_bytes: int = 0) -> VectorStore:
    state = cast(State, row.state)
    is_over = (
        row.expires_days is not None
        and row.last_active_at + row.expires_days * _DAY_S <= time.time()
    )
    return VectorStore(
        id=row.id,
        tenant=row.tenant,
        collection=row.collection,
        model=row.model,
        dim=row.dim,
        auto_tokens=row.auto_tokens,
        name=row.name,
        description=row.description,
        metadata=row.tags,
        created_at=row.created_at,
        last_active_at=row.last_active_at,
        expires_days=row.expires_days,
        is_expired=state == "expired" or is_over,
        counts=counts,
        usage_bytes=usage_bytes,
    )
