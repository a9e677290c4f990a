"""Two encoders and two routers under load, restarted and killed; what a Prometheus sees of all."""

import asyncio
import re

import grpc
import httpx
import openai
import pytest
import pytest_asyncio

from services.shared.pb import (
    encoder_pb2,
    encoder_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)
from tests.e2e import fleet as fleets
from tests.e2e.fleet import Balancer, load
from tests.e2e.prometheus import scraping
from tests.families import checkpoints
from tests.layout.test_metrics import UNITS

LOSES_A_RACE = ("strict encoder HTTP", "strict router HTTP")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    model = folder / "model"
    model.mkdir()
    checkpoints.gte_bert(model)
    started = await fleets.start(folder, model)
    yield started
    await asyncio.to_thread(started.end)
    await started.qdrant.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(fleet):
    """A vector store with a file in it, which the routers share."""
    async with (
        Balancer(fleet.routers).listening() as url,
        openai.AsyncOpenAI(base_url=url, api_key="none") as client,
    ):
        made = await client.vector_stores.create(name="docs")
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=made.id, file=("a.txt", b"A wooden doll."), poll_interval_ms=50
        )
        assert file.status == "completed", file.last_error
        return made.id


async def call_everything(fleet, store, number):
    """Good and bad calls over both wires, with texts, ids and paths that no other number has."""
    name = f"planted{number}"
    for service in (fleet.encoders[0], fleet.routers[0], fleet.trainer):
        async with httpx.AsyncClient(base_url=service.http, timeout=30) as client:
            for path in ("models", "vector_stores", "files", "fine_tuning/jobs", name):
                await client.get(f"/v1/{path}/{name}", headers={"authorization": f"Bearer {name}"})
            for path, body in (
                ("embeddings", {"model": "default", "input": name, "user": name}),
                ("embeddings", {"model": name, "input": name}),
                (f"vector_stores/{store}/search", {"query": name}),
                (f"vector_stores/{name}/search", {"query": name}),
                ("fine_tuning/jobs", {"model": name, "training_file": name}),
            ):
                await client.post(f"/v1/{path}", json=body)
        async with grpc.aio.insecure_channel(service.grpc) as channel:
            calls = (
                encoder_pb2_grpc.EncoderServiceStub(channel).Embed(
                    encoder_pb2.EmbedRequest(model=name, texts=[name])),
                router_pb2_grpc.RouterServiceStub(channel).Search(
                    router_pb2.SearchRequest(collection=name, text=name)),
                trainer_pb2_grpc.TrainerServiceStub(channel).GetJob(
                    trainer_pb2.GetJobRequest(id=name)),
                channel.unary_unary(f"/matryoshka.v1.{name}/{name}")(b""),
            )  # fmt: skip
            assert all(await asyncio.gather(*calls, return_exceptions=True))


async def test_a_prometheus_sees_every_process_and_what_its_metrics_mean(fleet, store, tmp_path):
    """Each has help, a type and a unit; calls of other callers, texts and ids add no series."""
    with scraping(tmp_path, [process.http for process in fleet.processes]) as prometheus:
        rounds = []
        for number in range(6):
            await call_everything(fleet, store, number)
            await asyncio.to_thread(prometheus.scrape)
            rounds.append(prometheus.series())
            if rounds[-1] in rounds[:-1]:  # what goes on beside the calls has been seen once, too
                break
        else:
            pytest.fail(f"new series at each round: {rounds[-1] - rounds[-2]}")
        meant = prometheus.ask("metadata")
    ours = {name: meaning for name, meaning in meant.items() if name.startswith("matryoshka_")}
    assert {name.split("_")[1] for name in ours} == {"encoder", "router", "trainer", "server"}
    for name, (meaning,) in ours.items():
        assert meaning["help"].endswith("."), name
        assert meaning["type"] in ("counter", "gauge", "histogram"), name
        assert re.search(rf"_{UNITS}$", name), name
    assert len(rounds[-1]) > 500
    values = {value for series in rounds[-1] for _, value in series}
    assert not [value for value in values if "planted" in value]


async def test_restarts_one_by_one_fail_no_request(fleet, store):
    """Encoders and routers, one of each at a time, under load: over gRPC not even of clients that
    try nothing again."""
    async with load(fleet, store) as running:
        await running.goes_on()
        for encoder, router in zip(fleet.encoders, fleet.routers, strict=True):
            await asyncio.gather(fleets.restart(encoder), fleets.restart(router))
        await running.goes_on()
    # HTTP ends an idle connection while a request may be on its way: whoever tries nothing again
    # may lose that one.
    assert [one for one in running.failed if not one[0].startswith(LOSES_A_RACE)] == []


@pytest.mark.parametrize("service", ["routers", "encoders"])
async def test_a_kill_costs_no_more_than_the_calls_in_flight(fleet, store, service):
    """Nothing of clients that try again, as ours and OpenAI's do; one call of each other's."""
    killed = getattr(fleet, service)[0]
    async with load(fleet, store, num_callers=3, pause_s=0) as running:
        await running.goes_on(3)
        killed.kill()
        await running.goes_on(5)
    failed = [caller for caller, _ in running.failed]
    assert len(failed) == len(set(failed)), running.failed
    strict = f"strict {service.removesuffix('s')} "
    assert [one for one in running.failed if not one[0].startswith(strict)] == []
