"""A collection in use under Qdrant Edge: its worker, and who may do what to it now."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.router.storage.edge_folder import Stored
from services.router.storage.edge_process import EdgeWorker
from services.router.storage.metadata import to_metadata
from services.router.storage.store import Collection, not_found


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How workers are started."""

    max_waiting: int
    """Requests that may wait at one."""
    start_timeout_s: float
    """Longest wait for one to open its shard."""
    on_restart: Callable[[], None]
    """Called when one that had died is started again."""

    async def start(
        self, collection: Collection, shard: Path, is_builder: bool = False
    ) -> EdgeWorker:
        """Start a worker on a shard."""
        return await EdgeWorker.start(
            worker_metadata(collection), shard, self.max_waiting, self.start_timeout_s, is_builder
        )


@dataclass(slots=True, eq=False)
class OpenCollection:
    """A collection in use."""

    stored: Stored
    options: WorkerOptions
    worker: EdgeWorker | None = None
    is_dropped: bool = False
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its worker or what is written of it changes."""
    writes: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a write."""
    rebuilding: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while another shard is built for it."""
    builder: EdgeWorker | None = None
    touched: set[str] | None = None
    """Keys of points written since a rebuild began; None: there is none."""

    @property
    def collection(self) -> Collection:
        return self.stored.collection

    def check_there(self) -> None:
        """Refuse what comes after it was dropped."""
        if self.is_dropped:
            raise not_found(self.collection.name)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[EdgeWorker]:
        """Have its points for oneself; searches go on."""
        async with self.writes:
            yield await self.running()

    def touch(self, keys: list[str]) -> None:
        """Note, before a write, what it may change."""
        if self.touched is not None:
            self.touched.update(keys)

    async def running(self) -> EdgeWorker:
        """Return its worker, starting one if there is none or it died."""
        self.check_there()
        if self.worker is not None and self.worker.is_alive:
            return self.worker
        async with self.starting:
            self.check_there()  # dropped while we waited
            if self.worker is not None and self.worker.is_alive:
                return self.worker
            if self.worker is not None:
                self.options.on_restart()
                await self.worker.stop()
            self.worker = await self.options.start(self.collection, self.stored.shard)
            return self.worker


def worker_metadata(collection: Collection) -> str:
    """Return what a worker must know of a collection: its sizes, and nothing that grows."""
    return json.dumps(to_metadata(replace(collection, calibration=None, change=None, mirror=None)))
