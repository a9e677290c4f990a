"""Spans as lines of a file: each an ExportTraceServiceRequest in OTLP's JSON, for collectors.

Each line is appended by one write, so that several processes may share a file: a service, and the
jobs that it starts. Source: OpenTelemetry's specification, "OTLP/HTTP", JSON Protobuf Encoding.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_IDS = ("traceId", "spanId", "parentSpanId")


class FileExporter(SpanExporter):
    """Appends spans to a file, which is made where there is none.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._file.write(json.dumps(_as_json(spans)).encode() + b"\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def _as_json(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Return what OTLP's JSON is of: as protobuf's own, but for ids, which are hexadecimal."""
    request: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for of_resource in request["resourceSpans"]:
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:
                for holder in (span, *span.get("links", ())):
                    for name in holder.keys() & set(_IDS):
                        holder[name] = base64.b64decode(holder[name]).hex()
    return request
