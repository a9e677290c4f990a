"""More than the encoder can do: refusals that say when to come back, and lanes that hold."""

import asyncio
import time

import grpc
import httpx
import pytest

from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """An encoder whose interactive queue is short, without a cache."""
    started = serve(
        tmp_path_factory.mktemp("overload"), "serve", "encoder",
        MATRYOSHKA_ENCODER_MAX_QUEUE_S="1", MATRYOSHKA_ENCODER_CACHE_BYTES="0",
    )  # fmt: skip
    yield started
    assert started.stop() == 0


def texts(count, words=30):
    return [f"text {number} " + "word " * words for number in range(count)]


async def test_what_cannot_be_done_in_time_is_refused_over_http(process):
    """Of a crowd at once some are served and the others told when to try again, and why."""
    async with httpx.AsyncClient(base_url=process.http, timeout=60) as client:
        body = {"model": "default", "input": texts(6), "encoding_format": "base64"}
        crowd = [client.post("/v1/embeddings", json=body) for _ in range(100)]
        answers = await asyncio.gather(*crowd)
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.headers["x-should-retry"] == "true"
                assert "of work are waiting" in answer.json()["error"]["message"]
        # Nothing is left behind: an idle encoder takes the next one, and says so.
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
        page = (await client.get("/metrics")).text
        assert 'matryoshka_encoder_queued_tokens{lane="interactive"} 0.0' in page
        assert 'matryoshka_encoder_refusals_total{reason="queue_seconds"}' in page


async def test_what_cannot_be_done_in_time_is_refused_over_grpc(process):
    """The same with RESOURCE_EXHAUSTED, and the wait where gRPC's own retries look for it."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        calls = [stub.Embed(pb.EmbedRequest(texts=texts(6))) for _ in range(100)]
        codes = await asyncio.gather(*(call.code() for call in calls))
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        refused = dict(
            await calls[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)].trailing_metadata()
        )
        assert int(refused["grpc-retry-pushback-ms"]) == 1000 * int(refused["retry-after"]) > 0


async def test_work_for_a_caller_who_is_gone_is_dropped(process):
    """A deadline that passes frees what waited for it, and the encoder goes on at once."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await stub.Embed(pb.EmbedRequest(texts=texts(1500, words=150)), timeout=1)
        async with httpx.AsyncClient(base_url=process.http, timeout=30) as client:
            for _ in range(100):
                page = (await client.get("/metrics")).text
                lines = [x for x in page.splitlines() if x.startswith("matryoshka_encoder_queued")]
                if all(line.endswith(" 0.0") for line in lines):
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError(lines)


async def test_queries_are_quick_while_bulk_work_goes_on(process):
    """Beside a stream of documents a query is answered in a small part of the stream's time."""
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        bulk = pb.EmbedRequest(texts=texts(60, words=100), role=pb.ROLE_DOCUMENT)

        async def stream():
            requests = iter([pb.EmbedStreamRequest(embed=bulk)] * 6)
            start = time.perf_counter()
            answers = [answer async for answer in stub.EmbedStream(requests)]
            return len(answers), time.perf_counter() - start

        streaming = asyncio.create_task(stream())
        waits = []
        await asyncio.sleep(0.3)
        while not streaming.done():
            start = time.perf_counter()
            query = pb.EmbedRequest(texts=[f"query {start}"], role=pb.ROLE_QUERY)
            await stub.Embed(query)
            waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)
        count, seconds = await streaming
        assert count == 6
        assert len(waits) > 3
        assert sorted(waits)[len(waits) // 2] < seconds / 4, (waits, seconds)
