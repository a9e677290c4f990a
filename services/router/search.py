"""What a search asks for, and what it found.

Shapes: D full width.
"""

from dataclasses import dataclass, field

from services.router.cross_encoder import (
    CrossEncoder,
    CrossEncoderReport,
)
from services.router.explain import StageReport
from services.router.filters import Filter
from services.router.hybrid.hybrid import (
    LEAST_CANDIDATES,
    Hybrid,
    SideScores,
)
from services.router.plan import Plan
from services.router.recall.promise import Promise
from services.router.storage.store import Collection, ScoredPoint
from services.shared.errors import InvalidRequest
from services.shared.vectors import Array, unpack

DEFAULT_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for; a text, or a vector with its space."""

    collection: str
    text: str | None = None
    vector: bytes | None = None
    """One full-size vector, little-endian float32."""
    space_id: str = ""
    limit: int = DEFAULT_LIMIT
    condition: Filter | None = None
    plan: Plan | None = None
    """None: the plan that keeps the recall target; see `promise.py`."""
    recall_target: float | None = None
    """None: the collection's own, if it was calibrated."""
    slice: str = ""
    """Group of queries that this one belongs to: a tenant, a language; "": none."""
    max_seconds: float | None = None
    max_bytes: int | None = None
    is_live: bool = True
    """Whether a user waits for it; other searches are not watched, and not kept as recent ones."""
    explain: bool = False
    measure_recall: bool = False
    hybrid: Hybrid | None = None
    """Also search by words; None: by vectors only."""
    cross_encoder: CrossEncoder | None = None
    """Who puts the best hits in their last order; None: nobody."""
    tenant: str | None = field(kw_only=True)
    """Whose points are searched; None: all, for an operator. Nobody may forget to say it."""

    @property
    def depth(self) -> int:
        """How many hits must be found, before a cross-encoder has its word."""
        return self.cross_encoder.depth(self.limit) if self.cross_encoder else self.limit

    @property
    def candidates(self) -> int:
        """How many hits must be found by vectors, and by words if they take part."""
        if self.hybrid is None:
            return self.depth
        least = LEAST_CANDIDATES if self.plan is None else 1
        return self.hybrid.candidates or max(least, self.depth)

    @property
    def words(self) -> str:
        """What is searched for as a text; "": a vector alone is."""
        return (self.hybrid.text if self.hybrid else "") or self.text or ""


@dataclass(frozen=True, slots=True)
class TextReport:
    """What the words' side of a hybrid search did."""

    terms: int
    """Different words of the query."""
    candidates: int
    """Hits by words."""
    seconds: float
    """In the engine: finding them, and scoring what one side alone had found."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer."""

    hits: list[ScoredPoint]
    """With their last score: a cross-encoder's, or the fused one, or the cosine."""
    plan: Plan
    collection: Collection
    encode_seconds: float
    search_seconds: float
    promise: Promise | None = None
    stages: tuple[StageReport, ...] = ()
    shortlist_ranks: tuple[int, ...] = ()
    """With `explain`: each hit's place in the first stage, from 1."""
    recall: float | None = None
    exact_seconds: float = 0.0
    sides: tuple[SideScores, ...] = ()
    """Of a hybrid search: what each side says of each hit."""
    text: TextReport | None = None
    cross_encoder: CrossEncoderReport | None = None


def read_vectors(data: bytes, dim: int, rows: int, param: str) -> Array:
    """Read exactly `rows` vectors of the full width; none may be zero, which has no direction.

    Returns:
        vectors_BD: float32, finite.

    Raises:
        InvalidRequest: says what would be accepted.
    """
    if len(data) != rows * dim * 4:
        raise InvalidRequest(
            f"{param} must hold {rows} x {dim} little-endian float32 numbers "
            f"({rows * dim * 4} bytes), got {len(data)} bytes",
            param,
        )
    vectors_BD = unpack(data, dim, param)
    if not vectors_BD.any(axis=1).all():
        raise InvalidRequest(f"{param} must not hold a vector of zeros", param)
    return vectors_BD
