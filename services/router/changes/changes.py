"""Changes of live collections. Each survives the death of its router.

What is to be done is kept with the collection before it begins, and how far it is. A router says
now and then that it is at it; what nobody has been at for a while, another router, or the same
one after a restart, goes on with. Searches and writes go on during all of it.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Mapping

from services.router.changes.change import Change, Kind, read_change
from services.router.changes.running import Keep, Running, Work
from services.router.metrics import RouterMetrics
from services.router.storage.store import Collection, Store
from services.shared.errors import (
    NotFound,
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
    WrongState,
)

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
_BEATS = 4
"""So many times in the time after which a change counts as left by its router it is seen."""


class Changes:
    """Begins, goes on with and ends changes.

    Args:
        store: where the collections are.
        works: what each kind of change does.
        metrics: counts changes.
        lease_s: a change that no router was seen at for so long is gone on with.
        patience_s: longest that a change waits for a service that is away.
    """

    def __init__(
        self,
        store: Store,
        works: Mapping[Kind, Work],
        metrics: RouterMetrics,
        lease_s: float,
        patience_s: float,
    ) -> None:
        self._store = store
        self._works = works
        self._metrics = metrics
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._name = uuid.uuid4().hex
        self._running: dict[str, Running] = {}
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on with what others have left, from now on."""
        self._watch = asyncio.create_task(self._watch_for_ever())

    async def stop(self) -> None:
        """Leave what is under way; it is gone on with after a restart."""
        tasks = [self._watch, *(running.task for running in self._running.values())]
        present = [task for task in tasks if task is not None]
        for task in present:
            task.cancel()
        await asyncio.gather(*present, return_exceptions=True)

    def check_free(self, collection: Collection) -> None:
        """Refuse a collection that is being changed; WrongState."""
        before = read_change(collection)
        if collection.name in self._running or (before is not None and not before.error):
            raise WrongState(
                f"collection {collection.name!r} is being changed already; wait for its end, or "
                "CancelChange"
            )

    async def begin(self, collection: Collection, change: Change) -> Running:
        """Keep a change with its collection, and begin it.

        Raises:
            WrongState: the collection is being changed already.
        """
        self.check_free(collection)
        return await self._go(collection.name, change)

    async def cancel(self, name: str) -> None:
        """End a change before its end, and leave the collection as it was.

        Raises:
            WrongState: nothing is being changed, or by another router.
        """
        collection = await self._store.find(name)
        running = self._running.get(collection.name)
        change = read_change(collection)
        is_elsewhere = running is None and change is not None and self._is_held(change)
        if change is None and collection.mirror is not None:
            raise WrongState(
                f"collection {collection.name!r} is being migrated to {collection.mirror['to']!r}; "
                "give that name"
            )
        if change is None or is_elsewhere:
            raise WrongState(
                f"collection {collection.name!r} is not being changed by this router; "
                "GetCollection shows its change, if there is one"
            )
        if change.step == "watch":
            raise WrongState(
                f"collection {collection.name!r} is in use already; RollBack or FinishMigration "
                "ends its migration"
            )
        try:
            if running is not None and running.task is not None:
                running.is_cancelled = True
                running.task.cancel()
                await asyncio.gather(running.task, return_exceptions=True)
                change = running.change
            await self._store.annotate(collection.name, "change", None)
            await self._works[change.kind].undo(collection.name, change)
        finally:
            if running is not None:
                self._running.pop(collection.name, None)

    def running(self, name: str) -> Running | None:
        """Return the change of a collection that this router is at."""
        return self._running.get(name)

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
        over = asyncio.Event()
        beat = asyncio.create_task(self._beat(name, running, over))
        kind = running.change.kind
        log.info("changing %s: %s", name, kind)
        outcome = "left"

        async def keep(**progress: object) -> None:
            await self._keep(name, running, **progress)

        try:
            try:
                is_done = await self._do(name, running, keep)
            finally:  # not cancelled: what it writes last must not come after what we do
                over.set()
                await beat
            if is_done:
                await self._store.annotate(name, "change", None)
                outcome = "done"
                log.info("changed %s: %s", name, kind)
            else:
                outcome = "waiting"
                log.info("changing %s: %s is %s", name, kind, running.change.step)
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
            if not running.is_cancelled:  # until it is forgotten, nobody may go on with it
                del self._running[name]
            self._metrics.changes.labels(kind, outcome).inc()

    async def _do(self, name: str, running: Running, keep: Keep) -> bool:
        """Do what is left of a change; what fails because a service is away, once more."""
        wait_s, give_up = _FIRST_WAIT_S, time.monotonic() + self._patience_s
        while True:
            before = running.progress
            try:
                return await self._works[running.change.kind].do(name, running, keep)
            except (Unavailable, Overloaded, TookTooLong) as error:
                if running.progress != before:  # it got on since it failed last
                    wait_s, give_up = _FIRST_WAIT_S, time.monotonic() + self._patience_s
                if time.monotonic() + wait_s > give_up:
                    raise
                running.tell(f"waits: {error.message}", 0, 0)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _beat(self, name: str, running: Running, over: asyncio.Event) -> None:
        """Say now and then that we are at it."""
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), self._lease_s / _BEATS)
                return
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

    def _is_left(self, collection: Collection) -> bool:
        """Say whether somebody should be at its change, and nobody is."""
        change = read_change(collection)
        if change is None or change.error or change.is_waiting:
            return False
        return collection.name not in self._running and not self._is_held(change)

    def _is_held(self, change: Change) -> bool:
        is_at_work = not (change.error or change.is_waiting)
        return is_at_work and time.time() - change.seen_at < self._lease_s


def _read(task: "asyncio.Task[None]") -> None:
    """Take note of how it ended; who follows it hears so, and else the log has it."""
    if not task.cancelled():
        task.exception()
