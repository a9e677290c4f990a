"""Serves what promotions have made every encoder serve, from the start and while this one runs.

The trainer calls all encoders that it finds. One that starts meanwhile, or later, is not among
them: it reads the same from a file, before it is ready.
"""

import asyncio
import contextlib
import logging
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
        # What was taken of the file as it is, and the names that were pointed: whoever has unloaded
        # the one here since, or pointed the other elsewhere, has meant it.
        self._loaded: set[str] = set()
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
        taken = Served()
        while taken is not self._wanted:  # it may change while a model is loaded
            taken = self._wanted
            if errors := await self._take(taken):
                raise errors[0]
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
        tried_at = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(watched.refresh)
                if taken is not self._wanted:
                    taken = self._wanted
                    self._loaded.clear()  # a change asks for all that it names
                elif self._is_taken(taken) or time.monotonic() < tried_at + _AGAIN_S:
                    continue
                for error in await self._take(taken):
                    log.error("what a promotion serves could not be taken: %s", error.message)
            except Exception:  # our bug; what changes later must be seen all the same
                log.exception("what a promotion serves could not be taken")
            tried_at = time.monotonic()

    async def _take(self, wanted: Served) -> list[ServiceError]:
        """Load what is not loaded, point the names that have moved; return what kept it from it."""
        errors: list[ServiceError] = []
        for model_id, folder in wanted.models.items():
            if model_id in self._loaded:
                continue
            if not self._has(model_id):
                if not await asyncio.to_thread(Path(folder).is_dir):
                    log.error("%s was promoted, and its folder %s is not there", model_id, folder)
                    continue
                try:
                    await self._models.load(folder, model_id)
                except ServiceError as error:
                    errors.append(error)
                    continue
            self._loaded.add(model_id)
        self._pointed = {
            alias: model_id for alias, model_id in self._pointed.items() if alias in wanted.aliases
        }
        for alias, model_id in wanted.aliases.items():
            if self._pointed.get(alias) == model_id:
                continue
            if self._has(model_id):
                await self._models.set_alias(alias, model_id)
                self._pointed[alias] = model_id
            else:
                log.error("%s shall be %s, which is not loaded here", alias, model_id)
        return errors

    def _is_taken(self, wanted: Served) -> bool:
        return wanted.models.keys() <= self._loaded and (
            wanted.aliases.items() <= self._pointed.items()
        )

    def _has(self, model_id: str) -> bool:
        return any(model.id == model_id for model in self._models.list())
