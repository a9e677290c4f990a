"""A stream of requests to a stream of answers, in order, with back-pressure both ways.

In: requests as they come, and what answers one. Out: the answers, in the order of the requests.
Knows nothing of the wire. At most `read_ahead` requests are read and not yet answered: a slow
encoder stops the reading, and so does a caller who does not read his answers.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from services.shared.errors import Overloaded

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


async def answer_in_order(
    requests: AsyncIterator[Asked],
    answer: Callable[[Asked], Awaitable[Answer]],
    read_ahead: int,
) -> AsyncGenerator[Answer, None]:
    """Answer requests as they come, some at a time.

    An error, of a request or of the stream itself, ends it after the answers before it were
    given. Nobody has to retry for a full queue: a request of a stream waits until there is room.
    Closing this generator cancels all that is under way.

    Args:
        requests: where to read; may raise to end the stream.
        answer: answers one request.
        read_ahead: requests read and not yet answered, at most.
    """
    # None ends it. The queue holds all but the one that is waited for.
    queue: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    room = asyncio.Semaphore(read_ahead)
    started: set[asyncio.Task[Answer]] = set()

    async def answer_with_patience(request: Asked) -> Answer:
        while True:
            try:
                return await answer(request)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or 1)

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                task = asyncio.create_task(answer_with_patience(request))
                started.add(task)
                queue.put_nowait(task)
                await room.acquire()
        finally:
            queue.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await queue.get()) is not None:
            yield await task
            started.discard(task)
            room.release()
        await reader
    finally:
        for left in (reader, *started):
            left.cancel()
        for left in (reader, *started):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await left
