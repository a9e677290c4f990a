"""kill -9 of a real router in the middle of an upsert stream: nothing acknowledged is lost."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np

from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc
from services.shared.vectors import pack
from tests.conftest import Process, serve
from tests.router.conftest import Encoder

DIM = 32


def worker_pids(data_dir: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"edge_worker" in (line := path.read_bytes()) and str(data_dir).encode() in line:
                found.append(int(path.parent.name))
    return found


async def upsert_until_killed(stub, router: Process, batches: int) -> set[str]:
    """Stream upserts; kill the router after some acknowledgements; return the acknowledged ids."""
    rng = np.random.default_rng(0)

    async def requests() -> AsyncIterator[pb.UpsertRequest]:
        for number in range(10_000):
            yield pb.UpsertRequest(
                collection="docs",
                points=[pb.Point(id=f"{number}-{row}", text="x") for row in range(20)],
                vectors=pack(rng.standard_normal((20, DIM)).astype(np.float32)),
                space_id="space-small",
            )

    acknowledged = 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in stub.Upsert(requests()):
            acknowledged += 1
            if acknowledged == batches:
                router.kill()
    assert acknowledged >= batches
    return {f"{number}-{row}" for number in range(acknowledged) for row in range(20)}


async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, encoder: tuple[Encoder, str]):
    """After the kill no worker is left, and the restarted router has every acknowledged point."""
    address = {"MATRYOSHKA_ROUTER_ENCODER_ADDRESS": encoder[1]}
    router = serve(tmp_path, "serve", "router", **address)
    try:
        async with grpc.aio.insecure_channel(router.grpc) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            await stub.CreateCollection(pb.CreateCollectionRequest(name="docs", model="small"))
            acknowledged = await upsert_until_killed(stub, router, batches=25)
        router.start()
        async with grpc.aio.insecure_channel(router.grpc) as channel:
            stored = await stored_ids(router_pb2_grpc.RouterServiceStub(channel))
        assert acknowledged <= stored
        assert len(worker_pids(tmp_path)) == 1
    finally:
        assert router.stop() == 0
    assert worker_pids(tmp_path) == []


async def stored_ids(stub) -> set[str]:
    """Read every stored id through exact searches over both halves of the space."""
    found = await stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    query = np.ones((1, DIM), dtype=np.float32)
    ids: set[str] = set()
    for sign in (1, -1):
        answer = await stub.Search(
            pb.SearchRequest(
                collection="docs",
                vector=pack(sign * query),
                space_id="space-small",
                limit=1000,
                plan=pb.Plan(stages=[pb.Stage(dim=DIM, exact=True)]),
            )
        )
        ids |= {hit.id for hit in answer.hits}
    assert len(ids) == found.collection.num_points
    return ids
