"""Puts files into vector stores: read, cut, encode, write; and takes them out again.

What is to be done is told from the database alone, so that nothing is lost when the process is, and
several routers may share the work: each file is one router's while that says so. A chunk's point
has an id of its file and its number, and how many there may be is noted before they are written:
what is done twice overwrites itself, and what is taken out leaves nothing behind.
"""

import asyncio
import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from services.router.metrics import RouterMetrics
from services.router.upsert import Writer
from services.router.vector_stores.attributes import to_point
from services.router.vector_stores.chunk_points import ChunkPoints, LostWork, point_id
from services.router.vector_stores.reader import CannotRead, Reader
from services.router.vector_stores.rows import ErrorCode, StoreFile
from services.router.vector_stores.stores import VectorStore, VectorStores
from services.router.vector_stores.work import StoreWork
from services.shared.errors import (
    NotFound,
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
)
from services.shared.files import Files

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 30.0
_BEATS = 4
"""So many times in the time after which a file counts as left by its router it is seen."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
# Files that wait for another try; with as many, nothing is there that they all need.
_MAX_WAITING = 1000
# What a later try may do better.
_PASSING = (Overloaded, Unavailable, TookTooLong)


@dataclass(frozen=True, slots=True)
class _Running:
    """A file that this router is at."""

    file: StoreFile
    """As it stood when the work began."""
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Later:
    """A file that waits for its next try."""

    since: float
    until: float
    wait_s: float = _FIRST_WAIT_S


class Ingester:
    """Does the work on the files of all vector stores, until it is stopped.

    Args:
        stores: tells the collection of each.
        work: tells what is to be done, and is told what was.
        files: has the bytes.
        writer: writes chunks.
        readers: one for each file at once.
        folder: for copies of files while they are read; emptied at the start.
        batch_points: chunks encoded and written at once.
        max_document_bytes: longest file that is read.
        retry_s: longest that a file waits for an encoder or a storage that cannot be reached.
        lease_s: a file that no router was seen at for so long is gone on with.
        metrics: gets how files ended.
    """

    def __init__(
        self,
        stores: VectorStores,
        work: StoreWork,
        files: Files,
        writer: Writer,
        readers: list[Reader],
        folder: Path,
        batch_points: int,
        max_document_bytes: int,
        retry_s: float,
        lease_s: float,
        metrics: RouterMetrics,
    ) -> None:
        self._stores = stores
        self._work = work
        self._files = files
        self._writer = writer
        self._readers = readers
        self._folder = folder
        self._batch_points = batch_points
        self._max_document_bytes = max_document_bytes
        self._retry_s = retry_s
        self._lease_s = lease_s
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._taking = asyncio.Lock()
        self._running: dict[int, _Running] = {}
        self._held: set[int] = set()
        self._later: dict[int, _Later] = {}
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin, with what was left undone."""
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        await asyncio.to_thread(self._folder.mkdir, parents=True)
        self._workers = [asyncio.create_task(self._serve(reader)) for reader in self._readers]
        self._workers.append(asyncio.create_task(self._beat()))

    async def stop(self) -> None:
        """End; what is not done is done after the next start."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await asyncio.gather(*(reader.close() for reader in self._readers))

    def kick(self) -> None:
        """Say that there is something to do."""
        self._wake.set()

    async def interrupt(self, numbers: Iterable[int]) -> None:
        """Stop working on some files, whose rows say something else now.

        Another router that is at one of them finds that out by itself, before it writes on.
        """
        running = [self._running[number].task for number in numbers if number in self._running]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def remove(self, file: StoreFile) -> None:
        """Take a hidden file's chunks out now; if that fails, it is tried again by itself."""
        self._held.add(file.number)
        try:
            await self.interrupt([file.number])
            current = await asyncio.to_thread(self._work.take, file.number)
            if current is not None:  # else whichever router is at it ends it
                await self._remove(current)
        except ServiceError as error:
            log.warning("%s is taken out of %s later: %s", file.file_id, file.store_id, error)
            await asyncio.to_thread(self._work.release, file.number)
        finally:
            self._held.discard(file.number)
            self.kick()

    async def _serve(self, reader: Reader) -> None:
        while True:
            try:
                running = await self._take(reader)
                task, number = running.task, running.file.number
                try:
                    await asyncio.wait({task})
                    if not task.cancelled():
                        task.result()
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    del self._running[number]
                    await asyncio.to_thread(self._work.release, number)
            except Exception as error:  # the database's, for one
                log.error("work on vector stores goes on later", exc_info=error)
                await asyncio.sleep(_FIRST_WAIT_S)

    async def _beat(self) -> None:
        """Say now and then what we are at, and end what is no longer ours to do."""
        while True:
            await asyncio.sleep(self._lease_s / _BEATS)
            running = dict(self._running)
            try:
                ours = await asyncio.to_thread(self._work.beat, list(running)) if running else {}
            except Exception as error:  # the database's; what we are at may be taken meanwhile
                log.error("files that are worked on could not be held", exc_info=error)
                continue
            for number, at in running.items():
                now = ours.get(number)
                if now is None or now.state not in (at.file.state, "completed"):
                    at.task.cancel()

    async def _take(self, reader: Reader) -> _Running:
        """Wait for something to do, and begin it."""
        while True:
            async with self._taking:
                self._wake.clear()
                now = time.monotonic()
                waiting = {number for number, later in self._later.items() if later.until > now}
                without = waiting | self._held | set(self._running)
                file = None
                if len(waiting) < _MAX_WAITING:
                    file = await asyncio.to_thread(self._work.pending, without)
                # Held or begun meanwhile: then this is old news.
                if file is not None and file.number not in self._held:
                    self._wake.set()  # there may be more, for the others
                    file = await asyncio.to_thread(self._work.take, file.number)
                    if file is None:  # another router was quicker
                        continue
                    task = asyncio.create_task(self._process(file, reader))
                    running = self._running[file.number] = _Running(file, task)
                    return running
            look_again = min(
                _LOOK_AGAIN_S,
                self._lease_s,
                *(self._later[number].until - now for number in waiting),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), look_again)

    async def _process(self, file: StoreFile, reader: Reader) -> None:
        """Do what a file's row says; fails only where that cannot be noted either."""
        try:
            if file.state == "deleting":
                await self._remove(file)
            elif file.state in ("failed", "cancelled"):
                await self._clear(file, await self._store(file))
            elif file.state == "completed":
                await self._set_attributes(file, await self._store(file))
            else:
                await self._ingest(file, await self._store(file), reader)
            self._later.pop(file.number, None)
        except LostWork:
            log.info("%s in %s is no longer to be done here", file.file_id, file.store_id)
        except CannotRead as error:
            log.info("%s cannot be read: %s", file.file_id, error.message)
            await self._fail(file, error.code, error.message)
        except _PASSING as error:
            await self._put_off(file, error)
        except ServiceError as error:
            log.warning("%s in %s failed: %s", file.file_id, file.store_id, error)
            await self._fail(file, "server_error", error.message)
            self._put_away(file.number)
        except Exception as error:
            log.error("%s in %s failed", file.file_id, file.store_id, exc_info=error)
            await self._fail(file, "server_error", "internal error")
            self._put_away(file.number)

    async def _put_off(self, file: StoreFile, error: ServiceError) -> None:
        """Try a file again later, or give it up after long enough."""
        now = time.monotonic()
        later = self._later.get(file.number)
        if later is None or now - later.until > _LONGEST_WAIT_S:  # that was another matter
            later = self._later[file.number] = _Later(now, now)
        is_over = now + later.wait_s - later.since > self._retry_s
        if file.state == "in_progress" and is_over:
            del self._later[file.number]
            await self._fail(file, "server_error", error.message)
            return
        log.info("%s in %s waits: %s", file.file_id, file.store_id, error)
        later.until = now + later.wait_s
        later.wait_s = min(2 * later.wait_s, _LONGEST_WAIT_S)

    async def _fail(self, file: StoreFile, code: ErrorCode, message: str) -> None:
        if file.state in ("in_progress", "completed"):
            self._metrics.ingested_files.labels("failed").inc()
        await asyncio.to_thread(self._work.fail, file, code, message)

    def _put_away(self, number: int) -> None:
        """Let a file rest that would fail again at once."""
        now = time.monotonic()
        self._later[number] = _Later(now, now + _LONGEST_WAIT_S)

    async def _store(self, file: StoreFile) -> VectorStore:
        return await asyncio.to_thread(self._stores.get, file.store_id, None)

    async def _remove(self, file: StoreFile) -> None:
        # Its store may be going as a whole, or be gone.
        with contextlib.suppress(NotFound):
            await self._clear(file, await self._store(file))
        await asyncio.to_thread(self._work.remove, file.number)

    async def _clear(self, file: StoreFile, store: VectorStore) -> None:
        """Delete a file's points."""
        with contextlib.suppress(NotFound):  # an expired store has no collection any more
            for ids in self._point_ids(file):
                await self._writer.delete(store.collection, ids, store.tenant)
        await asyncio.to_thread(self._work.set_points, file, 0)

    async def _set_attributes(self, file: StoreFile, store: VectorStore) -> None:
        """Give a file's chunks the attributes that it has by now; nothing is encoded."""
        attributes = to_point(file.attributes)
        for ids in self._point_ids(file):
            await self._writer.set_attributes(store.collection, ids, attributes, store.tenant)
        await asyncio.to_thread(self._work.complete, file, file.num_points, file.usage_bytes)

    def _point_ids(self, file: StoreFile) -> Iterator[list[str]]:
        """Give the ids of a file's points, as many at once as a call takes."""
        for start in range(0, file.num_points, self._batch_points):
            numbers = range(start, min(start + self._batch_points, file.num_points))
            yield [point_id(file.file_id, number) for number in numbers]

    async def _ingest(self, file: StoreFile, store: VectorStore, reader: Reader) -> None:
        try:
            uploaded = await self._files.get(file.file_id, store.tenant)
        except NotFound as error:
            raise CannotRead("invalid_file", "the file was deleted") from error
        if uploaded.num_bytes > self._max_document_bytes:
            raise CannotRead(
                "invalid_file",
                f"the file has {uploaded.num_bytes} bytes; at most "
                f"{self._max_document_bytes} are read",
            )
        if file.num_points:
            # Of a try that was cut off, or cut otherwise.
            await self._clear(file, store)
            file = replace(file, num_points=0)
        path = self._folder / uuid.uuid4().hex
        chunks = ChunkPoints(file, store.collection, self._work, self._batch_points)
        try:
            await self._files.fetch(file.file_id, path)
            read = reader.read(path, uploaded.filename, file.chunking)
            async with contextlib.aclosing(read):
                async for _ in self._writer.upsert(chunks.batches(read), store.tenant):
                    pass
        finally:
            path.unlink(missing_ok=True)
        usage_bytes = chunks.text_bytes + 4 * store.dim * chunks.num_points
        await asyncio.to_thread(self._work.complete, file, chunks.num_points, usage_bytes)
        self._metrics.ingested_files.labels("completed").inc()
        log.info("%s is in %s: %s chunks", file.file_id, file.store_id, chunks.num_points)
