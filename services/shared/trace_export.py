"""Where spans go: to a collector by OTLP over gRPC, or as lines of OTLP's JSON into a file.

OpenTelemetry is an extra, imported only when a setting asks for it. Spans wait in a bounded queue
and are sent by a thread of its own; what does not fit is dropped, and no call waits.
"""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from services.shared.trace import Tracing


def check_trace_to(place: str) -> str:
    """Return where spans shall go.

    Raises:
        ValueError: it is neither a collector's URL nor a file's, or the extra is missing; the
            message goes on after the setting's name.
    """
    parts = urlsplit(place)
    if parts.username or parts.password:
        raise ValueError(
            "must hold no user or password; what a collector asks for goes into "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    is_collector = (
        parts.scheme in ("http", "https") and parts.hostname and not parts.path.strip("/")
    )
    if not (is_collector or (parts.scheme == "file" and parts.path)):
        raise ValueError(
            "must be a collector's OTLP address such as http://collector:4317, or a file such as "
            f"file:///var/log/spans.jsonl, got {place!r}"
        )
    if not _is_installed():
        raise ValueError("needs: pip install 'matryoshka-suite[trace]'")
    return place


def _is_installed() -> bool:
    needed = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.grpc")
    try:  # other packages bring a part of it, the API
        return all(importlib.util.find_spec(name) for name in needed)
    except ModuleNotFoundError:
        return False


def start_tracing(place: str | None, share: float, name: str) -> Tracing | None:
    """Build what makes and sends spans.

    Args:
        place: see `check_trace_to`; None: nothing is traced.
        share: of the calls that begin a trace here, 0..1; who sends a trace decides for it.
        name: of this process, as the spans' `service.name`.
    """
    if place is None:
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource.create(
        {"service.name": name, "service.version": version("matryoshka-suite")}
    )
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(share)), resource=resource, shutdown_on_exit=False
    )
    parts = urlsplit(place)
    exporter = _to_file(parts.path) if parts.scheme == "file" else _to_collector(place)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _to_file(path: str) -> Any:  # noqa: ANN401 (of an extra that may not be there)
    from services.shared.trace_file import FileExporter

    return FileExporter(Path(unquote(path)))


def _to_collector(url: str) -> Any:  # noqa: ANN401
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=url, insecure=url.startswith("http:"))
