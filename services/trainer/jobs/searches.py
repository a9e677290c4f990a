"""Searches a collection of the router for the anchors of a job that mines its negatives there.

What production finds for a question, and nobody has called an answer, is what the model mixes up.
The service asks, before the job's process starts: a job has no key of the router, and no network
where it runs in a cluster.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.shared.errors import (
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    ServiceError,
    TookTooLong,
    Unauthenticated,
    Unavailable,
)
from services.trainer.data.examples import read_split
from services.trainer.data.finds import CHUNK, chunk_path, is_whole, say_whole, write_chunk
from services.trainer.data.pairs import number_texts
from services.trainer.data.pictures import Item
from services.trainer.jobs.events import Event, append_once
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import FOUND, TRAINING, VALIDATION, Mining, Spec, spec_path
from services.trainer.models.router_client import RouterClient

# Of the best, some are answers and more score as high: so many are looked at for each one taken.
_LOOKED_AT, _AT_LEAST, _AT_MOST = 4, 32, 128
_MAX_CHARS = 20_000  # of a text that is asked, or taken: more than most models read
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_FIELD = "mine_negatives.collection"


class Searches:
    """Asks for jobs.

    Args:
        router: whose collections are searched.
        at_once: searches at the same time.
        patience_s: how long a router that is away or busy is asked again; then the job fails.
    """

    def __init__(self, router: RouterClient, at_once: int, patience_s: float) -> None:
        self._router = router
        self._at_once = at_once
        self._patience_s = patience_s

    async def check(self, mining: Mining, tenant: str | None) -> None:
        """Refuse a collection that is not there or in which nothing can be found, by a search.

        Raises:
            InvalidRequest: names the field.
            ServiceError: the router cannot be reached, or does not let the trainer in.
        """
        name = mining.collection[:64]
        try:
            is_there = await self._router.find(mining.collection, tenant) is not None
            found = await self._search("a", mining, tenant) if is_there else []
        except InvalidRequest as error:
            raise InvalidRequest(f"{_FIELD} cannot be searched: {error.message}", _FIELD) from error
        except (Unauthenticated, PermissionDenied) as error:
            raise ServiceError(
                "the router refuses the trainer's searches: MATRYOSHKA_TRAINER_ROUTER_API_KEY must "
                f"be an operator's key that may search; it says: {error.message}"
            ) from error
        if not is_there:
            raise InvalidRequest(
                f"{_FIELD} must be the name or alias of a collection of the router; there is no "
                f"{name!r}",
                _FIELD,
            )
        if not found:
            raise InvalidRequest(
                f"{_FIELD} must hold points with texts; a search of {name!r} found none", _FIELD
            )

    async def run(self, job: Job, folder: Path) -> None:
        """Search for all anchors that were not searched for yet; nothing, if none is wanted.

        Raises:
            ServiceError: the router refuses, or stays away.
        """
        spec = await asyncio.to_thread(Spec.read, spec_path(folder))
        if spec is None or spec.mining is None or not spec.mining.collection:
            return
        if await asyncio.to_thread(is_whole, folder / FOUND):
            return
        anchors = await asyncio.to_thread(_anchors, folder, spec)
        for begin in await asyncio.to_thread(_begins, folder / FOUND, len(anchors)):
            chunk = anchors[begin : begin + CHUNK]
            found = await self._find(chunk, spec.mining, job.tenant, folder)
            await _to_its_end(_keep, folder, begin, found, len(anchors))
        await _to_its_end(say_whole, folder / FOUND)

    async def _find(
        self, anchors: Sequence[Item], mining: Mining, tenant: str | None, folder: Path
    ) -> list[list[str]]:
        """Return the texts found for each of some anchors; each is in memory once."""
        found: list[list[str]] = [[] for _ in anchors]
        known: dict[str, str] = {}
        waiting = iter(enumerate(anchors))

        async def work() -> None:
            for place, anchor in waiting:
                text = anchor.strip()[:_MAX_CHARS] if isinstance(anchor, str) else ""
                if text:  # nobody searches by a picture
                    texts = await self._search_in_time(text, mining, tenant, folder)
                    found[place] = [known.setdefault(one, one) for one in texts]

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._at_once):
                    group.create_task(work())
        except* ServiceError as errors:
            raise errors.exceptions[0] from None
        return found

    async def _search_in_time(
        self, text: str, mining: Mining, tenant: str | None, folder: Path
    ) -> list[str]:
        """Search, and wait for a router that is away or busy."""
        begin, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                return await self._search(text, mining, tenant)
            except InvalidRequest:  # of this text alone: others like it were taken
                return []
            except (Overloaded, Unavailable, TookTooLong) as error:
                if time.monotonic() - begin + wait_s > self._patience_s:
                    raise
                if wait_s >= _LONGEST_WAIT_S:
                    told = Event(phase="mine", message=f"waits for the router: {error.message}")
                    await _to_its_end(append_once, folder, told)
                await asyncio.sleep(max(wait_s, error.retry_after_s or 0))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _search(self, text: str, mining: Mining, tenant: str | None) -> list[str]:
        limit = min(max(_AT_LEAST, _LOOKED_AT * mining.negatives), _AT_MOST)
        found = await self._router.search(mining.collection, text, limit, tenant)
        return [text for text in found if len(text) <= _MAX_CHARS]


async def _to_its_end(work: Callable[..., None], *arguments: object) -> None:
    """Do work in a thread; who is cancelled meanwhile waits for it, so that nothing comes late."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def _anchors(folder: Path, spec: Spec) -> tuple[Item, ...]:
    """Return the distinct anchors of the training pairs, in order."""
    seed = spec.hyperparameters.seed
    data = read_split(folder / TRAINING, folder / VALIDATION, spec.kind, seed)
    return tuple(number_texts(pair.texts[0] for pair in data.training))


def _begins(folder: Path, num_anchors: int) -> list[int]:
    """Return where the chunks begin that are not there yet; the folder is made."""
    folder.mkdir(exist_ok=True)
    begins = range(0, num_anchors, CHUNK)
    return [begin for begin in begins if not chunk_path(folder, begin).exists()]


def _keep(folder: Path, begin: int, found: list[list[str]], total: int) -> None:
    write_chunk(chunk_path(folder / FOUND, begin), found)
    done = begin + len(found)
    message = f"searched the collection: {done} of {total}"
    append_once(folder, Event(phase="mine", message=message, step=done, total_steps=total))
