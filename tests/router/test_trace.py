"""The stages of a plan as spans, over gRPC to a Qdrant server's twin."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.router.plan import Plan, Stage
from services.router.storage.qdrant import QdrantStore
from services.shared.trace import Tracing
from tests.router.sharded_qdrant import ShardedQdrant
from tests.router.test_qdrant_search import FULL, filled, random_vectors

TWO = Plan((Stage(4, 12), Stage(FULL, 5)))
ONE = Plan((Stage(FULL, 10, exact=True),))


@pytest.mark.parametrize(
    ("shards", "plan", "names"),
    [(3, TWO, ["shortlist", "rerank"]), (1, TWO, ["query"]), (3, ONE, ["query"])],
)
async def test_each_query_to_the_server_is_a_span(shards, plan, names):
    """In several shards a plan's stages are queries of their own; else one query holds them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = ShardedQdrant()
    await server.start()
    store = QdrantStore.connect("http://127.0.0.1:1", server.port, None, 30)
    collection = await filled(store, shards)
    [query_D] = random_vectors(1, 1)
    with Tracing(provider).begin("router", "Search", {}):
        await store.search(collection, plan, query_D)
    *stages, call = exporter.get_finished_spans()
    assert [one.name for one in stages] == names
    assert {one.parent.span_id for one in stages} == {call.context.span_id}
    await store.close()
    await server.kill()
