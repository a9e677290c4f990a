"""What each stage of a call took, as spans of OpenTelemetry, in one trace across the services.

Off unless a setting says where spans go (`trace_export.py`). Then each door begins a span for a
call, below the caller's if it sent one (W3C Trace Context: `traceparent`), the stages of the work
are spans below that, and a call to another service carries it on. What a service does by itself, on
nobody's call, is not traced. A span has a name, times, counts and an outcome; never a text, a
vector, a key, a tenant or the message of an error.

Source: W3C Recommendation "Trace Context", 2021.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_HEADERS = ("traceparent", "tracestate")
# Outcomes that are a service's fault, as gRPC's statuses are named.
_FAULTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True, slots=True)
class Place:
    """A span that others may be put below."""

    tracing: "Tracing"
    context: Any
    """OpenTelemetry's context with the span in it."""


_place: ContextVar[Place | None] = ContextVar("place", default=None)


def place() -> Place | None:
    """Return the span that is open here; None: none, or spans are off."""
    return _place.get()


@contextlib.contextmanager
def below(above: Place | None) -> Iterator[None]:
    """Put what the block does below a span that may have ended: of work that a call has begun."""
    token = _place.set(above)
    try:
        yield
    finally:
        _place.reset(token)


class Tracing:
    """Makes spans. Built by `trace_export.start_tracing`; None stands for off.

    Args:
        provider: OpenTelemetry's TracerProvider.
    """

    # Any, here and below: of an extra that may not be there.
    def __init__(self, provider: Any) -> None:  # noqa: ANN401
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self.tracer: Any = provider.get_tracer("matryoshka")
        self.propagator: Any = TraceContextTextMapPropagator()
        self._trace: Any = trace

    def begin(self, service: str, name: str, headers: Mapping[str, Any]) -> "Span":
        """Begin the span of a call that came; enter it at once.

        Args:
            service: that answers it.
            name: of the call, such as "Search" or "POST /v1/embeddings".
            headers: of the call, or its metadata, by names in lower case.
        """
        sent = {key: headers[key] for key in _HEADERS if isinstance(headers.get(key), str)}
        context = self.propagator.extract(sent)
        kind = self._trace.SpanKind.SERVER
        attributes = {"matryoshka.service": service}
        return Span(self, name, context, kind, attributes)

    def with_span(self, span: Any, context: Any) -> Place:  # noqa: ANN401 (OpenTelemetry's)
        """Return the place below a span."""
        return Place(self, self._trace.set_span_in_context(span, context))

    def mark_fault(self, span: Any) -> None:  # noqa: ANN401 (OpenTelemetry's)
        """Show a span as failed, without saying of what."""
        span.set_status(self._trace.StatusCode.ERROR)

    def close(self) -> None:
        """Send what was not sent yet; may take seconds, so not on the event loop."""
        self._provider.shutdown()


class Span:
    """A span that is open while its block runs, and above what the block calls."""

    __slots__ = ("_arguments", "_name", "_span", "_token", "_tracing", "outcome")

    def __init__(
        self,
        tracing: Tracing,
        name: str,
        context: Any,  # noqa: ANN401 (OpenTelemetry's)
        kind: Any = None,  # noqa: ANN401
        attributes: Mapping[str, str | int] | None = None,
    ) -> None:
        self._tracing = tracing
        self._name = name
        self._arguments = {"context": context, "attributes": attributes}
        if kind is not None:
            self._arguments["kind"] = kind
        self._span: Any = None
        self._token: Token[Place | None] | None = None
        self.outcome = ""
        """Name of a gRPC status, set before the block ends; "": the block's own."""

    def __enter__(self) -> Self:
        self._span = self._tracing.tracer.start_span(
            self._name, record_exception=False, set_status_on_exception=False, **self._arguments
        )
        self._token = _place.set(self._tracing.with_span(self._span, self._arguments["context"]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._token is not None
        # A stream that nobody reads to its end is closed elsewhere, where nothing was put.
        with contextlib.suppress(ValueError):
            _place.reset(self._token)
        if self.outcome:
            self._span.set_attribute("matryoshka.outcome", self.outcome)
        if self.outcome in _FAULTS or (kind is not None and not self.outcome):
            self._tracing.mark_fault(self._span)
        self._span.end()


class _Off:
    """Stands for a span where there is none."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        return None


OFF = _Off()


def span(name: str) -> Span | _Off:
    """Return a span for a stage of the call that is being answered, to be entered."""
    above = _place.get()
    if above is None:
        return OFF
    return Span(above.tracing, name, above.context)


def record(above: Place | None, name: str, start_s: float, end_s: float, **counts: int) -> None:
    """Add a span of something that has ended, on any thread.

    Args:
        above: `place()` of the call that it was done for.
        name: of the stage.
        start_s: by `time.perf_counter`.
        end_s: likewise.
        counts: what is told of it.
    """
    if above is None:
        return
    now_s, now_ns = time.perf_counter(), time.time_ns()
    start_ns, end_ns = (now_ns - round((now_s - one_s) * 1e9) for one_s in (start_s, end_s))
    made = above.tracing.tracer.start_span(
        name, above.context, start_time=start_ns, attributes=counts
    )
    made.end(end_ns)


def outgoing() -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries the trace on to another service; none if there is none."""
    above = _place.get()
    if above is None:
        return ()
    carrier: dict[str, str] = {}
    above.tracing.propagator.inject(carrier, above.context)
    return tuple(carrier.items())
