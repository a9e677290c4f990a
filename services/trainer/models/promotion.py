"""Promotions: which version shall be served where, how far that is, and what came of it."""

import time
import uuid
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.shared.database import Base, Database, fetch_page
from services.shared.errors import NotFound, WrongState
from services.shared.paging import Page, Paging
from services.trainer.results.gate import Rule
from services.trainer.results.slices import SliceQuality

State = Literal[
    "checking", "loading", "migrating", "ready", "switching", "watching", "done",
    "refused", "rolling_back", "rolled_back", "failed",
]  # fmt: skip
WORKING: tuple[State, ...] = ("checking", "loading", "migrating", "switching", "rolling_back")
"""States in which there is something to do without being asked."""
GIVEN_UP: tuple[State, ...] = ("refused", "rolled_back", "failed")
ENDED: tuple[State, ...] = ("done", *GIVEN_UP)


class Target(BaseModel):
    """One collection that is moved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str
    """The router's, by which it is searched."""
    target: str
    """The collection that is filled in the new space."""


class Promotion(BaseModel):
    """One promotion as it stands now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version_id: str
    encoder_alias: str
    """"": none is moved."""
    targets: tuple[Target, ...]
    rule: Rule
    holds: bool
    watches: bool
    created_at: float
    """Unix time, as the other."""
    updated_at: float
    state: State = "checking"
    reasons: tuple[str, ...] = ()
    """Why the gate refused it."""
    judged: tuple[SliceQuality, ...] = ()
    error: str = ""
    previous: str = ""
    """What the encoder's alias named before; "": nothing."""
    loads: bool = False
    """Whether the encoder had not loaded the version before."""
    step: str = ""
    done: int = 0
    """Points of the collection that is being filled, and how many there are."""
    total: int = 0

    def asks_for_the_same(self, other: "Promotion") -> bool:
        """Whether another promotion would do what this one does."""
        wanted = ("version_id", "encoder_alias", "targets", "rule", "holds", "watches")
        return all(getattr(self, name) == getattr(other, name) for name in wanted)

    def shared_with(self, other: "Promotion") -> str:
        """Name what both would switch; "": nothing."""
        mine = [target.alias for target in self.targets]
        both = [target.alias for target in other.targets if target.alias in mine]
        if both:
            return f"collection {both[0]!r}"
        is_shared = self.encoder_alias and self.encoder_alias == other.encoder_alias
        return f"the encoder's name {self.encoder_alias!r}" if is_shared else ""

    @property
    def said(self) -> str:
        """The state, for people."""
        return self.state.replace("_", " ")


class _PromotionRow(Base):
    __tablename__ = "promotions"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    version_id: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    content: Mapped[str]
    # Which service is at it, and until when no other may be.
    service: Mapped[str | None]
    lease_until: Mapped[float | None]


class Promotions:
    """All promotions. Everything here is synchronous and short; callers run it in a thread.

    Args:
        database: holds them.
        service: the name of this service, no other's.
        lease_s: how long a promotion stays this service's own after it said so.
    """

    def __init__(self, database: Database, service: str, lease_s: float) -> None:
        self._database = database
        self._service = service
        self.lease_s = lease_s

    def add(self, promotion: Promotion) -> Promotion:
        """Add a promotion, or return the one that is under way and does the same.

        Raises:
            WrongState: another one, that has not ended, has to do with the same names.
        """
        with self._database.transaction() as session:
            query = select(_PromotionRow).where(_PromotionRow.state.not_in(ENDED))
            for row in session.scalars(query):
                found = _read(row)
                if found.asks_for_the_same(promotion):
                    return found
                if shared := found.shared_with(promotion):
                    raise WrongState(
                        f"{shared} is part of {found.id} ({found.version_id}, {found.said}); end "
                        f"that first: `matryoshka promotions roll-back {found.id}`, or `finish`"
                    )
            session.add(
                _PromotionRow(
                    id=promotion.id, version_id=promotion.version_id, state=promotion.state,
                    content=promotion.model_dump_json(),
                )
            )  # fmt: skip
        return promotion

    def get(self, promotion_id: str) -> Promotion:
        """Return a promotion; NotFound."""
        with self._database.reading() as session:
            return _read(_find(session, promotion_id))

    def page(self, paging: Paging) -> Page[Promotion]:
        """Return a page of promotions; NotFound for a cursor."""
        with self._database.reading() as session:
            after = _find(session, paging.after).number if paging.after else None
            query = select(_PromotionRow)
            page = fetch_page(session, query, _PromotionRow.number, paging, after, None)
            return Page([_read(row) for row in page.items], page.has_more)

    def open(self) -> list[Promotion]:
        """Return those that have not ended, the oldest first."""
        with self._database.reading() as session:
            query = select(_PromotionRow).where(_PromotionRow.state.not_in(ENDED))
            return [_read(row) for row in session.scalars(query.order_by(_PromotionRow.number))]

    def claim(self) -> Promotion | None:
        """Take the oldest promotion with something to do that no other service is at."""
        with self._database.transaction() as session:
            now = time.time()
            is_free = or_(
                _PromotionRow.service.is_(None),
                _PromotionRow.service == self._service,
                _PromotionRow.lease_until <= now,
            )
            query = select(_PromotionRow).where(_PromotionRow.state.in_(WORKING), is_free)
            row = session.scalar(query.order_by(_PromotionRow.number).limit(1))
            if row is None:
                return None
            row.service, row.lease_until = self._service, now + self.lease_s
            return _read(row)

    def renew(self, promotion_id: str) -> bool:
        """Say that this service is still at a promotion; False: another one is."""
        with self._database.transaction() as session:
            row = _find(session, promotion_id)
            if row.service != self._service:
                return False
            row.lease_until = time.time() + self.lease_s
            return True

    def check_free(self, version_id: str) -> None:
        """Refuse what is being promoted, or whose promotion may yet be undone.

        Raises:
            WrongState: a promotion that has not ended names the version.
        """
        for promotion in self.open():
            if promotion.version_id == version_id:
                raise WrongState(f"{version_id} is part of {promotion.id}; end that first")

    def is_served(self, version_id: str, but: str) -> bool:
        """Whether a promotion of the version, another than `but`, is under way or done."""
        with self._database.reading() as session:
            query = select(_PromotionRow.id).where(
                _PromotionRow.version_id == version_id,
                _PromotionRow.id != but,
                _PromotionRow.state.not_in(GIVEN_UP),
            )
            return session.scalar(query.limit(1)) is not None

    def update(self, promotion_id: str, only_in: tuple[State, ...], **values: object) -> Promotion:
        """Change what is noted of a promotion, if its state is one of these; NotFound.

        Returns:
            The promotion as it is then; as it was, if somebody has moved it meanwhile.
        """
        with self._database.transaction() as session:
            row = _find(session, promotion_id)
            if row.state not in only_in:
                return _read(row)
            promotion = _read(row).model_copy(update=values | {"updated_at": time.time()})
            row.state = promotion.state
            row.content = promotion.model_dump_json()
        return promotion


def new_id() -> str:
    return f"promotion-{uuid.uuid4().hex}"


def _find(session: Session, promotion_id: str) -> _PromotionRow:
    row = session.scalar(select(_PromotionRow).where(_PromotionRow.id == promotion_id))
    if row is None:
        raise NotFound(f"there is no promotion {promotion_id[:64]!r}", "id")
    return row


def _read(row: _PromotionRow) -> Promotion:
    return Promotion.model_validate_json(row.content)
