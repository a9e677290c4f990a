"""Build a collection again in another model's space, then point an alias at it.

Every stored text is encoded anew. Searches on the source go on; writes to it are refused until
the end, so that none is missing in the target. A run that fails or is left by its caller leaves
nothing behind: the target is deleted and the source takes writes again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

import numpy as np

from services.router.encoder_client import EncoderClient, Model
from services.router.gate import WriteGate
from services.router.metrics import RouterMetrics
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.space import check_space
from services.router.storage.store import Collection, Page, Store, check_name, taken
from services.shared.errors import AlreadyExists, NotFound, ServiceError, WrongState
from services.shared.vectors import Array

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reindex:
    """What is asked for."""

    source: str
    """Name or alias."""
    target: str
    model: str
    """Id or alias of the model to encode with."""
    sizes: Sequence[SizeRequest] = ()
    """Empty: the source's."""
    alias: str = ""
    """Pointed at the target in the end; empty: none is."""


class Reindexer:
    """Runs reindexes.

    Args:
        store: where both collections are.
        encoder: encodes the texts anew.
        gate: stops writes meanwhile.
        metrics: gets stage times and counts.
        batch_points: points read, encoded and written at once.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        gate: WriteGate,
        metrics: RouterMetrics,
        batch_points: int,
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._gate = gate
        self._metrics = metrics
        self._batch_points = batch_points

    async def run(self, reindex: Reindex, on_progress: Progress) -> None:
        """Build the target and move the alias.

        Args:
            reindex: what to do.
            on_progress: called with (points written, points in all), first with 0.

        Raises:
            ServiceError: of the class of what went wrong; then nothing has changed.
        """
        source = await self._store.find(reindex.source)
        await self._check_names(reindex)
        model = await self._encoder.get_model(reindex.model)
        requested = reindex.sizes or _same_sizes(source, model.dim)
        sizes = resolve_sizes(requested, model.dim, model.declared_dims)
        target = Collection(reindex.target, model.id, model.space_id, sizes, tenant=source.tenant)
        async with self._gate.closed(source.name), self._gate.closed(target.name):
            await self._check_texts(source)
            await self._store.create(target)
            try:
                await self._fill(source, target, model, on_progress)
                if reindex.alias:
                    await _whole(self._store.set_alias(reindex.alias, target.name))
            except BaseException:
                await _whole(self._abandon(target.name))
                raise
        self._metrics.collections.set(len(await self._store.collections()))

    async def _check_names(self, reindex: Reindex) -> None:
        """Refuse before the work what would fail after it."""
        names = {collection.name for collection in await self._store.collections()}
        check_name(reindex.target, "target")
        if reindex.target in {*names, *await self._store.aliases()}:
            raise taken(reindex.target)
        if reindex.alias:
            check_name(reindex.alias, "alias")
        if reindex.alias in {*names, reindex.target}:
            raise AlreadyExists(f"alias: {reindex.alias!r} is the name of a collection", "alias")

    async def _check_texts(self, source: Collection) -> None:
        without = await self._store.count(source.name, without_text=True)
        if without:
            raise WrongState(
                f"{without} points of collection {source.name!r} have no text, only vectors; they "
                "cannot be encoded anew, so write them with their texts first"
            )

    async def _fill(
        self, source: Collection, target: Collection, model: Model, on_progress: Progress
    ) -> None:
        total = await self._store.count(source.name)
        written = 0
        on_progress(written, total)
        # The next page is encoded while this one is written.
        following = asyncio.create_task(self._encode_page(source, target, model, None))
        try:
            while True:
                page, vectors_BD = await following
                if page.after is not None:
                    following = asyncio.create_task(
                        self._encode_page(source, target, model, page.after)
                    )
                if page.points:
                    with self._metrics.stage("write"):
                        await self._store.upsert(target.name, page.points, vectors_BD)
                    self._metrics.written_points.inc(len(page.points))
                    written += len(page.points)
                    on_progress(written, total)
                if page.after is None:
                    break
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        with self._metrics.stage("settle"):
            await self._store.settle(target.name)
        counted = await self._store.count(target.name)
        if counted != total:
            raise ServiceError(
                f"collection {target.name!r} holds {counted} points after reindexing {total}"
            )

    async def _encode_page(
        self, source: Collection, target: Collection, model: Model, after: str | None
    ) -> tuple[Page, Array]:
        page = await self._store.scroll(source.name, after, self._batch_points)
        if not page.points:
            return page, np.empty((0, model.dim), dtype=np.float32)
        with self._metrics.stage("encode"):
            encoded = await self._encoder.embed_many(
                model.id, [point.text for point in page.points]
            )
        check_space(target, encoded.space_id, f"the encoder's model {model.id!r}")
        return page, encoded.vectors_BD

    async def _abandon(self, name: str) -> None:
        """Delete a target that is not complete; a caller may have left just after it was."""
        if name not in (await self._store.aliases()).values():
            try:
                await self._store.drop(name)
            except NotFound:
                return


def _same_sizes(source: Collection, full: int) -> list[SizeRequest]:
    """Return the source's sizes for a model of another full width, as far as they fit."""
    *short, last = source.sizes
    kept = [SizeRequest(s.dim, s.quantization, s.hnsw_m) for s in short if s.dim < full]
    return [*kept, SizeRequest(full, last.quantization, last.hnsw_m)]


async def _whole(work: Coroutine[None, None, None]) -> None:
    """Do this to its end even if the caller leaves meanwhile."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
