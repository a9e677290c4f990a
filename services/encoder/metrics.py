"""What the encoder counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.shared.metrics import SECONDS_BUCKETS, ServiceMetrics


class EncoderMetrics(ServiceMetrics):
    """Requests and stages (tokenize, forward, cut), and the encoder's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("encoder", registry)
        self.texts = Counter("matryoshka_encoder_texts_total", "Texts encoded.", registry=registry)
        self.pairs = Counter(
            "matryoshka_encoder_pairs_total",
            "Documents scored, each together with its query.",
            registry=registry,
        )
        self.tokens = Counter(
            "matryoshka_encoder_tokens_total",
            "Tokens read, special tokens included.",
            registry=registry,
        )
        self.vectors = Counter(
            "matryoshka_encoder_vectors_total",
            "Vectors returned, by size.",
            ["dim"],
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "matryoshka_encoder_batch_tokens",
            "Tokens in each forward pass.",
            registry=registry,
            buckets=[2**power for power in range(3, 18)],
        )
        self.batch_fill = Histogram(
            "matryoshka_encoder_batch_fill_ratio",
            "Tokens in each forward pass, as a share of what fits into one.",
            registry=registry,
            buckets=[share / 10 for share in range(1, 11)],
        )
        self.queue_seconds = Histogram(
            "matryoshka_encoder_queue_seconds",
            "Time from a request's entry to the queue to the pass that runs its texts, by lane.",
            ["lane"],
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self.queued_tokens = Gauge(
            "matryoshka_encoder_queued_tokens",
            "Tokens that wait or run, by lane.",
            ["lane"],
            registry=registry,
        )
        self.forward_flops = Counter(
            "matryoshka_encoder_forward_flops_total",
            "Floating-point operations that the models needed, attention included.",
            ["model"],
            registry=registry,
        )
        self.flops_utilization = Gauge(
            "matryoshka_encoder_flops_utilization_ratio",
            "Operations per second of the last passes, as a share of the machine's measured peak.",
            ["model"],
            registry=registry,
        )
        self.prefix_energy = Gauge(
            "matryoshka_encoder_prefix_energy_ratio",
            "Share of a full vector's square that its prefix holds, on sampled traffic.",
            ["model", "dim"],
            registry=registry,
        )
        self.prefix_overlap = Gauge(
            "matryoshka_encoder_prefix_overlap_ratio",
            "Share of the nearest neighbours in sampled traffic that the prefix finds too.",
            ["model", "dim"],
            registry=registry,
        )
        self.model_bytes = Gauge(
            "matryoshka_encoder_models_bytes", "Weights of all loaded models.", registry=registry
        )
        self.refusals = Counter(
            "matryoshka_encoder_refusals_total",
            "Requests refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self.cache_requests = Counter(
            "matryoshka_encoder_cache_requests_total",
            "Texts by whether their vector was at hand (hit) or the model had to run (miss).",
            ["result"],
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "matryoshka_encoder_cache_bytes", "Bytes of vectors kept.", registry=registry
        )
        self.models = Gauge("matryoshka_encoder_models_count", "Models loaded.", registry=registry)
