"""kill -9 of a real router while it puts files into stores: all goes on where it was."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import grpc
import openai
import pytest

from services.router.vector_stores.chunks import Chunking, cut, token_ends
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc
from tests.conftest import Process, serve
from tests.router.conftest import Encoder

STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 10}}
TEXT = " ".join(f"word{number}" for number in range(1500))
CHUNKS = list(cut(TEXT, token_ends(TEXT), Chunking(100, 10)))


def start(tmp_path: Path, encoder: tuple[Encoder, str], **settings: str) -> Process:
    return serve(
        tmp_path,
        "serve",
        "router",
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder[1],
        MATRYOSHKA_ROUTER_ENCODER_BATCH_TEXTS="4",
        MATRYOSHKA_ROUTER_DRAIN_S="0",
        MATRYOSHKA_ROUTER_SWEEP_S="0.1",
        **settings,
    )


@contextlib.asynccontextmanager
async def connect(router: Process):
    async with (
        openai.AsyncOpenAI(
            base_url=f"{router.http}/v1", api_key="none", max_retries=0, timeout=20
        ) as client,
        grpc.aio.insecure_channel(router.grpc) as channel,
    ):
        yield client, router_pb2_grpc.RouterServiceStub(channel)


async def num_points(stub, store_id: str) -> int:
    found = await stub.GetCollection(pb.GetCollectionRequest(name=store_id))
    return found.collection.num_points


async def until(happens, wait_s: float = 20.0) -> None:
    async with asyncio.timeout(wait_s):
        while not await happens():
            await asyncio.sleep(0.02)


async def put(client, store_id: str, text: str = TEXT):
    uploaded = await client.files.create(file=("a.txt", text.encode()), purpose="assistants")
    return await client.vector_stores.files.create(
        store_id, file_id=uploaded.id, chunking_strategy=STATIC
    )


def hold_up(encoder: Encoder, after: int) -> asyncio.Task:
    """Let some calls through, then let all wait."""
    begun = len(encoder.embeds)

    async def watch():
        while len(encoder.embeds) < begun + after:
            await asyncio.sleep(0.001)
        encoder.may_answer.clear()

    return asyncio.create_task(watch())


async def test_a_killed_router_goes_on_and_doubles_nothing(tmp_path, encoder):
    """Files in progress end completed, with each chunk once, after the next start."""
    router = start(tmp_path, encoder)
    watching = hold_up(encoder[0], after=3)
    try:
        async with connect(router) as (client, stub):
            store = await client.vector_stores.create()
            first = await put(client, store.id)
            await watching
            assert 0 < await num_points(stub, store.id) < len(CHUNKS)
            second = await put(client, store.id, "another text")
            seen = await client.vector_stores.retrieve(store.id)
            assert (seen.status, seen.file_counts.in_progress) == ("in_progress", 2)
        router.kill()
        encoder[0].may_answer.set()
        router.start()
        async with connect(router) as (client, stub):
            for file in (first, second):
                ended = await client.vector_stores.files.poll(
                    file.id, vector_store_id=store.id, max_wait_seconds=20
                )
                assert (ended.status, ended.last_error) == ("completed", None)
            assert await num_points(stub, store.id) == len(CHUNKS) + 1
            found = await client.vector_stores.search(store.id, query=CHUNKS[7], max_num_results=50)
            texts = [result.content[0].text for result in found.data]
            assert sorted(texts) == sorted([*CHUNKS, "another text"])
            assert texts[0] == CHUNKS[7]
    finally:
        watching.cancel()
        encoder[0].may_answer.set()
        assert router.stop() == 0


async def test_what_a_kill_cut_off_is_ended_by_the_next_start(tmp_path, encoder):
    """Deletions go on; a store whose caller never got an answer is not left behind."""
    router = start(tmp_path, encoder)
    try:
        async with connect(router) as (client, stub):
            stores = [await client.vector_stores.create() for _ in range(3)]
            files = [await put(client, store.id) for store in stores]
            for store, file in zip(stores, files, strict=True):
                await client.vector_stores.files.poll(file.id, vector_store_id=store.id)
        router.kill()
        (path,) = tmp_path.glob("*/router.sqlite")
        with sqlite3.connect(path) as database:
            database.execute("update vector_store_files set state = 'deleting' where number = 1")
            for state, store in (("creating", stores[1]), ("deleting", stores[2])):
                database.execute(
                    "update vector_stores set state = ? where id = ?", (state, store.id)
                )
        database.close()
        router.start()
        async with connect(router) as (client, stub):

            async def is_clean():
                listed = await stub.ListCollections(pb.ListCollectionsRequest())
                return [(c.name, c.num_points) for c in listed.collections] == [(stores[0].id, 0)]

            await until(is_clean)
            assert [s.id for s in (await client.vector_stores.list()).data] == [stores[0].id]
            assert not (await client.vector_stores.files.list(stores[0].id)).data
    finally:
        assert router.stop() == 0


async def test_a_batch_is_cancelled_in_the_middle(tmp_path, encoder):
    """What was in progress is cancelled and leaves no chunk; what was completed stays."""
    router = start(tmp_path, encoder)
    try:
        async with connect(router) as (client, stub):
            store = await client.vector_stores.create()
            done = await put(client, store.id, "a short text")
            await client.vector_stores.files.poll(done.id, vector_store_id=store.id)
            watching = hold_up(encoder[0], after=2)
            uploads = [
                await client.files.create(file=("a.txt", TEXT.encode()), purpose="assistants")
                for _ in range(5)
            ]
            batch = await client.vector_stores.file_batches.create(
                store.id,
                file_ids=[done.id, *(upload.id for upload in uploads)],
                chunking_strategy=STATIC,
            )
            assert batch.status == "in_progress"
            await watching
            cancelled = await client.vector_stores.file_batches.cancel(
                batch.id, vector_store_id=store.id
            )
            assert cancelled.status == "cancelled"
            assert (cancelled.file_counts.cancelled, cancelled.file_counts.in_progress) == (5, 0)
            encoder[0].may_answer.set()

            async def is_clean():
                return await num_points(stub, store.id) == 1

            await until(is_clean)
            again = await client.vector_stores.files.create_and_poll(
                uploads[0].id, vector_store_id=store.id, chunking_strategy=STATIC
            )
            assert again.status == "completed"
            assert await num_points(stub, store.id) == 1 + len(CHUNKS)
    finally:
        encoder[0].may_answer.set()
        assert router.stop() == 0


@pytest.mark.parametrize(
    ("retry_s", "status"), [("60", "completed"), ("0", "failed")], ids=["waits", "gives-up"]
)
async def test_files_wait_for_an_encoder_that_is_away(tmp_path, encoder, retry_s, status):
    """For as long as the setting says; then the file fails as the server's error."""
    router = start(tmp_path, encoder, MATRYOSHKA_ROUTER_INGEST_RETRY_S=retry_s)
    try:
        async with connect(router) as (client, stub):
            store = await client.vector_stores.create()
            encoder[0].fail_after = 2
            file = await put(client, store.id)
            await until(lambda: encoder_is_asked_again(encoder[0]))
            if status == "completed":
                encoder[0].fail_after = None
            ended = await client.vector_stores.files.poll(
                file.id, vector_store_id=store.id, max_wait_seconds=20
            )
            assert ended.status == status
            if status == "failed":
                assert ended.last_error.code == "server_error"
                assert "encoder" in ended.last_error.message

                async def is_clean():
                    return await num_points(stub, store.id) == 0

                await until(is_clean)
            else:
                assert await num_points(stub, store.id) == len(CHUNKS)
    finally:
        assert router.stop() == 0


async def encoder_is_asked_again(encoder: Encoder) -> bool:
    return len(encoder.embeds) >= 3
