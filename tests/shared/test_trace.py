"""Spans: one below the other, over wires and threads, and nothing at all where they are off."""

import asyncio
import concurrent.futures
import time

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from services.router.settings import RouterSettings
from services.shared.metrics import ServiceMetrics
from services.shared.settings import SettingsError
from services.shared.trace import OFF, Tracing, below, outgoing, place, record, span
from services.shared.trace_export import start_tracing
from tests.spans import read_spans

SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider)
    provider.shutdown()


def by_name(exporter):
    return {made.name: made for made in exporter.get_finished_spans()}


def test_stages_stand_below_their_call_and_that_below_its_caller(exporter, tracing):
    """Who sends a traceparent gets its own trace, the stage of a timer and what that calls too."""
    metrics = ServiceMetrics("router", CollectorRegistry())
    with tracing.begin("router", "Search", {"traceparent": SENT}) as call:
        with metrics.stage("encode"):
            ((name, carried),) = outgoing()
        call.outcome = "OK"
    made = by_name(exporter)
    assert {f"{one.context.trace_id:032x}" for one in made.values()} == {SENT[3:35]}
    assert f"{made['Search'].parent.span_id:016x}" == SENT[36:52]
    assert made["encode"].parent.span_id == made["Search"].context.span_id
    assert (name, carried[36:52]) == ("traceparent", f"{made['encode'].context.span_id:016x}")
    assert dict(made["Search"].attributes) == {
        "matryoshka.service": "router", "matryoshka.outcome": "OK",
    }  # fmt: skip
    assert place() is None


def test_calls_at_once_have_traces_of_their_own(exporter, tracing):
    """Tasks of one loop do not see each other's spans."""

    async def call(number):
        with tracing.begin("router", f"call {number}", {}):
            await asyncio.sleep(0)
            with span(f"stage {number}"):
                await asyncio.sleep(0)

    async def all_calls():
        await asyncio.gather(*(call(number) for number in range(5)))

    asyncio.run(all_calls())
    made = by_name(exporter)
    assert len({one.context.trace_id for one in made.values()}) == 5
    for number in range(5):
        assert made[f"stage {number}"].parent.span_id == made[f"call {number}"].context.span_id


def test_another_threads_work_is_recorded_where_it_was_asked_for(exporter, tracing):
    """With the times that it really took, also after the call has ended."""
    with tracing.begin("encoder", "Embed", {}):
        above = place()
    start_s = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(record, above, "forward", start_s - 0.25, start_s, texts=3).result()
    made = by_name(exporter)
    assert made["forward"].parent.span_id == made["Embed"].context.span_id
    took_s = (made["forward"].end_time - made["forward"].start_time) / 1e9
    assert took_s == pytest.approx(0.25, abs=1e-3)  # clocks count in steps
    assert dict(made["forward"].attributes) == {"texts": 3}


def test_an_error_is_marked_and_not_told(exporter, tracing):
    """A message may hold a user's text: no span carries it."""
    with pytest.raises(ValueError), tracing.begin("router", "Search", {}), span("encode"):
        raise ValueError("a planted text")
    for made in exporter.get_finished_spans():
        assert not made.status.is_ok
        assert "planted" not in made.to_json()
    exporter.clear()
    with tracing.begin("router", "Search", {}) as call:
        call.outcome = "INVALID_ARGUMENT"
    (made,) = exporter.get_finished_spans()
    assert made.status.is_unset  # the caller's mistake, not ours


@pytest.mark.parametrize("header", ["", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", b"x"])
def test_a_header_that_is_none_begins_a_trace(exporter, tracing, header):
    with tracing.begin("router", "Search", {"traceparent": header}):
        pass
    (made,) = exporter.get_finished_spans()
    assert made.parent is None


def test_a_caller_that_is_not_sampled_is_not_traced(tmp_path):
    """Nor is what it calls: the decision travels on. Others are, by the share."""
    file = tmp_path / "spans.jsonl"
    tracing = start_tracing(file.as_uri(), 1.0, "router")
    with tracing.begin("router", "Search", {"traceparent": UNSAMPLED}):
        ((_, carried),) = outgoing()
    assert carried.endswith("-00")
    tracing.close()
    assert file.read_text() == ""
    never = start_tracing(file.as_uri(), 0.0, "router")
    with never.begin("router", "one", {}):
        pass
    with never.begin("router", "two", {"traceparent": SENT}):
        pass
    never.close()
    (two,) = read_spans(file)
    assert (two.name, two.trace, two.parent) == ("two", SENT[3:35], SENT[36:52])


def test_what_a_call_leaves_behind_is_below_it(exporter, tracing):
    """Also when the call has ended; and nothing is, where none is given."""
    with tracing.begin("trainer", "Promote", {}):
        above = place()
    with below(above), span("loading"):
        assert len(outgoing()) == 1
    with below(None):
        assert span("loading") is OFF
    made = by_name(exporter)
    assert made["loading"].parent.span_id == made["Promote"].context.span_id
    assert place() is None


def test_a_file_is_appended_to(tmp_path):
    """By several at once, a line each: a service and its jobs."""
    file = tmp_path / "new" / "spans.jsonl"
    both = [start_tracing(file.as_uri(), 1.0, name) for name in ("trainer", "training")]
    for tracing in both:
        with tracing.begin("trainer", "Job", {"traceparent": SENT}), span("train"):
            pass
    for tracing in both:
        tracing.close()
    found = read_spans(file)
    assert [one.key for one in found] == [
        (name, part) for name in ("trainer", "training") for part in ("train", "Job")
    ]
    assert {one.trace for one in found} == {SENT[3:35]}


def test_where_it_is_off_there_is_nothing():
    """No span, and no metadata; what is left of it `bench.trace` times."""
    assert start_tracing(None, 1.0, "router") is None
    assert span("encode") is OFF
    assert outgoing() == ()
    assert place() is None
    record(None, "forward", 0.0, 1.0)


def test_a_collector_gets_the_spans():
    """Over OTLP, the protocol that collectors speak, with the process's name and version."""
    got = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):
            got.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracing = start_tracing(f"http://127.0.0.1:{port}", 1.0, "router")
    with tracing.begin("router", "Search", {}), span("encode"):
        pass
    tracing.close()
    server.stop(None).wait()
    (resource_spans,) = got[0].resource_spans
    resource = {one.key: one.value.string_value for one in resource_spans.resource.attributes}
    assert resource["service.name"] == "router"
    assert resource["service.version"]
    names = {one.name for scope in resource_spans.scope_spans for one in scope.spans}
    assert names == {"Search", "encode"}


@pytest.mark.parametrize("place_", ["collector:4317", "http://collector:4317/v1/traces", "file:"])
def test_a_place_that_is_none_is_told_with_what_would_be(place_):
    with pytest.raises(SettingsError, match="ROUTER_TRACE_TO must be a collector's OTLP address"):
        RouterSettings.read(trace_to=place_)


def test_a_password_in_a_place_is_refused_and_not_shown():
    with pytest.raises(SettingsError, match="must hold no user or password") as caught:
        RouterSettings.read(trace_to="http://me:sk-planted@collector:4317")
    assert "sk-planted" not in str(caught.value)


def test_the_extra_is_asked_for_by_name(monkeypatch):
    """Without OpenTelemetry the start says how to install it; a machine without it is imitated."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'matryoshka-suite\[trace\]'"):
        RouterSettings.read(trace_to="http://collector:4317")
