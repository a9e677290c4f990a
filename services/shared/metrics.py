"""Metrics that every service has: requests by outcome, and time by stage.

Names are `matryoshka_<service>_<noun>_<unit>`; labels take few values, all known beforehand.
A service adds its own beside these, on the same registry.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.shared.limits import OverLimit
from services.shared.trace import span

# From a cached vector search (100 us) to a bulk request on a CPU (30 s).
SECONDS_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip


class ServiceMetrics:
    """Requests and stage times of one service."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self.service = service
        self.requests = Counter(
            f"matryoshka_{service}_requests_total",
            "Requests by method and outcome (gRPC status name).",
            ["method", "outcome"],
            registry=registry,
        )
        self.over_limit = Counter(
            f"matryoshka_{service}_over_limit_total",
            "Calls refused as their key was used too often a minute (requests) or at once (calls).",
            ["limit"],
            registry=registry,
        )
        for limit in ("requests", "calls"):
            self.over_limit.labels(limit)
        self.request_seconds = Histogram(
            f"matryoshka_{service}_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["method"],
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self.stage_seconds = Histogram(
            f"matryoshka_{service}_stage_seconds",
            "Time spent in each stage of the work.",
            ["stage"],
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as the stage `name`, with a span of that name where calls are traced."""
        start = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - start)

    def observe(self, method: str, outcome: str, seconds: float) -> None:
        """Count one finished request; `outcome` is a gRPC status name."""
        self.requests.labels(method, outcome).inc()
        self.request_seconds.labels(method).observe(seconds)

    def note_limit(self, error: BaseException | None) -> None:
        """Count a request that failed with `error`, if that was for a limit of its key."""
        if isinstance(error, OverLimit):
            self.over_limit.labels(error.limit).inc()


def show_server(registry: CollectorRegistry, version: str, data_dir: Path) -> None:
    """Add what a process tells of itself: its version, and room on the disk of its data folder.

    Args:
        registry: gets the metrics.
        version: of this package.
        data_dir: may not be there yet; the disk is looked at when the metrics are read.
    """
    Gauge(
        "matryoshka_server_versions_count",
        "1, with the version of the server as a label.",
        ["version"],
        registry=registry,
    ).labels(version).set(1)
    disk = Gauge(
        "matryoshka_server_disk_bytes",
        "The disk of the data folder: all of it (whole), and what is left (free).",
        ["part"],
        registry=registry,
    )
    disk.labels("free").set_function(lambda: shutil.disk_usage(_there(data_dir)).free)
    disk.labels("whole").set_function(lambda: shutil.disk_usage(_there(data_dir)).total)


def _there(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that there is."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
