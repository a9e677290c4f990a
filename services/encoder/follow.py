"""Serves what promotions have made every encoder serve, from the start and while this one runs.

The trainer calls all encoders that it finds. One that starts meanwhile, or later, is not among
them: it reads the same from a file, before it is ready.
"""

import asyncio
import contextlib
import logging
import math
import time
from pathlib import Path

from services.encoder.models import Models
from services.shared.errors import InvalidRequest, ServiceError
from services.shared.served import Served, ServedError, read_served
from services.shared.watch import Watched

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks."""
_AGAIN_S = 60.0
"""Between two tries of what could not be taken, unless the file changes before."""


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
        # By alias; whoever has pointed it elsewhere since has meant it.
        self._pointed: dict[str, str] = {}
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
        taken, is_whole = Served(), True
        while taken is not self._wanted:  # it may change while a model is loaded
            taken = self._wanted
            is_whole = await self._take(taken)
            await asyncio.to_thread(watched.refresh)
        self._task = asyncio.create_task(self._follow(watched, taken, is_whole))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _read(self) -> None:
        self._wanted = read_served(self._path)

    async def _follow(self, watched: Watched, taken: Served, is_whole: bool) -> None:
        tried_at = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(watched.refresh)
                again_at = math.inf if is_whole else tried_at + _AGAIN_S
                if taken is self._wanted and time.monotonic() < again_at:
                    continue
                taken, is_whole = self._wanted, False
                tried_at = time.monotonic()
                is_whole = await self._take(taken)
            except ServiceError as error:
                log.error("what a promotion serves could not be taken: %s", error.message)
            except Exception:  # our bug; what changes later must be seen all the same
                log.exception("what a promotion serves could not be taken")

    async def _take(self, wanted: Served) -> bool:
        """Load what is not loaded, and point the names that have moved; return whether all is so.

        Raises:
            ServiceError: a model cannot be loaded; what comes after it was not tried.
        """
        is_whole = True
        for model_id, folder in wanted.models.items():
            if self._has(model_id):
                continue
            if await asyncio.to_thread(Path(folder).is_dir):
                await self._models.load(folder, model_id)
            else:
                log.error("%s was promoted, and its folder %s is not there", model_id, folder)
                is_whole = False
        for alias, model_id in wanted.aliases.items():
            if self._pointed.get(alias) == model_id:
                continue
            if self._has(model_id):
                await self._models.set_alias(alias, model_id)
                self._pointed[alias] = model_id
            else:
                log.error("%s shall be %s, which is not loaded here", alias, model_id)
                is_whole = False
        return is_whole

    def _has(self, model_id: str) -> bool:
        return any(model.id == model_id for model in self._models.list())
