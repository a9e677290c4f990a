"""`matryoshka up` over TLS, as an operator runs it: SDKs, commands, another service, probes."""

import asyncio
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from services.shared.pb import router_pb2 as rt
from services.shared.pb import router_pb2_grpc
from tests.certificates import needs_openssl
from tests.conftest import serve

pytestmark = needs_openssl

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PROBES = re.compile(r"probes are answered at (http://\S+)$", re.MULTILINE)


class Documented:
    """A CA and its certificates, made as docs/operations.md says."""

    def __init__(self, folder: Path) -> None:
        section = OPERATIONS.read_text().partition("### Make certificates")[2]
        recipe = section.partition("```bash\n")[2].partition("```")[0]
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", recipe], cwd=folder, check=True,
            capture_output=True, timeout=60,
        )  # fmt: skip
        self.folder = folder
        self.ca = folder / "ca.crt"

    def issue(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Documented(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def process(authority, tmp_path_factory):
    cert, key = authority.issue("encoder")
    started = serve(
        tmp_path_factory.mktemp("up"), "up",
        MATRYOSHKA_UP_TLS_CERT=str(cert), MATRYOSHKA_UP_TLS_KEY=str(key),
        MATRYOSHKA_UP_TLS_GRPC_CLIENT_CA=str(authority.ca),
        MATRYOSHKA_UP_PROBE_PORT="0",
    )  # fmt: skip
    started.probes = PROBES.search(started.log_path.read_text())[1]
    yield started
    assert started.stop() == 0


def client_files(authority):
    cert, key = authority.issue("client")
    return {"CA": str(authority.ca), "CERT": str(cert), "KEY": str(key)}


def connect(process, authority):
    files = client_files(authority)
    contents = [Path(files[name]).read_bytes() for name in ("CA", "KEY", "CERT")]
    return grpc.aio.secure_channel(process.grpc, grpc.ssl_channel_credentials(*contents))


def test_the_documented_recipe_keeps_its_keys(authority):
    """Nobody but their owner may read them, and each certificate is of the CA."""
    keys = sorted(authority.folder.glob("*.key"))
    assert [path.stem for path in keys] == ["ca", "client", "encoder", "router", "trainer"]
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    for name in ("client", "encoder", "router", "trainer"):
        command = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", f"{name}.crt"]
        subprocess.run(command, cwd=authority.folder, check=True, capture_output=True, timeout=30)


def test_an_openai_sdk_needs_the_ca_and_nothing_else(process, authority):
    """Embeddings over HTTPS; nothing over HTTP."""
    assert process.http.startswith("https://")
    own = httpx.Client(verify=ssl.create_default_context(cafile=authority.ca))
    with openai.OpenAI(base_url=f"{process.http}/v1", api_key="none", http_client=own) as client:
        answer = client.embeddings.create(model="default", input="nested dolls", dimensions=64)
        assert len(answer.data[0].embedding) == 64
    with pytest.raises(httpx.TransportError):
        httpx.get(process.http.replace("https", "http") + "/livez")


def test_probes_need_no_certificate_and_see_nothing_else(process):
    """On their own port, in plain text, as the kubelet asks."""
    assert httpx.get(f"{process.probes}/livez").text == "ok"
    assert httpx.get(f"{process.probes}/readyz").status_code == 200
    for path in ("/metrics", "/v1/models", "/v1/embeddings"):
        assert httpx.get(f"{process.probes}{path}").status_code == 404


def run(process, environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", *arguments, "--encoder", process.grpc],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_commands_show_a_certificate(process, authority):
    """Told by options or by variables; without one they are refused, with a sentence."""
    files = client_files(authority)
    options = [part for name in files for part in (f"--tls-{name.lower()}", files[name])]
    by_option = run(process, {}, *options, "models", "list")
    assert "MiniLM" in by_option.stdout, by_option.stderr
    variables = {f"MATRYOSHKA_CLI_TLS_{name}": path for name, path in files.items()}
    assert run(process, variables, "models", "list").returncode == 0
    del variables["MATRYOSHKA_CLI_TLS_KEY"]
    assert "go together" in run(process, variables, "models", "list").stderr
    assert run(process, {}, "models", "list").returncode == 1
    wrong = {"MATRYOSHKA_CLI_TLS_CA": files["KEY"]}
    assert "must hold certificates" in run(process, wrong, "models", "list").stderr


async def test_services_call_each_other(process, authority, tmp_path):
    """Within the process, and a router of its own that shows its certificate to the encoder."""
    cert, key = authority.issue("router")
    router = await asyncio.to_thread(
        serve, tmp_path, "serve", "router",
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=process.grpc,
        MATRYOSHKA_ROUTER_TLS_CERT=str(cert), MATRYOSHKA_ROUTER_TLS_KEY=str(key),
        MATRYOSHKA_ROUTER_TLS_GRPC_CLIENT_CA=str(authority.ca),
        MATRYOSHKA_ROUTER_TLS_PEER_CA=str(authority.ca),
    )  # fmt: skip
    try:
        for served in (process, router):
            async with connect(served, authority) as channel:
                stub = router_pb2_grpc.RouterServiceStub(channel)
                await stub.CreateCollection(rt.CreateCollectionRequest(name="a", model="default"))
                point = rt.UpsertRequest(collection="a", points=[rt.Point(id="1", text="a doll")])
                async for _ in stub.Upsert(iter([point])):
                    pass
                found = await stub.Search(rt.SearchRequest(collection="a", text="dolls"))
                assert [hit.id for hit in found.hits] == ["1"]
    finally:
        assert router.stop() == 0


def test_rpcs_over_https_reach_the_router_itself(authority, tmp_path):
    """For a name that the certificate knows nothing of, and with a key for certificates on gRPC."""
    cert, key = authority.issue("router")
    router = serve(
        tmp_path, "serve", "router",
        MATRYOSHKA_ROUTER_TLS_CERT=str(cert), MATRYOSHKA_ROUTER_TLS_KEY=str(key),
        MATRYOSHKA_ROUTER_TLS_GRPC_CLIENT_CA=str(authority.ca),
        MATRYOSHKA_ROUTER_API_KEY="k-ops", TMPDIR=str(tmp_path),
    )  # fmt: skip
    try:
        with httpx.Client(verify=ssl.create_default_context(cafile=authority.ca)) as client:
            url = f"{router.http}/matryoshka.v1.RouterService/ListCollections"
            headers = {"authorization": "Bearer k-ops"}
            answer = client.post(url, json={}, headers=headers)
            assert (answer.status_code, answer.json()) == (200, {})
            assert client.post(url, json={}).status_code == 401
        (folder,) = tmp_path.glob("matryoshka-*")
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        assert router.stop() == 0
    assert not folder.exists()


def test_wrong_files_end_the_start(authority, tmp_path):
    """Of its own and of those that it calls, with a sentence each."""
    cert, key = authority.issue("trainer")

    def start(**variables):
        ended = subprocess.run(
            [sys.executable, "-m", "services.cli.main", "serve", "router", "--data", str(tmp_path)],
            env={"PATH": ""} | {f"MATRYOSHKA_ROUTER_{k}": str(v) for k, v in variables.items()},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 2
        return ended.stderr

    assert "must be a certificate and its key in PEM" in start(TLS_CERT=cert, TLS_KEY=cert)
    peer = start(TLS_PEER_CA=key, HTTP_PORT="0", GRPC_PORT="0")
    assert "must hold certificates in PEM" in peer
