"""Spans that processes under test have written to a file, in OTLP's JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One of them."""

    process: str
    """Its `service.name`."""
    name: str
    trace: str
    id: str
    parent: str
    """Id; "": it begins the trace."""
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    whole: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.process, self.name


def read_spans(*files: Path) -> list[Span]:
    """Read all that is there now; each line must be what a collector takes."""
    return [
        one for file in files for line in file.read_text().splitlines() for one in _of_line(line)
    ]


def _of_line(line: str) -> Iterator[Span]:
    # By protobuf's own rules, which spell ids otherwise, and know every field.
    Parse(line, ExportTraceServiceRequest())
    for of_resource in json.loads(line)["resourceSpans"]:
        process = _values(of_resource["resource"]["attributes"])["service.name"]
        for of_scope in of_resource["scopeSpans"]:
            for one in of_scope["spans"]:
                yield Span(
                    process, one["name"], one["traceId"], one["spanId"],
                    one.get("parentSpanId", ""), int(one["startTimeUnixNano"]),
                    int(one["endTimeUnixNano"]), _values(one.get("attributes", [])), one,
                )  # fmt: skip


def _values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for one in attributes:
        ((kind, value),) = one["value"].items()
        found[one["key"]] = int(value) if kind == "intValue" else value
    return found
