"""The trainer's client of encoders: each address behind a name is called, over TLS by that name."""

import grpc
import pytest

from services.shared.address import resolve
from services.shared.errors import Unavailable
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from services.shared.tls import ServerTls, TlsFiles
from services.trainer.models.encoder_client import EncoderClient
from tests.certificates import Authority, needs_openssl


class Encoder(pb_grpc.EncoderServiceServicer):
    def __init__(self, model):
        self.model = model

    async def GetModel(self, request, context):
        if request.model != "default":
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        return pb.GetModelResponse(model=pb.Model(id=self.model))


async def serve(model, credentials=None):
    server = grpc.aio.server()
    pb_grpc.add_EncoderServiceServicer_to_server(Encoder(model), server)
    address = "127.0.0.1:0"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    return server, port


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:9000", ["ipv4:127.0.0.1:9000"]),
        ("localhost:9000", ["ipv4:127.0.0.1:9000"]),
        ("dns:///localhost:9000", ["ipv4:127.0.0.1:9000"]),
        ("dns:localhost:9000", ["ipv4:127.0.0.1:9000"]),
        ("[::1]:9000", ["ipv6:[::1]:9000"]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:2"]),
        ("unix:/run/grpc", ["unix:/run/grpc"]),
    ],
)
async def test_a_name_is_all_its_addresses(address, found):
    """As gRPC takes each; a server of both kinds of IP is one."""
    assert await resolve(address) == found


async def test_a_name_that_nobody_knows_is_waited_for():
    """As a Service without a ready pod has no address: it may have one soon."""
    with pytest.raises(Unavailable, match=r"the name 'encoder\.invalid' has no address"):
        await resolve("dns:///encoder.invalid:9000")


async def test_each_says_for_itself_what_it_serves():
    """Where they have come apart, that is seen; a name that one does not know is none."""
    (first, one), (second, two) = await serve("a"), await serve("b")
    client = EncoderClient(f"ipv4:127.0.0.1:{one},127.0.0.1:{two}", None, 10)
    assert await client.models_of("default") == ["a", "b"]
    assert await client.models_of("other") == ["", ""]
    await second.stop(None)
    with pytest.raises(Unavailable, match=f"the encoder at 127.0.0.1:{two} cannot be reached"):
        await client.models_of("default")
    await client.close()
    await first.stop(None)


@needs_openssl
async def test_over_tls_each_shows_a_certificate_for_the_name_of_all(tmp_path):
    """Pods are called by their addresses, which no certificate holds."""
    authority = Authority(tmp_path / "ours")
    cert, key = authority.issue("encoder", "DNS:localhost")
    server, port = await serve("a", ServerTls(cert, key, None, None).grpc_credentials())
    tls = TlsFiles(None, None, authority.ca)
    named = EncoderClient(f"dns:///localhost:{port}", None, 10, tls)
    assert await named.models_of("default") == ["a"]
    await named.close()
    unnamed = EncoderClient(f"127.0.0.1:{port}", None, 10, tls)
    with pytest.raises(Unavailable, match="the encoder cannot be reached"):
        await unnamed.models_of("default")
    await unnamed.close()
    await server.stop(None)
