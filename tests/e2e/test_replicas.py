"""A promotion with two encoders behind one address: both serve it, and one that comes later too.

Encoders, router and promoter are real, over real gRPC, in this process; what the promoter promotes
is another tiny model, in the place of one that a job has made.
"""

import asyncio
import contextlib
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from services.encoder.service import EncoderService
from services.encoder.settings import EncoderSettings
from services.shared.database import Database
from services.shared.errors import WrongState
from services.shared.interceptors import Door
from services.shared.keys import Keys
from services.shared.model import TextModel
from services.shared.pb import encoder_pb2 as en
from services.shared.pb import encoder_pb2_grpc
from services.shared.pb import router_pb2 as rt
from services.shared.state import State
from services.shared.trace import Tracing
from services.trainer.models.encoder_client import EncoderClient
from services.trainer.models.encoders import Encoders
from services.trainer.models.promoter import Promoter, Wanted
from services.trainer.models.promotion import Promotions
from services.trainer.models.router_client import RouterClient
from services.trainer.models.served import ServedModels
from services.trainer.results.gate import Rule
from tests.router.conftest import running
from tests.trainer.conftest import make_tiny_model

VERSION = "ft:tiny:docs:00000001"
TEXTS = [f"the red cat sees number {number}" for number in range(8)]


class Replica:
    """An encoder at a port that it keeps, with its data in a folder."""

    def __init__(self, model, served, tracing):
        self.model, self.served, self.tracing = model, served, tracing
        self.port = 0

    async def start(self, data_dir):
        settings = EncoderSettings(
            model=str(self.model), data_dir=data_dir, served_file=self.served, precision="float32"
        )
        self.service = EncoderService(settings, CollectorRegistry())
        name = self.service.grpc_name
        door = Door(
            {name: self.service.metrics}, State(True, True), Keys(),
            {name: self.service.open_to_tenants}, tracing=self.tracing,
        )  # fmt: skip
        await self.service.start()  # nobody finds it before it is ready, as a pod
        self.server = grpc.aio.server(interceptors=[door], options=[("grpc.so_reuseport", 0)])
        self.service.add_to(self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self):
        await self.server.stop(None)
        await self.service.stop()

    async def named(self, alias):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            return (await stub.GetModel(en.GetModelRequest(model=alias))).model.id


class Registry:
    """One version, no worse than what there is."""

    def __init__(self, folder):
        self.folder = folder
        self.version = SimpleNamespace(
            id=VERSION, job_id="job-1", base_model="tiny",
            space_id=TextModel(folder, "float32").space_id,
            hyperparameters=SimpleNamespace(dims=(16, 32)),
        )  # fmt: skip

    def get(self, name):
        return self.version

    def model_dir(self, job_id):
        return self.folder

    def paired_scores(self, before, version):
        scores_QKS = np.ones((40, 2, 3))
        return scores_QKS, scores_QKS, [16, 32]

    def slices(self, version):
        return ("",) * 40


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider)
    provider.shutdown()


@pytest.fixture
async def world(tmp_path, tracing):
    """(promoter, what is told to encoders, two encoders, a router over both)."""
    for name in ("live", "new"):
        (tmp_path / name).mkdir()
    served_file = tmp_path / "served.json"
    live = make_tiny_model(tmp_path / "live")
    registry = Registry(make_tiny_model(tmp_path / "new", seed=1))
    replicas = [Replica(live, served_file, tracing) for _ in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        for number, replica in enumerate(replicas):
            await replica.start(tmp_path / f"encoder-{number}")
            stack.push_async_callback(replica.stop)
        both = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
        router = await stack.enter_async_context(running((None, both), tmp_path / "router"))
        database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
        stack.callback(database.close)
        database.open()
        served = ServedModels(database, served_file)
        client = EncoderClient(both, None, 60)
        stack.push_async_callback(client.close)
        of_router = RouterClient(router.address, None, 60, 2**22)
        stack.push_async_callback(of_router.close)
        promoter = Promoter(
            Promotions(database, "here", 30), registry, Encoders(client, served), of_router
        )
        stack.push_async_callback(promoter.stop)
        await promoter.start()
        yield promoter, served, replicas, router


@contextlib.asynccontextmanager
async def searched(router):
    """Search all the time in the block; not one may fail."""
    failures, answered, stop = [], [], asyncio.Event()

    async def search():
        while not stop.is_set():
            try:
                await router.stub.Search(rt.SearchRequest(collection="docs", text="red cat"))
                answered.append(True)
            except grpc.aio.AioRpcError as error:
                failures.append(error)
            await asyncio.sleep(0.01)

    searching = asyncio.create_task(search())
    try:
        yield
    finally:
        stop.set()
        await searching
    assert failures == []
    assert answered


async def fill(router):
    stub = router.stub
    await stub.CreateCollection(rt.CreateCollectionRequest(name="docs-1", model="default"))
    points = [rt.Point(id=str(number), text=text) for number, text in enumerate(TEXTS)]
    async for _ in stub.Upsert(iter([rt.UpsertRequest(collection="docs-1", points=points)])):
        pass
    await stub.SetCollectionAlias(rt.SetCollectionAliasRequest(alias="docs", collection="docs-1"))


def wanted(alias, *collections):
    return Wanted(
        version=VERSION, encoder_alias=alias, collections=collections,
        rule=Rule(), holds=False, watches=False,
    )  # fmt: skip


async def test_every_encoder_serves_what_is_promoted(world, tracing, exporter, tmp_path):
    """Both do, and no search fails; one that is away is waited for by name; one that begins anew
    knows what was promoted before it is ready."""
    promoter, served, replicas, router = world
    await fill(router)
    async with searched(router):
        with tracing.begin("trainer", "Promote", {}):
            begun = await promoter.begin(wanted("default", "docs"))
        done = [one async for one in promoter.watch(begun.id)][-1]
        assert done.state == "done", done.error
        assert [await replica.named("default") for replica in replicas] == [VERSION, VERSION]
        found = await router.stub.GetCollection(rt.GetCollectionRequest(name="docs"))
        assert found.collection.model == VERSION

        # Another name, while one encoder is away.
        lost = replicas[1]
        await lost.stop()
        begun = await promoter.begin(wanted("other"))
        async with asyncio.timeout(60):
            async for one in promoter.watch(begun.id):
                if one.error:
                    break
        assert f"the encoder at 127.0.0.1:{lost.port} cannot be reached" in one.error
        assert one.state == "checking"
        assert await replicas[0].named(VERSION) == VERSION

        # A pod without a volume comes back so: with nothing of its own.
        await lost.start(tmp_path / "anew")
        assert await lost.named("default") == VERSION
        async with asyncio.timeout(60):
            done = [one async for one in promoter.watch(begun.id)][-1]
        assert done.state == "done", done.error
        assert [await replica.named("other") for replica in replicas] == [VERSION, VERSION]
    with pytest.raises(WrongState, match=f"the encoders' name '.*' points at {VERSION}"):
        served.check_free(VERSION)

    spans = exporter.get_finished_spans()
    (call,) = (one for one in spans if one.name == "Promote")
    ids = {one.context.span_id: one.name for one in spans if one.context.trace_id
           == call.context.trace_id}  # fmt: skip
    below = {(ids.get(one.parent.span_id), one.name) for one in spans
             if one.parent and one.context.span_id in ids}  # fmt: skip
    assert {("Promote", "loading"), ("loading", "LoadModel"), ("switching", "SetAlias")} <= below
