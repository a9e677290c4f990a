"""What traces cost: where they are off, and where they are on.

The calls that a search makes of `services.shared.trace` in the router, and that of its query in the
encoder, without the work between them. On, spans go to a file. The smallest mean of many short
runs, so that other work on the machine does not count. The last line of stdout is one JSON object.

    python -m bench.trace
"""

import json
import platform
import tempfile
import timeit
from pathlib import Path

from bench.report import cpu
from services.shared.trace import Tracing, outgoing, place, record, span
from services.shared.trace_export import start_tracing

_CALLS, _RUNS = 500, 3000


def router() -> None:
    """One search by text: stages `encode`, with the call to the encoder, and `search`."""
    with span("encode"):
        outgoing()
    with span("search"):
        pass


def encoder() -> None:
    """One query: `tokenize`, the batcher's two, `cut`."""
    with span("tokenize"):
        pass
    above = place()
    record(above, "batch wait", 0.0, 1.0)
    record(above, "forward", 0.0, 1.0, texts=1, tokens=8)
    with span("cut"):
        pass


def traced(tracing: Tracing) -> None:
    """Both, each below the span of a call."""
    for service, work in (("router", router), ("encoder", encoder)):
        with tracing.begin(service, "call", {}):
            work()


def main() -> None:
    """Time both, and print what a call takes."""
    figures = {}
    for work in (router, encoder):
        took_s = min(timeit.repeat(work, number=_CALLS, repeat=_RUNS)) / _CALLS
        figures[f"{work.__name__}_off_us"] = round(took_s * 1e6, 2)
    with tempfile.TemporaryDirectory(prefix="bench-trace-") as folder:
        tracing = start_tracing((Path(folder) / "spans.jsonl").as_uri(), 1.0, "bench")
        assert tracing
        took_s = min(timeit.repeat(lambda: traced(tracing), number=10, repeat=200)) / 10
        tracing.close()
    figures["both_on_us"] = round(took_s * 1e6, 1)
    print(f"{cpu()}, Python {platform.python_version()}: microseconds of one search and its query")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
