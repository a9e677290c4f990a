"""Another shard for a collection: indexed, or of other sizes, while searches and writes go on.

The engine answers nothing while it indexes, so a builder, a second process, does that to a shard
of its own. What is written meanwhile goes to the old shard and is noted; it is carried over when
the new one is ready, the last of it while writes wait, and then the new one counts. Up to that
moment nothing has changed, whatever ends.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from services.router.hybrid.text_index import TextIndex
from services.router.rotation import Rotation
from services.router.sizes import Size
from services.router.storage.edge_folder import EdgeFolder, remove
from services.router.storage.edge_open import OpenCollection, worker_metadata
from services.router.storage.edge_process import EdgeWorker, create_shard
from services.router.storage.store import Collection, Progress, resized
from services.shared.errors import ServiceError

POINTS_PER_REQUEST = 256
"""Points in one request to a worker: searches find a gap between two, about 20 ms apart."""
# Writes wait while so many points are carried over, some tenths of a second; of more, most are
# carried while writes go on. They may come faster than that, so the tries are bounded.
_MAX_CARRIED_LAST = 1024
_MAX_CARRIES = 8


async def index(folder: EdgeFolder, opened: OpenCollection) -> None:
    """Index what is not yet in a graph, in a copy; called with `rebuilding` held."""
    async with opened.writing() as worker:
        await worker.call("flush")
        shard = await asyncio.to_thread(folder.copy_shard, opened.stored)
        opened.touched = set()
    await _build(folder, opened, opened.collection.sizes, shard, None)


async def resize(
    folder: EdgeFolder,
    opened: OpenCollection,
    sizes: Sequence[Size],
    rotation: Rotation | None,
    indexing_threshold_kb: int,
    on_progress: Progress,
    text_index: TextIndex | None = None,
) -> None:
    """Write all points anew, at other sizes; called with `rebuilding` held."""
    opened.check_there()
    nesting, shard = opened.collection.nesting, folder.new_shard(opened.stored)
    if rotation is not None:
        await asyncio.to_thread(folder.write_rotation, opened.stored, rotation)
    wanted = worker_metadata(resized(opened.collection, sizes, text_index))
    try:
        await create_shard(wanted, shard, indexing_threshold_kb)
    except BaseException:
        await asyncio.to_thread(remove, shard)
        raise
    async with opened.writes:  # whoever writes now was not noted from its beginning
        opened.touched = set()
    await _build(folder, opened, sizes, shard, on_progress, text_index)
    await asyncio.to_thread(folder.drop_rotation, opened.stored, nesting)


async def _build(
    folder: EdgeFolder,
    opened: OpenCollection,
    sizes: Sequence[Size],
    shard: Path,
    on_progress: Progress | None,
    text_index: TextIndex | None = None,
) -> None:
    """Finish a shard and let it count; `on_progress` is told how far it is filled, if it is."""
    wanted = resized(opened.collection, sizes, text_index)
    try:
        async with _builder(opened, wanted, shard) as builder:
            if on_progress is not None:
                await _fill(opened, builder, on_progress)
            await builder.call("optimize")
            for _ in range(_MAX_CARRIES):
                if len(opened.touched or ()) <= _MAX_CARRIED_LAST:
                    break
                keys, opened.touched = opened.touched or set(), set()
                await _carry(opened, builder, keys)
            await builder.call("flush")
        await _switch(folder, opened, sizes, shard, text_index)
    except BaseException:
        await asyncio.to_thread(remove, shard)
        opened.check_there()  # what failed because it was dropped meanwhile says that
        raise
    finally:
        opened.touched = None


@contextlib.asynccontextmanager
async def _builder(
    opened: OpenCollection, collection: Collection, shard: Path
) -> AsyncIterator[EdgeWorker]:
    builder = await opened.options.start(collection, shard, is_builder=True)
    opened.builder = builder
    try:
        yield builder
    except BaseException:
        await builder.kill()
        raise
    finally:
        opened.builder = None
    await builder.stop()


async def _fill(opened: OpenCollection, builder: EdgeWorker, on_progress: Progress) -> None:
    worker = await opened.running()
    total = await worker.call("count", conditions=None)
    done, after = 0, None
    on_progress(done, total)
    while True:
        worker = await opened.running()
        ids, payloads, vectors, after = await worker.call(
            "page", after=after, limit=POINTS_PER_REQUEST
        )
        if ids:
            await builder.call("upsert", ids=ids, payloads=payloads, vectors=vectors)
            done += len(ids)
            on_progress(done, max(total, done))
        if after is None:
            return


async def _carry(opened: OpenCollection, target: EdgeWorker, keys: set[str]) -> None:
    """Bring points of the new shard to what they are in the old one."""
    ordered = sorted(keys)
    for start in range(0, len(ordered), POINTS_PER_REQUEST):
        some = ordered[start : start + POINTS_PER_REQUEST]
        worker = await opened.running()
        ids, payloads, vectors = await worker.call("points", ids=some)
        if ids:
            await target.call("upsert", ids=ids, payloads=payloads, vectors=vectors)
        if gone := sorted(set(some) - set(ids)):
            await target.call("delete", ids=gone)


async def _switch(
    folder: EdgeFolder,
    opened: OpenCollection,
    sizes: Sequence[Size],
    shard: Path,
    text_index: TextIndex | None,
) -> None:
    fresh = await opened.options.start(resized(opened.collection, sizes, text_index), shard)
    try:
        async with opened.writes:
            opened.check_there()
            await _carry(opened, fresh, opened.touched or set())
            async with opened.starting:
                opened.check_there()
                # Not as it was at the start: meanwhile it may have been annotated.
                collection = resized(opened.collection, sizes, text_index)
                old = opened.stored
                opened.stored = folder.switch_shard(collection, shard)
                retired, opened.worker = opened.worker, fresh
    except BaseException:
        await fresh.kill()
        raise
    if retired is not None:
        with contextlib.suppress(ServiceError):
            await retired.stop()  # it answers what it was asked first
    await asyncio.to_thread(remove, old.shard)
