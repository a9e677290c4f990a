"""The official Connect client calls a router unchanged."""

import pytest
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType

from services.shared.pb import router_pb2 as pb
from tests.router.test_rpcs_http import fill, served


def rpc(name, stream_type=StreamType.UNARY):
    return MethodInfo(
        name=name,
        service_name=pb.DESCRIPTOR.services_by_name["RouterService"].full_name,
        input=getattr(pb, f"{name}Request"),
        output=getattr(pb, f"{name}Response"),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=stream_type,
    )


@pytest.mark.parametrize("codec", [google_protobuf_json_codec, google_protobuf_binary_codec])
async def test_the_official_client_calls_and_streams(codec, router):
    """In JSON and protobuf, with its own compression, deadlines and errors."""
    await fill(router)
    async with (
        served(router) as http,
        ConnectClient(str(http.base_url).rstrip("/"), codec=codec()) as client,
    ):
        found = await client.execute_unary(
            request=pb.SearchRequest(collection="notes", text="text 7", limit=3),
            method=rpc("Search"), timeout_ms=30_000,
        )  # fmt: skip
        assert found.hits[0].id == "n7"
        with pytest.raises(ConnectError) as caught:
            await client.execute_unary(
                request=pb.GetCollectionRequest(name="none"), method=rpc("GetCollection")
            )
        assert caught.value.code is Code.NOT_FOUND
        assert "none" in caught.value.message
        resize = rpc("ResizeCollection", StreamType.SERVER_STREAM)
        sizes = [pb.Size(dim=8), pb.Size(dim=32)]
        wanted = pb.ResizeCollectionRequest(name="notes", sizes=sizes)
        answers = [one async for one in client.execute_server_stream(request=wanted, method=resize)]
        assert answers[-1].collection.name == "notes"
        wanted.name = "none"
        with pytest.raises(ConnectError) as caught:
            async for _ in client.execute_server_stream(request=wanted, method=resize):
                pass
        assert caught.value.code is Code.NOT_FOUND
