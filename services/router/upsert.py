"""One stream of upserts: read, encode, write, acknowledge, batch by batch and in order.

While one batch is written some that follow are read and encoded, so that the encoder always has
work at hand; no more than these wait here, so a fast caller is slowed down by the stream itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from services.router import tenants
from services.router.attributes import Attributes, check_attributes
from services.router.encoder_client import EncoderClient
from services.router.gate import WriteGate
from services.router.metrics import RouterMetrics
from services.router.mirror import Mirror, Mirrored
from services.router.search import read_vectors
from services.router.space import check_space
from services.router.storage.store import Collection, Point, Store
from services.shared.errors import InvalidRequest, ServiceError
from services.shared.vectors import Array

MAX_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class Batch:
    """Points as they came."""

    collection: str
    """Name or alias; empty in later batches of a stream: the first one's."""
    points: list[Point]
    vectors: bytes | None = None
    """Full-size vectors, little-endian float32; None: the texts are encoded."""
    space_id: str = ""
    tenant: str | None = None
    """Whose the points become, whatever they say; None: the operator's."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A batch that is durable."""

    num_points: int
    total_points: int
    truncated_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A batch with its vectors, which fit the collection."""

    batch: Batch
    collection: Collection
    vectors_BD: Array
    truncated_ids: tuple[str, ...]
    mirrored: Mirrored | None


class Writer:
    """Writes points.

    Args:
        store: where to.
        encoder: turns texts into vectors.
        gate: lets writes wait while a collection is switched.
        mirror: repeats writes to a collection that is being migrated.
        metrics: gets stage times and counts.
        max_batch_points: most points of one batch.
        max_text_chars: longest text.
        read_ahead: batches of one stream that are read and encoded before the one that is written.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        gate: WriteGate,
        mirror: Mirror,
        metrics: RouterMetrics,
        max_batch_points: int,
        max_text_chars: int,
        read_ahead: int = 4,
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._gate = gate
        self._mirror = mirror
        self._metrics = metrics
        self._max_batch_points = max_batch_points
        self._max_text_chars = max_text_chars
        self._read_ahead = read_ahead

    async def upsert(
        self, batches: AsyncIterator[Batch], tenant: str | None
    ) -> AsyncIterator[Acknowledged]:
        """Write batches, yielding once for each that is durable; index at the end.

        Args:
            batches: in the order in which they are written.
            tenant: whose the points become; None: the operator's.

        Raises:
            ServiceError: of the class of what went wrong; the message begins with the batch's
                number. Batches acknowledged before it stay.
        """
        stream = _Numbered(batches, tenant)
        ahead = deque(asyncio.create_task(self._next(stream)) for _ in range(self._read_ahead))
        written: dict[str, None] = {}
        total = 0
        number = 0
        try:
            while (ready := await ahead[0]) is not None:
                ahead.popleft()
                ahead.append(asyncio.create_task(self._next(stream)))
                number += 1
                with _naming_batch(number):
                    written |= dict.fromkeys(await self._write(ready))
                total += len(ready.batch.points)
                yield Acknowledged(len(ready.batch.points), total, ready.truncated_ids)
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
        with self._metrics.stage("settle"):
            for name in written:
                await self._store.settle(name)

    async def delete(self, name: str, ids: list[str], tenant: str | None) -> None:
        """Delete points of a tenant or (None) of the operator; when it returns, that is durable."""
        self._check_ids(ids)
        async with self._gate.writing(name, tenant) as collection:
            with self._metrics.stage("write"):
                await self._store.delete(collection.name, ids, tenant)
                await self._mirror.delete(collection, ids, tenant)

    async def set_attributes(
        self, name: str, ids: list[str], attributes: Attributes, tenant: str | None
    ) -> list[str]:
        """Replace the attributes of points of a tenant or (None) of the operator, durably.

        Returns:
            Those of the ids that there is no point of.
        """
        self._check_ids(ids)
        check_attributes(attributes)
        async with self._gate.writing(name, tenant) as collection:
            with self._metrics.stage("write"):
                unknown = await self._store.set_attributes(collection.name, ids, attributes, tenant)
                await self._mirror.set_attributes(collection, ids, attributes, tenant)
        return unknown

    def _check_ids(self, ids: list[str]) -> None:
        if not 1 <= len(ids) <= self._max_batch_points:
            raise InvalidRequest(
                f"ids must be 1 to {self._max_batch_points}, got {len(ids)}", "ids"
            )

    async def _next(self, stream: "_Numbered") -> _Ready | None:
        """Read, check and encode the next batch; None at the end of the stream.

        Of several at once each waits for its turn to read: they have their batches in order.
        """
        async with stream.turn:
            number = stream.number + 1
            with _naming_batch(number):
                batch = await stream.read()
        if batch is None:
            return None
        with _naming_batch(number):
            self._check(batch)
            collection = await tenants.find(self._store, batch.collection, batch.tenant)
            return await self._encode(batch, collection)

    async def _encode(self, batch: Batch, collection: Collection) -> _Ready:
        if batch.vectors is not None:
            check_space(collection, batch.space_id, "the batch")
            rows = len(batch.points)
            vectors_BD = read_vectors(batch.vectors, collection.full, rows, "vectors")
            return await self._mirrored(batch, collection, vectors_BD, ())
        texts = [point.text for point in batch.points]
        with self._metrics.stage("encode"):
            encoded = await self._encoder.embed_many(collection.model, texts, tenant=batch.tenant)
        check_space(collection, encoded.space_id, f"the encoder's model {collection.model!r}")
        truncated = tuple(batch.points[position].id for position in encoded.truncated)
        return await self._mirrored(batch, collection, encoded.vectors_BD, truncated)

    async def _mirrored(
        self,
        batch: Batch,
        collection: Collection,
        vectors_BD: Array,
        truncated_ids: tuple[str, ...],
    ) -> _Ready:
        mirrored = await self._mirror.translate(collection, batch.points, vectors_BD)
        return _Ready(batch, collection, vectors_BD, truncated_ids, mirrored)

    async def _write(self, ready: _Ready) -> list[str]:
        """Write a batch; return the collections that it went to."""
        batch = ready.batch
        async with self._gate.writing(batch.collection, batch.tenant) as collection:
            before = ready.collection
            if collection != before or collection.mirror != before.mirror:
                # Since the batch was encoded the alias moved, or a migration began or ended.
                ready = await self._encode(ready.batch, collection)
            with self._metrics.stage("write"):
                points = ready.batch.points
                await self._store.upsert(collection.name, points, ready.vectors_BD)
                if ready.mirrored is not None:
                    await self._mirror.upsert(points, ready.mirrored)
        self._metrics.written_points.inc(len(ready.batch.points))
        mirrored = [ready.mirrored.name] if ready.mirrored is not None else []
        return [collection.name, *mirrored]

    def _check(self, batch: Batch) -> None:
        if not batch.collection:
            raise InvalidRequest("collection is needed in the first message", "collection")
        if not 1 <= len(batch.points) <= self._max_batch_points:
            raise InvalidRequest(
                f"points must be 1 to {self._max_batch_points}, got {len(batch.points)}", "points"
            )
        if batch.vectors is not None and not batch.space_id:
            raise InvalidRequest("vectors need the space_id they are from", "space_id")
        for position, point in enumerate(batch.points):
            self._check_point(point, f"points[{position}]", needs_text=batch.vectors is None)

    def _check_point(self, point: Point, param: str, needs_text: bool) -> None:
        if not 1 <= len(point.id) <= MAX_ID_CHARS:
            raise InvalidRequest(f"{param}: id must have 1 to {MAX_ID_CHARS} characters", param)
        if needs_text and not point.text.strip():
            raise InvalidRequest(f"{param}: text is empty; without vectors it is needed", param)
        if len(point.text) > self._max_text_chars:
            raise InvalidRequest(
                f"{param}: text must have at most {self._max_text_chars} characters", param
            )
        check_attributes(point.attributes, f"{param}.attributes")


class _Numbered:
    """Reads batches, counts them, carries the collection's name on, and says whose they are."""

    def __init__(self, batches: AsyncIterator[Batch], tenant: str | None) -> None:
        self._batches = batches
        self._tenant = tenant
        self._collection = ""
        self.number = 0
        self.turn = asyncio.Lock()
        """Held by the one that reads; they get it in the order in which they asked."""

    async def read(self) -> Batch | None:
        batch = await anext(self._batches, None)
        if batch is None:
            return None
        self.number += 1
        self._collection = batch.collection or self._collection
        points = [replace(point, tenant=self._tenant) for point in batch.points]
        return replace(batch, collection=self._collection, points=points, tenant=self._tenant)


@contextmanager
def _naming_batch(number: int) -> Iterator[None]:
    """Put the batch's number before what went wrong with it."""
    try:
        yield
    except ServiceError as error:
        named = type(error)(f"batch {number}: {error.message}", error.param)
        named.retry_after_s = error.retry_after_s
        raise named from error
