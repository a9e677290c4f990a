"""Changes of live collections: other sizes, or nested ones. Each survives the death of its router.

What is to be done is kept with the collection before it begins, and how far it is. A router says
now and then that it is at it; what nobody has been at for a while, another router, or the same
one after a restart, goes on with. Every step may be done twice. Searches and writes go on during
all of it, and see the old sizes up to the one moment in which the new ones count.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Sequence

from services.router.changes.change import Calibrated, Change, Kind, size_rows
from services.router.changes.running import Running
from services.router.changes.sample import Sampler
from services.router.metrics import RouterMetrics
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.calibration import Calibration
from services.router.rotation import Rotation
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.store import Collection, Store
from services.router.trainer_client import TrainerClient
from services.shared.errors import InvalidRequest, NotFound, ServiceError, WrongState

log = logging.getLogger(__name__)

# What nested sizes are made of where the caller names none: parts of the full width that keep
# most of it (see `bench/nest.py`), in codes of four bits.
_NESTED_PARTS = (6, 4)
_NESTED_STEP = 8
_SHORTEST_NESTED, _LONGEST_NESTED = 16, 256
_BEATS = 4
"""So many times in the time after which a change counts as left by its router it is seen."""


class Changes:
    """Begins, goes on with and ends changes.

    Args:
        store: where the collections are.
        calibrator: measures a collection anew in the end.
        sampler: hands vectors to the trainer.
        trainer: learns rotations.
        metrics: counts changes.
        lease_s: a change that no router was seen at for so long is gone on with.
    """

    def __init__(
        self,
        store: Store,
        calibrator: Calibrator,
        sampler: Sampler,
        trainer: TrainerClient,
        metrics: RouterMetrics,
        lease_s: float,
    ) -> None:
        self._store = store
        self._calibrator = calibrator
        self._sampler = sampler
        self._trainer = trainer
        self._metrics = metrics
        self._lease_s = lease_s
        self._name = uuid.uuid4().hex
        self._running: dict[str, Running] = {}
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on with what others have left, from now on."""
        self._watch = asyncio.create_task(self._watch_for_ever())

    async def stop(self) -> None:
        """Leave what is under way; it is gone on with after a restart."""
        tasks = [running.task for running in self._running.values() if running.task]
        for task in [*tasks, *([self._watch] if self._watch else [])]:
            task.cancel()
        await asyncio.gather(
            *tasks, *([self._watch] if self._watch else []), return_exceptions=True
        )

    async def resize(self, name: str, requests: Sequence[SizeRequest]) -> Running:
        """Begin to give a collection other sizes.

        Raises:
            InvalidRequest: a size is out of bounds.
            WrongState: the collection is being changed already.
        """
        collection = await self._store.find(name)
        if not requests:
            raise InvalidRequest("sizes must name what the collection shall have", "sizes")
        resolve_sizes(requests, collection.full, nesting=collection.nesting)
        return await self._begin(collection, "resize", requests, _calibrated(collection))

    async def nest(
        self, name: str, requests: Sequence[SizeRequest], calibrated: Calibrated | None
    ) -> Running:
        """Begin to learn a rotation from a collection's vectors and to add nested sizes.

        Args:
            name: of the collection, or an alias.
            requests: the nested sizes, besides those that the collection has; empty: a sixth and a
                quarter of the full width, in codes of four bits.
            calibrated: how to measure it in the end; None: as it was, or by default.
        """
        collection = await self._store.find(name)
        nested = list(requests) or _default_nested(collection.full)
        if not all(request.is_nested for request in nested):
            raise InvalidRequest(
                "sizes must be nested ones; those that the collection has stay", "sizes"
            )
        plain = [
            SizeRequest(size.dim, size.quantization, size.hnsw_m, size.placement)
            for size in collection.sizes
            if not size.is_nested
        ]
        wanted = [*plain, *nested]
        resolve_sizes(wanted, collection.full, nesting="to be learned")
        calibrated = calibrated or _calibrated(collection) or Calibrated()
        self._calibrator.check(_calibrate(collection.name, calibrated))
        await self._sampler.check(collection)
        return await self._begin(collection, "nest", wanted, calibrated)

    async def cancel(self, name: str) -> None:
        """End a change before its end; what was built is thrown away.

        Raises:
            WrongState: nothing is being changed, or by another router.
        """
        collection = await self._store.find(name)
        running = self._running.get(collection.name)
        change = read_change(collection)
        if change is None or (running is None and not change.error and self._is_held(change)):
            raise WrongState(
                f"collection {collection.name!r} is not being changed by this router; "
                "GetCollection shows its change, if there is one"
            )
        try:
            if running is not None and running.task is not None:
                running.is_cancelled = True
                running.task.cancel()
                await asyncio.gather(running.task, return_exceptions=True)
                change = running.change
            if change.job_id:
                with contextlib.suppress(ServiceError):
                    await self._trainer.cancel(change.job_id)
            await self._store.annotate(collection.name, "change", None)
        finally:
            if running is not None:
                self._running.pop(collection.name, None)

    def running(self, name: str) -> Running | None:
        """Return the change of a collection that this router is at."""
        return self._running.get(name)

    def _is_left(self, collection: Collection) -> bool:
        change = read_change(collection)
        if change is None or change.error or collection.name in self._running:
            return False
        return not self._is_held(change)

    def _is_held(self, change: Change) -> bool:
        return time.time() - change.seen_at < self._lease_s

    async def _begin(
        self,
        collection: Collection,
        kind: Kind,
        requests: Sequence[SizeRequest],
        calibrated: Calibrated | None,
    ) -> Running:
        before = read_change(collection)
        if collection.name in self._running or (before is not None and not before.error):
            raise WrongState(
                f"collection {collection.name!r} is being changed already; wait for its end, or "
                "CancelChange"
            )
        change = Change(
            kind=kind, sizes=size_rows(requests), calibrated=calibrated,
            step="sample" if kind == "nest" else "build",
        )  # fmt: skip
        return await self._go(collection.name, change)

    async def _go(self, name: str, change: Change) -> Running:
        running = self._running[name] = Running(change)
        try:
            await self._keep(name, running)
        except BaseException:
            del self._running[name]
            raise
        running.task = asyncio.create_task(self._run(name, running))
        running.task.add_done_callback(_read)
        return running

    async def _keep(self, name: str, running: Running, **progress: object) -> None:
        """Write with the collection how far a change is, and that we are at it."""
        seen = {"owner": self._name, "seen_at": time.time()}
        running.change = running.change.model_copy(update=progress | seen)
        await self._store.annotate(name, "change", running.change.model_dump(mode="json"))

    async def _run(self, name: str, running: Running) -> None:
        beat = asyncio.create_task(self._beat(name, running))
        kind = running.change.kind
        log.info("changing %s: %s", name, kind)
        outcome = "left"
        try:
            await self._do(name, running)
            await self._store.annotate(name, "change", None)
            outcome = "done"
            log.info("changed %s: %s", name, kind)
        except NotFound:
            outcome = "gone"
            raise
        except ServiceError as error:
            outcome = "failed"
            log.warning("%s could not be changed: %s", name, error.message)
            with contextlib.suppress(ServiceError):
                await self._keep(name, running, error=error.message)
            raise
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            if not running.is_cancelled:  # until it is forgotten, nobody may go on with it
                del self._running[name]
            self._metrics.changes.labels(kind, outcome).inc()

    async def _do(self, name: str, running: Running) -> None:
        """Do what is left of a change, from top to bottom."""
        change = running.change
        collection = await self._store.find(name)
        rotation = await self._learn(collection, running) if change.kind == "nest" else None
        nesting = rotation.id if rotation else collection.nesting
        sizes = resolve_sizes(change.requests(), collection.full, nesting=nesting)
        if sizes != collection.sizes:
            await self._keep(name, running, step="build")
            is_new = rotation is not None and nesting != collection.nesting
            await self._store.resize(
                name, sizes, rotation if is_new else None,
                lambda done, total: running.tell("build", done, total),
            )  # fmt: skip
        if change.calibrated is not None:
            await self._keep(name, running, step="calibrate")
            await self._calibrate(name, running, change.calibrated)

    async def _learn(self, collection: Collection, running: Running) -> Rotation:
        job_id = running.change.job_id
        if not job_id:
            documents, queries = await self._sampler.hand_over(
                collection, lambda done, total: running.tell("sample", done, total)
            )
            dims = [size.dim for size in running.change.sizes if size.is_nested]
            job_id = await self._trainer.nest(running.change.id, documents, queries, sorted(dims))
            await self._keep(collection.name, running, step="learn", job_id=job_id)
        learned = await self._trainer.wait(
            job_id, lambda done, total: running.tell("learn", done, total)
        )
        running.quality = learned.quality
        if learned.rotation_DD.shape[1] != collection.full:
            raise ServiceError("the trainer's rotation is of another width than the collection")
        longest = max(size.dim for size in running.change.sizes if size.is_nested)
        return Rotation.of(learned.rotation_DD[:longest].copy())

    async def _calibrate(self, name: str, running: Running, calibrated: Calibrated) -> None:
        await self._calibrator.run(
            _calibrate(name, calibrated),
            lambda step, done, total: running.tell(f"calibrate: {step}", done, total),
        )

    async def _beat(self, name: str, running: Running) -> None:
        """Say now and then that we are at it."""
        while True:
            await asyncio.sleep(self._lease_s / _BEATS)
            with contextlib.suppress(ServiceError):
                await self._keep(name, running)

    async def _watch_for_ever(self) -> None:
        while True:
            try:
                await self._take_over()
            except ServiceError as error:
                log.warning("changes could not be looked for: %s", error.message)
            await asyncio.sleep(self._lease_s / _BEATS)

    async def _take_over(self) -> None:
        for listed in await self._store.collections():
            if not self._is_left(listed):
                continue
            collection = await self._store.find(listed.name)  # it may have ended meanwhile
            change = read_change(collection)
            if change is not None and self._is_left(collection):
                log.info("going on with a change of %s: %s", collection.name, change.kind)
                await self._go(collection.name, change)


def read_change(collection: Collection) -> Change | None:
    """Return what is kept of a collection's change; None: it has none."""
    return Change.model_validate(collection.change) if collection.change else None


def _read(task: "asyncio.Task[None]") -> None:
    """Take note of how it ended; who follows it hears so, and else the log has it."""
    if not task.cancelled():
        task.exception()


def _calibrated(collection: Collection) -> Calibrated | None:
    if collection.calibration is None:
        return None
    return Calibrated.like(Calibration.model_validate(collection.calibration))


def _calibrate(name: str, calibrated: Calibrated) -> Calibrate:
    return Calibrate(
        name, calibrated.limit, calibrated.target, calibrated.objective, calibrated.confidence
    )


def _default_nested(full: int) -> list[SizeRequest]:
    dims = {
        min(max(full // part // _NESTED_STEP * _NESTED_STEP, _SHORTEST_NESTED), _LONGEST_NESTED)
        for part in _NESTED_PARTS
    }
    return [SizeRequest(dim, "turbo4", is_nested=True) for dim in sorted(dims) if dim < full]
