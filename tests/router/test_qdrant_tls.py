"""A Qdrant server that speaks TLS: whom the router trusts, and what it sends."""

import pytest
from prometheus_client import CollectorRegistry

from services.router.metrics import RouterMetrics
from services.router.parts import Parts
from services.router.settings import RouterSettings
from services.router.storage.qdrant import QdrantStore
from services.shared.errors import Unavailable
from services.shared.settings import SettingsError
from services.shared.tls import CertificatesError, ServerTls
from tests.certificates import Authority, needs_openssl
from tests.router.sharded_qdrant import ShardedQdrant
from tests.router.test_qdrant_search import filled, random_vectors
from tests.router.test_trace import TWO

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours"), Authority(folder / "others")


@pytest.fixture
async def server(authorities):
    cert, key = authorities[0].issue("qdrant")
    running = ShardedQdrant(credentials=ServerTls(cert, key, None, None).grpc_credentials())
    await running.start()
    yield running
    await running.kill()


async def test_vectors_are_written_and_searched_over_tls(server, authorities):
    """With the CA of the server's certificate everything goes as without; the key is sent."""
    ca = authorities[0].ca.read_bytes()
    store = QdrantStore.connect("https://127.0.0.1:1", server.port, "planted", 30, ca=ca)
    collection = await filled(store, 3)
    [query_D] = random_vectors(1, 1)
    answer = await store.search(collection, TWO, query_D)
    assert answer.hits
    assert ("api-key", "planted") in server.metadata
    await store.close()


@pytest.mark.parametrize("trusted", ["others", "everybody's", "none"])
async def test_a_server_that_cannot_show_who_it_is_is_not_talked_to(server, authorities, trusted):
    """A certificate of another CA, or no TLS at all, ends the call, and says of whom."""
    ca = authorities[1].ca.read_bytes() if trusted == "others" else None
    url = "http://127.0.0.1:1" if trusted == "none" else "https://127.0.0.1:1"
    store = QdrantStore.connect(url, server.port, None, 5, ca=ca)
    with pytest.raises(Unavailable, match="the Qdrant server cannot be reached"):
        await store.open()
    assert not server.calls
    await store.close()


async def test_the_settings_say_whom_to_trust(server, authorities, tmp_path):
    """A CA for a server without TLS, and a file that holds none, end the start."""
    common = {"qdrant_grpc_port": server.port, "data_dir": tmp_path}
    with pytest.raises(SettingsError, match="QDRANT_TLS_CA needs a .*QDRANT_URL of https://"):
        RouterSettings.read(qdrant_url="http://127.0.0.1:1", qdrant_tls_ca="x", **common)
    for given, sentence in [
        (tmp_path / "gone", "cannot be read"),
        (authorities[0].folder / "ca.key", "must hold certificates in PEM"),
    ]:
        settings = RouterSettings.read(
            qdrant_url="https://127.0.0.1:1", qdrant_tls_ca=given, **common
        )
        with pytest.raises(CertificatesError, match=sentence):
            Parts(settings, RouterMetrics(CollectorRegistry()))
    settings = RouterSettings.read(
        qdrant_url="https://127.0.0.1:1", qdrant_tls_ca=authorities[0].ca, **common
    )
    registry = CollectorRegistry()
    parts = Parts(settings, RouterMetrics(registry))
    await parts.store.open()
    await parts.store.close()
    labels = {"engine": "qdrant", "encrypted": "yes"}
    assert registry.get_sample_value("matryoshka_router_storage_count", labels) == 1
