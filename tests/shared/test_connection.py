"""What an HTTP connection does beside uvicorn's own."""

import asyncio
import socket

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.shared.connection import Connection


async def test_answers_are_sent_at_once(monkeypatch):
    """Not held back until the caller has acknowledged their first part (TCP_NODELAY)."""
    options = []
    made = Connection.connection_made

    def noted(self, transport):
        made(self, transport)
        connected = transport.get_extra_info("socket")
        options.append(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Connection, "connection_made", noted)
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve([listener]))
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert (await client.get(url)).text == "here"
    server.should_exit = True
    await task
    assert options
    assert all(options)
