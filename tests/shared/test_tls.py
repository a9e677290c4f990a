"""TLS and mTLS over real connections on loopback: who is refused, and what a rotation does."""

import asyncio
import contextlib
import logging
import os
import ssl
import subprocess

import grpc
import httpx
import prometheus_client
import pytest
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from services.shared.bodies import Bodies
from services.shared.channel import Peer
from services.shared.connection import Connection
from services.shared.http import build_app
from services.shared.keys import Keys
from services.shared.state import State
from services.shared.tls import CertificatesError, ServerTls, TlsFiles
from tests.certificates import Authority, install, needs_openssl

pytestmark = needs_openssl

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours"), Authority(folder / "others")


class Places:
    """Where a server and a client look for their certificates, as in mounted secrets."""

    def __init__(self, folder, authority):
        self.cert, self.key, self.ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
        self.install(authority, "first")

    def install(self, authority, name):
        cert, key = authority.issue(name)
        install({self.ca: authority.ca, self.key: key, self.cert: cert})


@pytest.fixture
def places(tmp_path, authorities):
    return Places(tmp_path, authorities[0])


class Served:
    """Both wires of a server, with the health service and the probes."""

    def __init__(self, tls, grpc_server, http_server):
        self.tls = tls
        self.grpc_server = grpc_server
        self.http_server = http_server
        self.grpc = ""

    @property
    def http(self):
        return f"127.0.0.1:{self.http_server.servers[0].sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def serving(tls):
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    app = build_app(
        {}, State(True, True), Bodies(10**6, 5.0), prometheus_client.CollectorRegistry(), Keys(),
        frozenset(),
    )  # fmt: skip
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, lifespan="off", http=Connection,
        ssl_context_factory=lambda *_: tls.http_context,
    )  # fmt: skip
    http = uvicorn.Server(config)
    # uvicorn's own handlers of signals are not for a test.
    http.capture_signals = contextlib.nullcontext
    served = Served(tls, server, http)
    served.grpc = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', tls.grpc_credentials())}"
    await server.start()
    running = asyncio.create_task(http.serve())
    while not http.started:
        await asyncio.sleep(0.01)
    try:
        yield served
    finally:
        http.should_exit = True
        await running
        await server.stop(None)


async def ask_grpc(address, tls):
    """Return what the health service says, or the status of the failure."""
    peer = Peer(address, health_pb2_grpc.HealthStub, tls=tls)
    try:
        answer = await peer.stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return answer.status
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await peer.close()


async def ask_http(address, tls, scheme="https"):
    """Return the status, or None where no connection came about."""
    verify = True if tls is None else tls.load(ssl.PROTOCOL_TLS_CLIENT).context
    async with httpx.AsyncClient(verify=verify, timeout=10) as client:
        try:
            return (await client.get(f"{scheme}://{address}/livez")).status_code
        except httpx.TransportError:
            return None


async def test_who_is_served_and_who_is_refused(places, authorities):
    """Both wires: only over TLS, only under its own CA, and who shows a certificate of it."""
    ours, others = authorities
    shown, shown_by_others = ours.issue("client"), others.issue("client")
    tls = ServerTls(places.cert, places.key, ours.ca, ours.ca)
    callers = {
        "ours": (TlsFiles(*shown, ours.ca), True),
        "without a certificate": (TlsFiles(None, None, ours.ca), False),
        "with one of another CA": (TlsFiles(*shown_by_others, ours.ca), False),
        "trusts another CA": (TlsFiles(*shown, others.ca), False),
        "without TLS": (None, False),
    }
    async with serving(tls) as served:
        for name, (files, is_served) in callers.items():
            wanted = SERVING if is_served else grpc.StatusCode.UNAVAILABLE
            assert await ask_grpc(served.grpc, files) == wanted, name
            wanted = 200 if is_served else None
            scheme = "http" if files is None else "https"
            assert await ask_http(served.http, files, scheme) == wanted, name


async def test_each_wire_asks_for_certificates_or_not(places, authorities):
    """So that a browser or an OpenAI SDK needs none where the services must show theirs."""
    nobodys = TlsFiles(None, None, authorities[0].ca)
    async with serving(ServerTls(places.cert, places.key, places.ca, None)) as served:
        assert await ask_grpc(served.grpc, nobodys) == grpc.StatusCode.UNAVAILABLE
        assert await ask_http(served.http, nobodys) == 200


async def test_a_certificate_for_another_host_is_refused(places, authorities):
    """A client checks whom it reached, not only who signed."""
    cert, key = authorities[0].issue("elsewhere", "DNS:elsewhere.example")
    install({places.key: key, places.cert: cert})
    nobodys = TlsFiles(None, None, authorities[0].ca)
    async with serving(ServerTls(places.cert, places.key, None, None)) as served:
        assert await ask_grpc(served.grpc, nobodys) == grpc.StatusCode.UNAVAILABLE
        assert await ask_http(served.http, nobodys) is None


async def test_a_rotation_under_load_fails_no_call(places, authorities, monkeypatch, caplog):
    """New certificates of another CA on both sides, by the watches alone: not one failed call.

    In the order that operators need for that: first both sides trust both CAs, then they show the
    new certificates, then the old CA is trusted no more. Old calls go on in the old channel.
    """
    monkeypatch.setattr("services.shared.watch._LOOK_S", 0.02)
    caplog.set_level(logging.INFO)
    ours, others = authorities
    both = places.ca.with_name("both.pem")
    both.write_bytes(ours.ca.read_bytes() + others.ca.read_bytes())
    over_http = TlsFiles(*ours.issue("client"), both)
    tls = ServerTls(places.cert, places.key, places.ca, places.ca)
    watching = asyncio.create_task(tls.watch())
    async with serving(tls) as served:
        files = TlsFiles(places.cert, places.key, places.ca)
        peer = Peer(served.grpc, health_pb2_grpc.HealthStub, tls=files)
        stubs = set()
        watch = peer.stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING

        async def call_until_both_say(text, times):
            """Server and client have both seen the files, and calls went on for a while after."""
            more = 3
            async with asyncio.timeout(30):
                while (caplog.text.count(text) < 2 * times) or (more := more - 1):
                    stubs.add(peer.stub)
                    answer = await peer.stub.Check(health_pb2.HealthCheckRequest())
                    assert answer.status == SERVING
                    assert await ask_http(served.http, over_http) == 200

        await call_until_both_say("", 0)
        install({places.ca: both})
        await call_until_both_say("were read again", 1)
        cert, key = others.issue("second")
        install({places.key: key})  # half of a pair changes nothing
        await call_until_both_say("stay as they were", 1)
        install({places.cert: cert})
        await call_until_both_say("were read again", 2)
        over_http = TlsFiles(cert, key, others.ca)
        install({places.ca: others.ca})
        await call_until_both_say("were read again", 3)
        assert len(stubs) == 4, "one channel for each state of the files"
        late = ours.issue("late")
        for files in (TlsFiles(*late, others.ca), TlsFiles(cert, key, ours.ca)):
            assert await ask_grpc(served.grpc, files) == grpc.StatusCode.UNAVAILABLE
            assert await ask_http(served.http, files) is None
        assert not watch.done()
        watch.cancel()
        await peer.close()
    watching.cancel()


WRONG = {
    "missing": (lambda p: p.cert.unlink(), "tls.crt cannot be read"),
    "no PEM": (lambda p: p.key.write_text("x"), "must be a certificate and its key in PEM"),
    "other key": (lambda p: p.key.write_bytes(p.ca.with_name("other.key").read_bytes()),
                  "must be a certificate and its key in PEM"),
    "encrypted": (lambda p: encrypt(p.key), "not encrypted"),
    "no CA": (lambda p: p.ca.write_text("x"), "ca.crt must hold certificates in PEM"),
}  # fmt: skip


def encrypt(path):
    new = path.with_suffix(".encrypted")
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", str(path), "-out", str(new)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    os.replace(new, path)


@pytest.mark.parametrize(("spoil", "says"), WRONG.values(), ids=WRONG)
async def test_files_that_cannot_be_used_are_refused_and_change_nothing(
    places, authorities, spoil, says, caplog
):
    """At the start with a sentence that names them; later the old ones stay, told once."""
    install({places.ca.with_name("other.key"): authorities[0].issue("other")[1]})
    tls = ServerTls(places.cert, places.key, places.ca, places.ca)
    before = TlsFiles(*authorities[0].issue("client"), authorities[0].ca)
    spoil(places)
    with pytest.raises(CertificatesError, match=says) as caught:
        ServerTls(places.cert, places.key, places.ca, places.ca)
    assert "None" not in str(caught.value)
    tls.refresh()
    tls.refresh()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the certificates stay as they were" in caplog.text
    assert "PRIVATE" not in caplog.text
    async with serving(tls) as served:
        assert await ask_grpc(served.grpc, before) == SERVING
        assert await ask_http(served.http, before) == 200
