"""What tests of commands share: all three services in one process, with a collection."""

import grpc
import numpy as np
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.conftest import serve


@pytest.fixture(scope="session")
def process(tmp_path_factory):
    """A `matryoshka up` with 600 points in the collection docs; all its searches are measured."""
    watched = {
        "MATRYOSHKA_ROUTER_SHADOW_SHARE": "1",
        "MATRYOSHKA_ROUTER_SHADOW_MAX_BUSY": "1",
    }
    started = serve(tmp_path_factory.mktemp("commands"), "up", **watched)
    with grpc.insecure_channel(started.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        made = router.CreateCollection(
            pb.CreateCollectionRequest(name="docs", model="default", sizes=[pb.Size(dim=64)])
        )
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((600, 384)) * np.geomspace(1, 0.05, 384)
        batch = pb.UpsertRequest(
            collection="docs",
            points=[pb.Point(id=str(number)) for number in range(600)],
            vectors=rows.astype("<f4").tobytes(),
            space_id=made.collection.space_id,
        )
        assert [answer.total_points for answer in router.Upsert(iter([batch]))] == [600]
    yield started
    assert started.stop() == 0
