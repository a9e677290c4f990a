"""A change that this router is at, who follows it, and what does it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Protocol

from services.router.changes.change import Change
from services.router.trainer_client import NestQuality
from services.shared.errors import WrongState


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a change is."""

    step: str
    done: int
    total: int


@dataclass(slots=True, eq=False)
class Running:
    """A change that this router is at."""

    change: Change
    progress: Progress = field(default_factory=lambda: Progress("", 0, 0))
    quality: tuple[NestQuality, ...] = ()
    task: "asyncio.Task[None] | None" = None
    is_cancelled: bool = False
    _followers: "set[asyncio.Queue[Progress | None]]" = field(default_factory=set)

    def tell(self, step: str, done: int, total: int) -> None:
        self.progress = Progress(step, done, total)
        for follower in self._followers:
            follower.put_nowait(self.progress)

    async def follow(self) -> AsyncIterator[Progress]:
        """Give progress until the change has ended, or waits for somebody's word.

        Raises:
            ServiceError: why it ended before its end.
        """
        assert self.task is not None
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._followers.add(steps)
        self.task.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
        finally:
            self._followers.discard(steps)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self.task)
        if self.is_cancelled:
            raise WrongState("the change was cancelled")


class Keep(Protocol):
    """Writes with the collection how far its change is."""

    def __call__(self, **progress: object) -> Awaitable[None]: ...


class Work(Protocol):
    """What a kind of change does. Every step may be done twice."""

    async def do(self, name: str, running: Running, keep: Keep) -> bool:
        """Do what is left; False: it waits for somebody's word, and is kept."""

    async def undo(self, name: str, change: Change) -> None:
        """Leave things as they were before it, after it was ended."""
