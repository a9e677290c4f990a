"""Searches a collection of the router for the anchors of a job that mines its negatives there.

What production finds for a question, and nobody has called an answer, is what the model mixes up.
The service asks, before the job's process starts: a job has no key of the router, and no network
where it runs in a cluster.
"""

import asyncio
from pathlib import Path

from services.shared.errors import (
    InvalidRequest,
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
)
from services.trainer.data.examples import read_split
from services.trainer.data.finds import CHUNK, chunk_path, write_chunk
from services.trainer.data.pairs import number_texts
from services.trainer.data.pictures import Item
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.lock import hold_lock
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import FOUND, LOCK, TRAINING, VALIDATION, Mining, Spec, spec_path
from services.trainer.models.router_client import RouterClient

# Of the best, some are answers and more score as high: so many are looked at for each one taken.
_LOOKED_AT, _AT_LEAST = 4, 32
_MAX_CHARS = 20_000  # more than models read of a question; the router refuses what is endless
# A router that restarts or is busy is asked again; one that stays away ends the job.
_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
_LOCK_TIMEOUT_S = 60.0


class Searches:
    """Asks for jobs.

    Args:
        router: whose collections are searched.
        at_once: searches at the same time.
    """

    def __init__(self, router: RouterClient, at_once: int) -> None:
        self._router = router
        self._at_once = at_once

    async def check(self, collection: str, tenant: str | None) -> None:
        """Refuse a collection that is not there.

        Raises:
            InvalidRequest: names the field.
            Unavailable: the router cannot be reached.
        """
        if await self._router.find(collection, tenant) is None:
            raise InvalidRequest(
                "mine_negatives.collection must be the name or alias of a collection of the "
                f"router; there is no {collection[:64]!r}",
                "mine_negatives.collection",
            )

    async def run(self, job: Job, folder: Path) -> None:
        """Search for all anchors that were not searched for yet; nothing, if none is wanted.

        Raises:
            ServiceError: the router refuses, or stays away.
        """
        spec = await asyncio.to_thread(Spec.read, spec_path(folder))
        if spec is None or spec.mining is None or not spec.mining.collection:
            return
        anchors = await asyncio.to_thread(_anchors, folder, spec)
        for begin in range(0, len(anchors), CHUNK):
            path = chunk_path(folder / FOUND, begin)
            if path.exists():
                continue
            chunk = anchors[begin : begin + CHUNK]
            found = await self._find(chunk, spec.mining, job.tenant)
            await asyncio.to_thread(write_chunk, path, found)
            await asyncio.to_thread(_tell, folder, begin + len(chunk), len(anchors))

    async def _find(
        self, anchors: tuple[Item, ...], mining: Mining, tenant: str | None
    ) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in anchors]
        waiting = iter(enumerate(anchors))

        async def work() -> None:
            for place, anchor in waiting:
                if isinstance(anchor, str):  # nobody searches by a picture
                    found[place] = await self._search(anchor[:_MAX_CHARS], mining, tenant)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._at_once):
                    group.create_task(work())
        except* ServiceError as errors:
            raise errors.exceptions[0] from None
        return found

    async def _search(self, text: str, mining: Mining, tenant: str | None) -> list[str]:
        limit = max(_AT_LEAST, _LOOKED_AT * mining.negatives)
        for wait_s in (*_WAITS_S, None):
            try:
                return await self._router.search(mining.collection, text, limit, tenant)
            except (Overloaded, Unavailable, TookTooLong) as error:
                if wait_s is None:
                    raise
                await asyncio.sleep(max(wait_s, error.retry_after_s or 0))
        raise AssertionError


def _anchors(folder: Path, spec: Spec) -> tuple[Item, ...]:
    """Return the distinct anchors of the training pairs, in order."""
    seed = spec.hyperparameters.seed
    data = read_split(folder / TRAINING, folder / VALIDATION, spec.kind, seed)
    return tuple(number_texts(pair.texts[0] for pair in data.training))


def _tell(folder: Path, done: int, total: int) -> None:
    message = f"searched the collection: {done} of {total}"
    with hold_lock(folder / LOCK, _LOCK_TIMEOUT_S):
        EventLog(folder).append(Event(phase="mine", message=message, step=done, total_steps=total))
