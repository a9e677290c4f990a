"""What the router needs of a storage engine, in its own words.

Two engines speak it: a Qdrant server (`qdrant.py`) and Qdrant Edge in a folder (`edge.py`). No
engine's types pass this line. Collections are found by name or alias; everything that writes or
searches takes the name that was found, so that one request sees one collection from start to end.

Shapes: B points, D full width.
"""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from services.router.attributes import Attributes, from_stored, to_stored
from services.router.filters import Filter
from services.router.hybrid.text_index import TextIndex
from services.router.plan import Plan, Stage, reads_codes
from services.router.rotation import Rotation
from services.router.sizes import Size
from services.router.spread import DEFAULT_SPREAD, Spread
from services.shared.errors import AlreadyExists, InvalidRequest, NotFound
from services.shared.vectors import Array

MAX_NAME_CHARS = 255
"""Longest name of a collection, of a Qdrant server's own too, and of a folder on disk."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME_CHARS - 1}}}")
TENANT = "tenant"
"""Where a point's payload says whose it is, beside its attributes: no filter of a user gets there.
It has an index, in engines that have any."""
# Any fixed namespace will do; it must never change, as stored points are found by it.
_POINT_NAMESPACE = uuid.UUID("6d617472-796f-5368-8b61-000000000001")
_TENANT_NAMESPACE = uuid.UUID("6d617472-796f-5368-8b61-000000000002")


@dataclass(frozen=True, slots=True)
class Collection:
    """What stays the same about a collection from creation to deletion."""

    name: str
    model: str
    """Id of the encoder's model, never an alias."""
    space_id: str
    sizes: tuple[Size, ...]
    """Ascending; the last is the full size."""
    calibration: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """What was measured of it last (`calibration.py`), as JSON; None: nothing yet. Not a part of
    what it is."""
    change: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """What is being changed of it (`change.py`), as JSON; None: nothing."""
    mirror: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """{"to": name of the collection that gets all its writes too}; None: none does."""
    tenant: str | None = None
    """Whose it is alone; None: every tenant's points may be in it."""
    text_index: TextIndex | None = None
    """How its texts are kept for search by words; None: they are not."""
    spread: Spread = field(default=DEFAULT_SPREAD, compare=False)
    """To `create`: as it shall lie; as found: as it lies now, which a server may change."""

    @property
    def full(self) -> int:
        """Width of the full vector."""
        return self.sizes[-1].dim

    @property
    def nesting(self) -> str:
        """Id of the rotation of its nested sizes; "": it has none."""
        return next((size.nesting for size in self.sizes if size.nesting), "")


@dataclass(frozen=True, slots=True)
class Point:
    """One document."""

    id: str
    text: str
    attributes: Attributes
    tenant: str | None = None
    """Whose it is; None: the operator's."""


@dataclass(frozen=True, slots=True)
class ScoredPoint:
    """One hit."""

    key: str
    """The engine's id of the point."""
    point: Point
    score: float
    """Cosine at the last stage's size, -1..1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found."""

    hits: list[ScoredPoint]
    seconds: float
    """The engine's own time, without the way there; of a server that tells none, with it."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Some points' full vectors, in the engine's own order.

    It has nothing to do with what they mean or when they came: the first pages are a random sample.
    """

    keys: list[str]
    vectors_BD: Array
    """Of unit length."""
    after: str | None
    """As in `Page`."""


@dataclass(frozen=True, slots=True)
class KeptQueries:
    """Queries that are kept with a collection."""

    vectors_QD: Array
    slices: list[str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some points of a collection, in the engine's own order."""

    points: list[Point]
    after: str | None
    """Where the next page begins; None: there is none."""
    vectors_BD: Array | None = None
    """The points' full vectors, of unit length, if they were asked for."""


@dataclass(frozen=True, slots=True)
class TermPage:
    """The terms of some points, in the order of `Vectors`."""

    num_documents: int
    counts: Mapping[int, int]
    """{term: how many of them hold it}."""
    after: str | None
    """As in `Page`."""


Note = Literal["calibration", "change", "mirror"]
"""What is known of a collection besides what it is; a field of `Collection`."""

Progress = Callable[[int, int], None]
"""Told how many points are done, and of how many."""


class Store(Protocol):
    """A storage engine. Every method may raise Unavailable when the engine cannot answer."""

    async def open(self) -> None:
        """Make ready; fails if the storage cannot be used."""

    async def create(self, collection: Collection) -> Collection:
        """Create an empty collection; return it as `find` does.

        Raises:
            AlreadyExists: the name, or an alias, takes it.
            InvalidRequest: the storage cannot spread it so.
        """

    async def find(self, name: str) -> Collection:
        """Look a collection up by name or alias; NotFound."""

    async def collections(self) -> list[Collection]:
        """Return all collections by name."""

    async def drop(self, name: str) -> None:
        """Delete a collection and its points; NotFound."""

    async def aliases(self) -> dict[str, str]:
        """Return {alias: collection}."""

    async def set_alias(self, alias: str, name: str) -> None:
        """Point a name at a collection, atomically; NotFound, AlreadyExists."""

    async def upsert(self, name: str, points: Sequence[Point], vectors_BD: Array) -> None:
        """Write points; when it returns they survive the death of any process."""

    async def delete(self, name: str, ids: Sequence[str], tenant: str | None = None) -> None:
        """Delete points of a tenant or (None) of the operator; unknown ids are no error."""

    async def set_attributes(
        self,
        name: str,
        ids: Sequence[str],
        attributes: Attributes,
        tenant: str | None = None,
    ) -> list[str]:
        """Replace the attributes of points of a tenant or (None) of the operator, durably.

        Returns:
            Those of the ids that there is no point of, each once.
        """

    async def search(
        self,
        collection: Collection,
        plan: Plan,
        query_D: Array,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        """Run a resolved plan.

        Args:
            collection: as `find` returned it.
            plan: resolved; `plan.limit` hits come back at most, best first.
            query_D: float32, of the full width.
            condition: points that may be hits in any stage.
            with_points: False leaves text and attributes empty.

        Raises:
            NotFound: the collection is gone, or has other sizes now; `find` it again.
        """

    async def search_text(
        self,
        collection: Collection,
        weights: Mapping[int, float],
        limit: int,
        condition: Filter | None = None,
        with_points: bool = True,
    ) -> Answer:
        """Find points by the terms of their texts; of a collection with a text index.

        Args:
            collection: as `find` returned it.
            weights: {term: what it weighs}.
            limit: of hits; points that hold none of the terms are none.
            condition: as in `search`.
            with_points: as in `search`.

        Returns:
            Hits, best first, scored with the sum over terms of weight and the document's number.
        """

    async def terms(
        self, collection: Collection, after: str | None, limit: int, tenant: str | None
    ) -> TermPage:
        """Count terms page by page, of a tenant's points or (None) of all."""

    async def scroll(
        self, name: str, after: str | None, limit: int, with_vectors: bool = False
    ) -> Page:
        """Read points page by page; `after` is the last page's, None begins."""

    async def read(self, name: str, keys: Sequence[str]) -> Page:
        """Read some points by their keys (`point_uuid`), with vectors; those that are there."""

    async def vectors(self, name: str, after: str | None, limit: int) -> Vectors:
        """Read full vectors page by page, as `scroll`."""

    async def annotate(self, name: str, note: Note, value: dict[str, Any] | None) -> None:
        """Keep a note with a collection, durably; `find` returns it from then on. None drops it."""

    async def resize(
        self,
        name: str,
        sizes: Sequence[Size],
        rotation: Rotation | None,
        on_progress: Progress,
        text_index: TextIndex | None = None,
    ) -> Collection:
        """Give a collection other sizes, made of its full vectors; searches and writes go on.

        Until it returns, searches see the sizes there were; from then on the new ones, of every
        point and indexed. Ended before by anything, it can be asked for again.

        Args:
            name: of the collection.
            sizes: all that it shall have, the full one as it was.
            rotation: of the nested ones among them; None: there are none, or they are there.
            on_progress: told how far it is.
            text_index: that it shall have, too; None: as it is.
        """

    async def rotation(self, collection: Collection) -> Rotation | None:
        """Return the rotation of a collection's nested sizes; None: it has none."""

    async def keep_queries(self, name: str, queries: KeptQueries) -> None:
        """Keep queries with a collection, in place of those kept before; gone when it is."""

    async def kept_queries(self, name: str) -> KeptQueries:
        """Return what `keep_queries` kept last; nothing, if it never did."""

    async def count(self, name: str, without_text: bool = False, tenant: str | None = None) -> int:
        """Count points exactly, all or a tenant's, all or those with an empty text."""

    async def settle(self, name: str) -> None:
        """Index what was written, if that pays yet. Searches go on meanwhile."""

    async def close(self) -> None:
        """Let go of processes and connections."""


def check_name(name: str, param: str) -> None:
    """Refuse a name that is not 1 to 255 letters, digits, '_', '-' or '.'."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{param} must be 1 to 255 letters, digits, '_', '-' or '.', the first a letter or "
            "digit",
            param,
        )


def not_found(name: str) -> NotFound:
    """Return the error for a collection that is not there."""
    return NotFound(f"no collection or alias {name!r}; ListCollections shows what there is")


def taken(name: str) -> AlreadyExists:
    """Return the error for a name that a collection or an alias has."""
    return AlreadyExists(f"the name {name!r} is taken by a collection or an alias")


def point_uuid(id_: str, tenant: str | None = None) -> str:
    """Return the engine's id of a point: engines take UUIDs, users any string, each its own."""
    space = _POINT_NAMESPACE if tenant is None else uuid.uuid5(_TENANT_NAMESPACE, tenant)
    return str(uuid.uuid5(space, id_))


def to_payload(point: Point) -> dict[str, Any]:
    """Return what is stored beside a point's vectors."""
    payload = {"id": point.id, "text": point.text, **attributes_payload(point.attributes)}
    return payload if point.tenant is None else payload | {TENANT: point.tenant}


def attributes_payload(attributes: Attributes) -> dict[str, Any]:
    """Return what of it holds the attributes: engines replace it whole."""
    return {"attributes": to_stored(attributes)}


def from_payload(payload: dict[str, Any]) -> Point:
    """Undo `to_payload`."""
    attributes = from_stored(payload["attributes"])
    return Point(payload["id"], payload["text"], attributes, payload.get(TENANT))


def resized(
    collection: Collection, sizes: Sequence[Size], text_index: TextIndex | None = None
) -> Collection:
    """Return a collection with other sizes, and another text index if one is given.

    What was measured of it still holds if every size that it had is still there, unchanged.
    """
    still_holds = set(collection.sizes) <= set(sizes)
    calibration = collection.calibration if still_holds else None
    text_index = text_index or collection.text_index
    return replace(collection, sizes=tuple(sizes), calibration=calibration, text_index=text_index)


def latest(points: Sequence[Point], vectors_BD: Array) -> tuple[list[Point], Array]:
    """Keep the last of points with the same id; engines do not say which one they keep."""
    row_of = {(point.tenant, point.id): row for row, point in enumerate(points)}
    if len(row_of) == len(points):
        return list(points), vectors_BD
    rows = sorted(row_of.values())
    return [points[row] for row in rows], vectors_BD[rows]


def clamp(score: float) -> float:
    """Keep a cosine within -1..1; sums of rounded products may step over it."""
    return max(-1.0, min(1.0, score))


def is_plain_rescoring(stage: Stage, size: Size, is_first: bool) -> bool:
    """Say whether a stage must be told to score all it is handed.

    Handed more points than a threshold, the engine may walk a size's graph instead and lose some.
    Exact scoring would also switch quantisation off, so stages that read codes are left to it.
    """
    return not is_first and size.hnsw_m > 0 and not reads_codes(stage, size)
