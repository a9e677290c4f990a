"""What the router measures besides requests and stages (encode, search, write, settle)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.shared.metrics import ServiceMetrics

_CANDIDATES_BUCKETS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000)


class RouterMetrics(ServiceMetrics):
    """The router's metrics, on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("router", registry)
        self.written_points = Counter(
            "matryoshka_router_written_points_total",
            "Points written and acknowledged.",
            registry=registry,
        )
        self.shortlist_candidates = Histogram(
            "matryoshka_router_shortlist_candidates",
            "Points that the first stage of a search was asked to hand on.",
            registry=registry,
            buckets=_CANDIDATES_BUCKETS,
        )
        self.worker_restarts = Counter(
            "matryoshka_router_worker_restarts_total",
            "Edge workers that had died and were started again.",
            registry=registry,
        )
        self.collections = Gauge(
            "matryoshka_router_collections_count",
            "Collections in the storage, as last seen by this router.",
            registry=registry,
        )
