"""A collection in another model's space: filled while the old one lives, then put in its place.

From the first moment each write goes to both (`mirror.py`), so only what was there before is to be
copied, page by page. A page is encoded, or transformed, while others write; it is put into the
target in a moment in which nobody does, without those of its points that were written to since,
as these are there already. How far it is stands in the target's change, so it may end at any point.

Searches see one collection or the other, whole, by one alias. After the switch the old one can be
kept current, so that going back is the same switch again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.router.changes.change import Change
from services.router.encoder_client import EncoderClient
from services.router.gate import WriteGate
from services.router.metrics import RouterMetrics
from services.router.recall.recent import Recent
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.spread import DEFAULT_SPREAD, Spread, check_spread
from services.router.storage.store import (
    Collection,
    KeptQueries,
    Page,
    Point,
    Store,
    check_name,
    point_uuid,
    taken,
)
from services.router.translate import Translator
from services.shared.errors import AlreadyExists, ServiceError, WrongState
from services.shared.vectors import Array

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Migrate:
    """What is asked for."""

    source: str
    """Name or alias."""
    target: str
    model: str
    """Id or alias of the model of the target."""
    sizes: Sequence[SizeRequest] = ()
    """Empty: the source's."""
    alias: str = ""
    """Pointed at the target in the end; empty: none is, and the target is only built."""
    holds: bool = False
    """Wait for `cut_over` when all is ready."""
    keeps_source: bool = False
    """After the switch write to the source too, until `finish`, so that one can go back."""
    spread: Spread = DEFAULT_SPREAD
    """How the target shall lie on a server's nodes; what is not said: as the source does."""


class Migrator:
    """The steps of migrations; `changes.py` keeps how far they are.

    Args:
        store: where both collections are.
        encoder: knows the models.
        translator: makes vectors of the target's space.
        recent: queries of searches.
        gate: lets writes wait for a moment.
        metrics: gets stage times and counts.
        page_points: points read, encoded and written at once.
        most: shards, and replicas of each, that a target may have.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        translator: Translator,
        recent: Recent,
        gate: WriteGate,
        metrics: RouterMetrics,
        page_points: int,
        most: Spread,
    ) -> None:
        self._most = most
        self._store = store
        self._encoder = encoder
        self._translator = translator
        self._recent = recent
        self._gate = gate
        self._metrics = metrics
        self._page_points = page_points

    async def prepare(self, wanted: Migrate) -> tuple[Collection, Collection]:
        """Check what is asked for; return the source, and the target to be created.

        Raises:
            InvalidRequest: a size, a name or the spread is out of bounds.
            NotFound: no such source or model.
            AlreadyExists: a name is taken.
            WrongState: the source is being changed, or points of it have no text and need one.
        """
        check_spread(wanted.spread, self._most)
        source = await self._store.find(wanted.source)
        await self._check_names(wanted)
        if source.mirror is not None:
            other = source.mirror["to"]
            raise WrongState(
                f"collection {source.name!r} is being migrated to {other!r}; CutOver, "
                f"FinishMigration or CancelChange of {other!r} ends that"
            )
        if source.change is not None:
            raise WrongState(f"collection {source.name!r} is being changed already")
        model = await self._encoder.get_model(wanted.model)
        requested = wanted.sizes or same_sizes(source, model.dim)
        sizes = resolve_sizes(requested, model.dim, model.declared_dims)
        target = Collection(
            wanted.target, model.id, model.space_id, sizes, tenant=source.tenant,
            text_index=source.text_index, spread=wanted.spread.or_as(source.spread),
        )  # fmt: skip
        if await self._translator.needs_texts(source, target):
            await self._check_texts(source)
        return source, target

    async def mirror(self, source: Collection, target: str) -> None:
        """Let all writes to the source go to the target too, from now on."""
        async with self._gate.paused(source.name):
            await self._store.annotate(source.name, "mirror", {"to": target})

    async def copy(self, change: Change, target: Collection) -> Page:
        """Copy the next page of the source; return it as it was read."""
        source = await self._store.find(change.source)
        page = await self._store.scroll(
            source.name, change.after, self._page_points, with_vectors=True
        )
        if page.points:
            vectors_BD = await self._translate(source, target, page)
            async with self._gate.paused(source.name):
                await self._put(source, target, page, vectors_BD)
            self._metrics.written_points.inc(len(page.points))
        return page

    async def settle(self, change: Change, target: Collection) -> None:
        """Index the target, and see that nothing is missing."""
        with self._metrics.stage("settle"):
            await self._store.settle(target.name)
        async with self._gate.paused(change.source):
            there = await self._store.count(change.source)
            copied = await self._store.count(target.name)
        if copied != there:
            raise ServiceError(
                f"collection {target.name!r} holds {copied} points and {change.source!r} {there}"
            )

    async def carry_queries(self, change: Change, target: Collection) -> None:
        """Turn the source's recent queries for the target, where that can be without their texts.

        No text of a query is kept, so a model that needs them begins without recent queries.
        """
        source = await self._store.find(change.source)
        queries = await self._recent.of(source)
        if not queries.slices:
            return
        if await self._translator.needs_texts(source, target):
            log.info(
                "%s begins without recent queries: those of %s are kept as vectors only",
                target.name, source.name,
            )  # fmt: skip
            return
        turned_QD = await self._translator.vectors(source, target, (), queries.vectors_QD)
        await self._recent.inherit(target, KeptQueries(turned_QD, queries.slices))

    async def cut_over(self, change: Change, target: str) -> None:
        """Point the alias at the target; the source gets its writes, if it is kept current."""
        await self._switch(change.alias, change.source, target, change.keeps_source)

    async def roll_back(self, change: Change, target: str) -> None:
        """Point the alias at the source again; the target gets its writes."""
        await self._switch(change.alias, target, change.source, keeps=True)

    async def part(self, *names: str) -> None:
        """Let each collection have its own writes only."""
        async with self._gate.paused(*names):
            for name in names:
                await self._store.annotate(name, "mirror", None)

    async def _switch(self, alias: str, before: str, now: str, keeps: bool) -> None:
        async with self._gate.paused(before, now):
            # In this order a write is at both whatever ends in between.
            if keeps:
                await self._store.annotate(now, "mirror", {"to": before})
            if alias:
                await self._store.set_alias(alias, now)
            await self._store.annotate(before, "mirror", None)

    async def _translate(self, source: Collection, target: Collection, page: Page) -> Array:
        assert page.vectors_BD is not None
        with self._metrics.stage("encode"):
            return await self._translator.vectors(source, target, page.points, page.vectors_BD)

    async def _put(
        self, source: Collection, target: Collection, page: Page, vectors_BD: Array
    ) -> None:
        """Write what is still as it was read; all else was written to both meanwhile.

        But for attributes: those that were set meanwhile were set in both, where a point that comes
        only now was not yet. So they are taken as they are now.
        """
        keys = [point_uuid(point.id, point.tenant) for point in page.points]
        now = _by_id(await self._store.read(source.name, keys))
        read = _by_id(page)
        same = {
            row: now[id_][0]
            for row, (id_, (point, vector_D)) in enumerate(read.items())
            if id_ in now
            and now[id_][0].text == point.text
            and np.array_equal(now[id_][1], vector_D)
        }
        if same:
            with self._metrics.stage("write"):
                await self._store.upsert(target.name, list(same.values()), vectors_BD[list(same)])

    async def _check_names(self, wanted: Migrate) -> None:
        """Refuse before the work what would fail after it."""
        names = {collection.name for collection in await self._store.collections()}
        check_name(wanted.target, "target")
        if wanted.target in {*names, *await self._store.aliases()}:
            raise taken(wanted.target)
        if wanted.alias:
            check_name(wanted.alias, "alias")
        if wanted.alias in {*names, wanted.target}:
            raise AlreadyExists(f"alias: {wanted.alias!r} is the name of a collection", "alias")

    async def _check_texts(self, source: Collection) -> None:
        without = await self._store.count(source.name, without_text=True)
        if without:
            raise WrongState(
                f"{without} points of collection {source.name!r} have no text, only vectors; they "
                "cannot be encoded anew, so write them with their texts first"
            )


def _by_id(page: Page) -> dict[tuple[str | None, str], tuple[Point, Array]]:
    vectors_BD = page.vectors_BD if page.vectors_BD is not None else ()
    return {
        (point.tenant, point.id): (point, vector_D)
        for point, vector_D in zip(page.points, vectors_BD, strict=True)
    }


def same_sizes(source: Collection, full: int) -> list[SizeRequest]:
    """Return the source's plain sizes for a model of another full width, as far as they fit."""
    *short, last = source.sizes
    kept = [size.request() for size in short if size.dim < full and not size.is_nested]
    return [*kept, replace(last.request(), dim=full)]
