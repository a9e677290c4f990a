"""What the encoder counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.shared.metrics import ServiceMetrics


class EncoderMetrics(ServiceMetrics):
    """Requests and stages (tokenize, queue, forward, cut), and the encoder's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("encoder", registry)
        self.texts = Counter("matryoshka_encoder_texts_total", "Texts encoded.", registry=registry)
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
        self.refusals = Counter(
            "matryoshka_encoder_refusals_total",
            "Requests refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self.models = Gauge("matryoshka_encoder_models_count", "Models loaded.", registry=registry)
