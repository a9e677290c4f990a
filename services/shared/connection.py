"""An HTTP connection: uvicorn's, with bounds on what comes before a request's body.

uvicorn bounds neither how long the head of a request may be nor how long it may take to arrive,
so one client could fill the memory, or hold a connection for ever, without having asked anything.
And it lets a handler wait for the caller to leave, but only in a task of its own; here a handler
can be cancelled by that.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Proxies and other servers allow 8 to 64 KiB.
_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEAD_S = 10.0
# Under this name a request's scope leads to its connection.
EXTENSION = "matryoshka"


class Connection(HttpToolsProtocol):
    """One connection; the time of an idle one between two requests is uvicorn's own setting."""

    _head_bytes = 0
    _is_in_head = False
    _head_timer: asyncio.TimerHandle | None = None
    _worker: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        # asyncio does so only where the listening socket was made with IPPROTO_TCP, and
        # `socket.create_server` makes none such. Without it an answer, which is written in two
        # parts, waits some 40 ms for the caller's delayed acknowledgement of the first.
        connected: socket.socket = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self._worker:
            self._worker.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self.send_400_response(f"The head must be at most {_MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._start_timer()
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"connection": self}}

    @contextmanager
    def cancels(self, task: asyncio.Task[object]) -> Iterator[None]:
        """Within the block: cancel the task when the caller leaves."""
        self._worker = task
        # Not read after a long body, and only reading shows that the caller left.
        self.flow.resume_reading()
        try:
            yield
        finally:
            self._worker = None

    @property
    def is_lost(self) -> bool:
        return self.transport.is_closing()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(_MAX_HEAD_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None
