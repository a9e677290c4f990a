"""What the router measures besides requests and stages (encode, search, write, settle)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.router.recall.watched import Watched
from services.shared.metrics import ServiceMetrics

_CANDIDATES_BUCKETS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000)


class RouterMetrics(ServiceMetrics):
    """The router's metrics, on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("router", registry)
        self.ingested_files = Counter(
            "matryoshka_router_ingested_files_total",
            "Files of vector stores that were read and written, or failed.",
            ["outcome"],
            registry=registry,
        )
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
        self.storage_retries = Counter(
            "matryoshka_router_storage_retries_total",
            "Calls to the Qdrant server that were repeated, as it or the connection failed.",
            ["call"],
            registry=registry,
        )
        self.changes = Counter(
            "matryoshka_router_changes_total",
            "Changes of collections that took a while, by how they ended.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.shadow_dropped = Counter(
            "matryoshka_router_shadow_dropped_total",
            "Searches that were to be repeated exactly, but too many waited.",
            registry=registry,
        )
        of_slice = ("collection", "slice")
        self._recall = Gauge(
            "matryoshka_router_recall_at_k_ratio",
            "Share of the exact hits that live searches found, over the last 1,000 measured.",
            (*of_slice, "statistic"),
            registry=registry,
        )
        self._recall_queries = Gauge(
            "matryoshka_router_recall_queries_count",
            "Live searches whose recall was measured since the last calibration.",
            of_slice,
            registry=registry,
        )
        self._recall_loss = Gauge(
            "matryoshka_router_recall_loss_ratio",
            "Mean share of the exact hits lost, by cause.",
            (*of_slice, "cause"),
            registry=registry,
        )
        self._recall_alarm = Gauge(
            "matryoshka_router_recall_alarms_count",
            "Whether the recall of live searches has fallen below what was promised: 1, else 0.",
            of_slice,
            registry=registry,
        )
        self._agreement = Gauge(
            "matryoshka_router_migration_overlap_ratio",
            "Mean share of hits that both halves of a migration found, of live searches.",
            of_slice,
            registry=registry,
        )
        self.collections = Gauge(
            "matryoshka_router_collections_count",
            "Collections in the storage, as last seen by this router.",
            registry=registry,
        )

    def show_recall(self, collection: str, slice_: str, watched: Watched, rings: bool) -> None:
        """Show what is known of the recall of a slice."""
        values = {"mean": watched.mean, "lower": watched.lower, "upper": watched.upper}
        for statistic, value in values.items():
            self._recall.labels(collection, slice_, statistic).set(value)
        for cause, lost in watched.losses.items():
            self._recall_loss.labels(collection, slice_, cause).set(lost)
        self._recall_queries.labels(collection, slice_).set(watched.num_measured)
        self._recall_alarm.labels(collection, slice_).set(rings)

    def show_agreement(self, collection: str, slice_: str, overlap: float) -> None:
        """Show what a collection that is migrated to, or from, finds as its other half does."""
        self._agreement.labels(collection, slice_).set(overlap)

    def forget_recall(self, collection: str, slice_: str) -> None:
        """Show nothing of a slice any more."""
        for gauge in (self._recall, self._recall_loss, self._recall_queries, self._recall_alarm):
            gauge.remove_by_labels({"collection": collection, "slice": slice_})
