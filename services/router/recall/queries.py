"""The queries that recall is measured with: given, recent, or documents in their place.

Shapes: Q queries, D full width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.router.encoder_client import EncoderClient
from services.router.recall.calibration import Source
from services.router.recall.promise import MAX_SLICE_CHARS
from services.router.recall.recent import Recent
from services.router.space import check_space
from services.router.storage.store import Collection, Store
from services.shared.errors import InvalidRequest
from services.shared.vectors import Array, normalize

MIN_QUERIES = 100
"""Fewer bound nothing that is worth a promise: half of them, all perfect, certify 0.94."""
# Of fewer recent ones too little is left to certify with; documents are many.
_MIN_RECENT = 400
_MAX_CHOOSING = 600
_SEED = 0
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class QuerySource:
    """Queries that a caller gives; none: recent ones or documents are taken."""

    texts: Sequence[str] = ()
    vectors_QD: Array | None = None
    space_id: str = ""
    """Of the vectors."""
    slices: Sequence[str] = ()
    """One name a query, "" for none; empty: no query has one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries to measure with."""

    vectors_QD: Array
    """Of unit length."""
    own_keys: list[str]
    """The point whose vector a query is, if documents stand in; "": none."""
    slices: list[str]
    source: Source
    _order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        order = np.random.default_rng(_SEED).permutation(len(self.own_keys)).tolist()
        # Every slice is halved: neighbours in this order go to different halves.
        order.sort(key=lambda query: self.slices[query])
        object.__setattr__(self, "_order", order)

    def split(self) -> tuple[list[int], list[int]]:
        """Return the queries that choose plans and those that certify them, in random order.

        Half of the queries and of every slice choose, up to a number beyond which more would not
        choose better; all others certify.
        """
        step = max(2, -(-len(self._order) // _MAX_CHOOSING))
        choosing = self._order[::step]
        certifying = sorted(set(self._order) - set(choosing))
        shuffle = np.random.default_rng(_SEED).permutation
        return shuffle(choosing).tolist(), shuffle(certifying).tolist()

    def slices_of(self, queries: Sequence[int]) -> dict[str, list[int]]:
        """Return {slice: places in `queries`}, of the slices that have a name."""
        found: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            if self.slices[query]:
                found.setdefault(self.slices[query], []).append(place)
        return found


class Queries:
    """Finds queries to measure a collection with.

    Args:
        store: where the collections are.
        encoder: turns texts into vectors.
        recent: queries of searches.
        max_queries: most that are measured with; of more, a random choice is.
        max_text_chars: longest query.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        recent: Recent,
        max_queries: int,
        max_text_chars: int,
    ) -> None:
        self._store = store
        self._recent = recent
        self._encoder = encoder
        self._max_queries = max_queries
        self._max_text_chars = max_text_chars

    async def gather(self, collection: Collection, given: QuerySource) -> Asked:
        """Return queries for a collection.

        Raises:
            InvalidRequest: too few, or both texts and vectors, or slices that do not fit; what
                `check` refuses is not looked for again.
            WrongState: vectors of another space.
        """
        vectors_QD = await self._given(collection, given)
        if vectors_QD is None:
            kept = await self._recent.of(collection)
            if len(np.unique(kept.vectors_QD, axis=0)) < _MIN_RECENT:
                return await self._documents(collection)
            return self._choose(kept.vectors_QD, kept.slices, "recent")
        num_queries = len(vectors_QD)
        if num_queries < MIN_QUERIES:
            raise InvalidRequest(
                f"queries: at least {MIN_QUERIES} are needed, got {num_queries}", "queries"
            )
        slices = list(given.slices) or [""] * num_queries
        if len(slices) != num_queries:
            raise InvalidRequest(
                f"slices must be empty or one for each of the {num_queries} queries, got "
                f"{len(slices)}",
                "slices",
            )
        return self._choose(vectors_QD, slices, "given")

    def check(self, given: QuerySource) -> None:
        """Refuse what can be told wrong before anything is encoded; InvalidRequest."""
        if given.slices and not given.texts and given.vectors_QD is None:
            raise InvalidRequest(
                "slices belong to queries that are given; give these too", "slices"
            )
        if any(len(name) > MAX_SLICE_CHARS for name in given.slices):
            raise InvalidRequest(f"slices must have at most {MAX_SLICE_CHARS} characters", "slices")
        for number, text in enumerate(given.texts):
            check_query_text(text, self._max_text_chars, f"texts[{number}]")

    def _choose(self, vectors_QD: Array, slices: Sequence[str], source: Source) -> Asked:
        """Take a random choice, in random order, of more queries than are measured with.

        Each once: one that chose a plan must not certify it, too, because it was asked often.
        """
        _, distinct = np.unique(vectors_QD, axis=0, return_index=True)
        rows = np.random.default_rng(_SEED).permutation(np.sort(distinct))[: self._max_queries]
        return Asked(
            normalize(vectors_QD[rows]), [""] * len(rows), [slices[row] for row in rows], source
        )

    async def _given(self, collection: Collection, given: QuerySource) -> Array | None:
        if given.vectors_QD is not None:
            if given.texts:
                raise InvalidRequest("give the queries as texts or as vectors, not both", "queries")
            check_space(collection, given.space_id, "the queries")
            return given.vectors_QD
        if not given.texts:
            return None
        encoded = await self._encoder.embed_many(collection.model, given.texts, "query")
        check_space(collection, encoded.space_id, f"the encoder's model {collection.model!r}")
        return encoded.vectors_BD

    async def _documents(self, collection: Collection) -> Asked:
        """Let documents ask: the first pages are a random sample."""
        keys: list[str] = []
        blocks: list[Array] = []
        after: str | None = None
        while len(keys) < self._max_queries:
            page = await self._store.vectors(collection.name, after, _PAGE)
            keys.extend(page.keys)
            blocks.append(page.vectors_BD)
            after = page.after
            if after is None:
                break
        if len(keys) < MIN_QUERIES:
            raise InvalidRequest(
                f"collection {collection.name!r} has {len(keys)} points, too few to stand in for "
                f"queries; give at least {MIN_QUERIES} queries",
                "queries",
            )
        keys = keys[: self._max_queries]
        vectors_QD = np.concatenate(blocks)[: len(keys)]
        return Asked(normalize(vectors_QD), keys, [""] * len(keys), "documents")


def check_query_text(text: str, max_chars: int, param: str) -> None:
    """Refuse a query that is blank or too long; InvalidRequest."""
    if not text.strip() or len(text) > max_chars:
        raise InvalidRequest(
            f"{param} must have 1 to {max_chars} characters that are not blank", param
        )
