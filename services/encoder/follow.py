"""Serves what promotions have made every encoder serve, from the start and while this one runs.

The trainer calls all encoders that it finds. One that starts meanwhile, or later, is not among
them: it reads the same from a file, before it is ready.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

from services.encoder.models import Models
from services.shared.errors import InvalidRequest, ServiceError
from services.shared.served import Served, ServedError, read_served
from services.shared.watch import Watched

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks."""


class Follower:
    """Follows the file; stop it when done.

    Args:
        path: of the file; it need not be there yet.
        models: take what it names.
    """

    def __init__(self, path: Path, models: Models) -> None:
        self._path = path
        self._models = models
        self._wanted = Served()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve all that the file names, and go on with what will be added.

        Raises:
            InvalidRequest: it cannot be read, or a model of it cannot be loaded.
        """
        try:
            watched = await asyncio.to_thread(
                Watched, "models of promotions", [self._path], self._read, ServedError
            )
        except ServedError as error:
            raise InvalidRequest(str(error)) from error
        taken = Served()
        while taken is not self._wanted:  # it may change while a model is loaded
            before, taken = taken, self._wanted
            await self._take(before, taken)
            await asyncio.to_thread(watched.refresh)
        self._task = asyncio.create_task(self._follow(watched, taken))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _read(self) -> None:
        self._wanted = read_served(self._path)

    async def _follow(self, watched: Watched, taken: Served) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(watched.refresh)
                before, taken = taken, self._wanted
                if before is not taken:
                    await self._take(before, taken)
            except ServiceError as error:
                log.error("what a promotion serves could not be taken: %s", error.message)
            except Exception:  # our bug; what changes later must be seen all the same
                log.exception("what a promotion serves could not be taken")

    async def _take(self, before: Served, now: Served) -> None:
        """Load what is not loaded, and point the names that have moved."""
        for model_id, folder in now.models.items():
            if any(model.id == model_id for model in self._models.list()):
                continue
            if await asyncio.to_thread(Path(folder).is_dir):
                await self._models.load(folder, model_id)
            else:
                log.error("%s was promoted, and its folder %s is not there", model_id, folder)
        for alias, model_id in now.aliases.items():
            if before.aliases.get(alias) == model_id:
                continue  # whoever has pointed it elsewhere since has meant it
            if any(model.id == model_id for model in self._models.list()):
                await self._models.set_alias(alias, model_id)
            else:
                log.error("%s shall be %s, which is not loaded here", alias, model_id)
