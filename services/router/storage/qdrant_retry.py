"""Calls to a Qdrant server are repeated while it is away for a moment, where that changes nothing.

Safe to repeat are reads, and writes that say by id what points shall be: done twice they leave what
they leave done once, so it does not matter whether the first one arrived. What makes, drops or
names collections, or writes anew what another router may have written since, is left to its caller.

A caller whose deadline passes is cancelled by gRPC, wherever it waits.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from qdrant_client import AsyncQdrantClient

_T = TypeVar("_T")

_REPEATABLE = (
    "get_collections", "get_collection", "get_aliases", "collection_exists", "query_points",
    "scroll", "retrieve", "count", "upsert", "delete", "update_vectors",
    "set_payload",
)  # fmt: skip
# Between two attempts, doubled each time up to the longest; of that a random half to all of it.
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0


def channel_options(ca: bytes | None) -> dict[str, Any]:
    """Return the client's options of gRPC.

    Args:
        ca: in PEM, of which the certificate of a server with TLS must be; None: of a CA that gRPC
            trusts by itself.
    """
    options: dict[str, Any] = {
        # By itself gRPC would let up to two minutes pass before it looks whether the server is
        # back.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
    }
    return options if ca is None else options | {"root_certificates": ca}


class Retry:
    """Repeats calls.

    Args:
        longest_s: from the beginning of a call it is repeated until then; 0: never.
        timeout_s: longest wait for a call, its repetitions included.
        on_retry: told the name of each call that is repeated.
    """

    def __init__(
        self,
        longest_s: float,
        timeout_s: float,
        on_retry: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._longest_s = min(longest_s, timeout_s)
        self._timeout_s = timeout_s
        self._on_retry = on_retry

    def guard(self, client: AsyncQdrantClient) -> None:
        """Let the client's own methods repeat what may be repeated."""
        for name in _REPEATABLE:
            setattr(client, name, self._repeating(name, getattr(client, name)))

    def _repeating(
        self, name: str, method: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def repeated(*arguments: object, **options: object) -> Any:  # noqa: ANN401 (as it is)
            return await self.run(name, lambda: method(*arguments, **options))

        return repeated

    async def run(self, name: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """Return what a call returns, in the end.

        Args:
            name: of the call, for `on_retry`.
            call: makes it.

        Raises:
            grpc.aio.AioRpcError: as the last attempt did.
            TimeoutError: no attempt ended in time.
        """
        start = time.monotonic()
        wait_s = _FIRST_WAIT_S
        async with asyncio.timeout(self._timeout_s):
            while True:
                try:
                    return await call()
                except grpc.aio.AioRpcError as error:
                    pause_s = random.uniform(wait_s / 2, wait_s)
                    is_late = time.monotonic() + pause_s > start + self._longest_s
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or is_late:
                        raise
                self._on_retry(name)
                await asyncio.sleep(pause_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
