"""One trace across real services: HTTP, gRPC, the encoder's batches, the router's searches."""

import grpc
import httpx
import numpy as np
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.conftest import serve
from tests.spans import read_spans

TRACE = {"http": "1" * 32, "search": "2" * 32, "upsert": "3" * 32, "refused": "4" * 32}
CALLER = "b7ad6b7169203331"
KEY, TEXT = "sk-planted-in-spans", "planted words that nobody may read in a span"


def parent(name):
    return f"00-{TRACE[name]}-{CALLER}-01"


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """{trace: its spans} of an encoder and a router, each in its own process and file."""
    folder = tmp_path_factory.mktemp("trace")
    files = [folder / "encoder.jsonl", folder / "router.jsonl"]
    encoder = serve(
        folder / "encoder", "serve", "encoder",
        MATRYOSHKA_ENCODER_TRACE_TO=files[0].as_uri(), MATRYOSHKA_ENCODER_API_KEY=KEY,
    )  # fmt: skip
    router = serve(
        folder / "router", "serve", "router",
        MATRYOSHKA_ROUTER_TRACE_TO=files[1].as_uri(),
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder.grpc, MATRYOSHKA_ROUTER_ENCODER_API_KEY=KEY,
        MATRYOSHKA_ROUTER_API_KEY=KEY,
    )  # fmt: skip
    try:
        call(encoder, router)
    finally:
        ended = router.stop(), encoder.stop()
    assert ended == (0, 0)
    assert all(KEY not in file.read_text() and "planted" not in file.read_text() for file in files)
    found = {}
    for one in read_spans(*files):
        found.setdefault(one.trace, []).append(one)
    return found


def call(encoder, router):
    answer = httpx.post(
        f"{encoder.http}/v1/embeddings",
        json={"model": "default", "input": [TEXT, f"{TEXT} again"]},
        headers={"authorization": f"Bearer {KEY}", "traceparent": parent("http")},
        timeout=60,
    )
    assert answer.status_code == 200
    with grpc.insecure_channel(router.grpc) as channel:
        stub = pb_grpc.RouterServiceStub(channel)

        def metadata(name):
            return (("authorization", f"Bearer {KEY}"), ("traceparent", parent(name)))

        made = stub.CreateCollection(
            pb.CreateCollectionRequest(name="docs", model="default", sizes=[pb.Size(dim=64)]),
            metadata=metadata("refused")[:1],
        )
        assert made.collection.space_id
        point = pb.Point(id="1", text=TEXT)
        batch = pb.UpsertRequest(collection="docs", points=[point])
        list(stub.Upsert(iter([batch]), metadata=metadata("upsert")))
        asked = pb.SearchRequest(collection="docs", text=f"{TEXT}, asked for")
        stub.Search(asked, metadata=metadata("search"))
        with pytest.raises(grpc.RpcError):
            stub.Search(
                pb.SearchRequest(collection="docs", vector=np.ones(3, "<f4").tobytes()),
                metadata=metadata("refused"),
            )


def tree(some):
    """{(service, name): (service, name) of what it stands below}; the caller is ""."""
    ids = {one.id: one.key for one in some}
    return {one.key: ids.get(one.parent, "") for one in some}


def test_an_http_call_is_one_trace_down_to_the_forward_pass(spans):
    """Its stages and the batcher's, below the caller's own span."""
    some = spans[TRACE["http"]]
    call = ("encoder", "POST /v1/embeddings")
    assert tree(some) == {
        call: "", ("encoder", "tokenize"): call, ("encoder", "batch wait"): call,
        ("encoder", "forward"): call, ("encoder", "cut"): call,
    }  # fmt: skip
    root = next(one for one in some if one.key == call)
    assert root.parent == CALLER
    assert root.attributes == {"matryoshka.service": "encoder", "matryoshka.outcome": "OK"}
    forward = next(one for one in some if one.name == "forward")
    assert forward.attributes["texts"] == 2
    for one in some:
        assert root.start_ns <= one.start_ns <= one.end_ns


def test_a_search_is_one_trace_from_the_router_to_the_encoder(spans):
    """The encoder's call stands below the router's stage that made it."""
    found = tree(spans[TRACE["search"]])
    assert found["router", "Search"] == ""
    assert found["router", "encode"] == found["router", "search"] == ("router", "Search")
    assert found["encoder", "Embed"] == ("router", "encode")
    assert found["encoder", "forward"] == ("encoder", "Embed")


def test_a_stream_of_writes_is_one_trace_too(spans):
    """With the encoder's calls for its documents."""
    found = tree(spans[TRACE["upsert"]])
    assert found["router", "Upsert"] == ""
    assert ("encoder", "Embed") in found


def test_a_refused_call_says_how_it_ended_and_nothing_more(spans):
    (one,) = spans[TRACE["refused"]]
    assert one.attributes["matryoshka.outcome"] == "INVALID_ARGUMENT"
    assert "events" not in one.whole
    assert one.whole["status"] == {}
