"""A deployment on loopback: two encoders, two routers over one Qdrant, a trainer, and callers.

As pods have them, replicas have one port each at addresses of their own, which they keep over a
restart. Callers of gRPC know all addresses, those of HTTP know a `Balancer`, as a Service is one.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import openai

from services.shared.channel import connect
from services.shared.pb import encoder_pb2, encoder_pb2_grpc, router_pb2, router_pb2_grpc
from tests.conftest import Process, serve
from tests.router.sharded_qdrant import ShardedQdrant

_PROBE_S = 0.1
_FOUND_S = 6.0
NO_RETRIES = (("grpc.enable_retries", 0),)


@dataclass
class Fleet:
    """The processes, by service, and the storage."""

    qdrant: ShardedQdrant
    encoders: list[Process]
    routers: list[Process]
    trainer: Process

    @property
    def processes(self) -> list[Process]:
        return [*self.encoders, *self.routers, self.trainer]

    def end(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()


def addresses(replicas: Iterable[Process]) -> str:
    """Return all of them as one address of gRPC."""
    return "ipv4:" + ",".join(replica.grpc for replica in replicas)


async def start(folder: Path, model: Path) -> Fleet:
    """Start everything; to be ended by the caller."""
    qdrant = ShardedQdrant()
    await qdrant.start()
    begun: list[Process] = []

    def begin(service: str, last: int, **settings: str) -> Process:
        prefix = f"MATRYOSHKA_{service.upper()}_"
        named = {prefix + name: value for name, value in settings.items()}
        # Longer than a caller needs to see it on a busy machine.
        named |= {f"{prefix}HOST": f"127.0.0.{last}", f"{prefix}DRAIN_S": "2"}
        process = serve(folder / f"{service}-{last}", "serve", service, **named)
        begun.append(process)
        for option, at in (("--http-port", process.http), ("--grpc-port", process.grpc)):
            process.arguments[process.arguments.index(option) + 1] = at.rpartition(":")[2]
        return process

    encoder = {"MODEL": str(model), "PRECISION": "float32"}
    try:
        trainer, *encoders = await _all(
            asyncio.to_thread(begin, "trainer", 6),
            *(asyncio.to_thread(begin, "encoder", last, **encoder) for last in (2, 3)),
        )
        router = {
            "ENCODER_ADDRESS": addresses(encoders),
            "TRAINER_ADDRESS": trainer.grpc,
            "QDRANT_URL": "http://127.0.0.1:1",
            "QDRANT_GRPC_PORT": str(qdrant.port),
            "DATABASE_URL": f"sqlite:///{folder}/shared.sqlite",
            "FILES_URL": str(folder / "files"),
        }
        routers = await _all(
            *(asyncio.to_thread(begin, "router", last, **router) for last in (4, 5))
        )
    except BaseException:
        for process in begun:
            process.kill()
        await qdrant.kill()
        raise
    return Fleet(qdrant, encoders, routers, trainer)


async def _all(*starts: Awaitable[Process]) -> list[Process]:
    """Wait for all of them, also when one fails."""
    ended = await asyncio.gather(*starts, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return ended


async def restart(process: Process) -> None:
    """End a replica as an operator does, start it again, and wait until calls come to it.

    And until every caller may have found it, as Kubernetes waits (`minReadySeconds` in the chart).
    """
    assert await asyncio.to_thread(process.stop) == 0
    await asyncio.to_thread(process.start)
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while 'outcome="OK"' not in (await client.get(f"{process.http}/metrics")).text:
            await asyncio.sleep(_PROBE_S)
    await asyncio.sleep(_FOUND_S)


class Balancer:
    """One HTTP address for several replicas: connections go to those that are ready, in turns."""

    def __init__(self, replicas: list[Process]) -> None:
        self._replicas = replicas
        self._ready: list[Process] = list(replicas)
        self._turn = 0
        self._connections: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve; yields the base URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        looking = asyncio.create_task(self._look())
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            looking.cancel()
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(looking, *self._connections, return_exceptions=True)

    async def _look(self) -> None:
        async with httpx.AsyncClient(timeout=1) as client:
            while True:
                ready = [one for one in self._replicas if await _is_ready(client, one)]
                self._ready = ready or self._ready
                await asyncio.sleep(_PROBE_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # asyncio would tell of it
                await self._join(reader, writer)
        finally:
            writer.close()
            self._connections.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await self._connect()
        try:
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        finally:
            back.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._turn = (self._turn + 1) % len(self._ready)
        for chosen in (*self._ready[self._turn :], *self._ready[: self._turn]):
            host, _, port = chosen.http.removeprefix("http://").partition(":")
            with contextlib.suppress(ConnectionError):
                return await asyncio.open_connection(host, int(port))
        raise ConnectionError("no replica is there")


async def _is_ready(client: httpx.AsyncClient, replica: Process) -> bool:
    try:
        return (await client.get(f"{replica.http}/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Load:
    """Calls of all kinds, one after another by each caller, until it is left."""

    pause_s: float
    """Of each caller, between its calls."""
    done: Counter[str] = field(default_factory=Counter)
    """By caller."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(caller, what it got)."""

    async def call(self, caller: str, make: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await make()
                self.done[caller] += 1
            except grpc.aio.AioRpcError as error:
                self.failed.append((caller, f"{error.code().name}: {error.details()}"))
            except openai.OpenAIError as error:
                self.failed.append((caller, f"{type(error).__name__}: {error}"))
            await asyncio.sleep(self.pause_s)

    async def goes_on(self, calls: int = 5) -> None:
        """Wait until every caller has been answered some more times."""
        before = self.done.copy()
        async with asyncio.timeout(120):
            while any(self.done[caller] < before[caller] + calls for caller in self.done):
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def load(
    fleet: Fleet, store: str, num_callers: int = 1, pause_s: float = 0.1
) -> AsyncIterator[Load]:
    """Call both services over both wires: by clients that try again, and by ones that do not.

    Args:
        fleet: what is called.
        store: a vector store with something in it.
        num_callers: of each kind.
        pause_s: of each, between its calls.
    """
    async with contextlib.AsyncExitStack() as stack:
        running = Load(pause_s)
        calls: dict[str, Callable[[], Awaitable[object]]] = {}
        urls = {
            name: await stack.enter_async_context(Balancer(replicas).listening())
            for name, replicas in (("encoder", fleet.encoders), ("router", fleet.routers))
        }
        for kind, options, retries in (("patient", (), 2), ("strict", NO_RETRIES, 0)):
            encoder = encoder_pb2_grpc.EncoderServiceStub(
                await stack.enter_async_context(connect(addresses(fleet.encoders), options))
            )
            router = router_pb2_grpc.RouterServiceStub(
                await stack.enter_async_context(connect(addresses(fleet.routers), options))
            )
            embeddings, stores = [
                await stack.enter_async_context(
                    openai.AsyncOpenAI(
                        base_url=urls[name], api_key="none", max_retries=retries, timeout=60
                    )
                )
                for name in ("encoder", "router")
            ]
            calls |= {
                f"{kind} encoder gRPC": lambda stub=encoder: stub.Embed(
                    encoder_pb2.EmbedRequest(texts=["nested dolls"]), timeout=60
                ),
                f"{kind} router gRPC": lambda stub=router: stub.Search(
                    router_pb2.SearchRequest(collection=store, text="dolls"), timeout=60
                ),
                f"{kind} encoder HTTP": lambda client=embeddings: client.embeddings.create(
                    model="default", input="wooden dolls"
                ),
                f"{kind} router HTTP": lambda client=stores: client.vector_stores.search(
                    store, query="dolls"
                ),
            }
        callers = {
            f"{name} {number}": make
            for name, make in calls.items()
            for number in range(num_callers)
        }
        running.done.update(dict.fromkeys(callers, 0))
        tasks = [asyncio.create_task(running.call(name, make)) for name, make in callers.items()]
        try:
            yield running
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
