"""What the trainer counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.shared.metrics import ServiceMetrics


class TrainerMetrics(ServiceMetrics):
    """Requests and stages (check: a job's data and model), and the trainer's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("trainer", registry)
        self.jobs = Gauge(
            "matryoshka_trainer_jobs_count", "Jobs by state.", ["state"], registry=registry
        )
        self.job_seconds = Histogram(
            "matryoshka_trainer_job_seconds",
            "Time of a job's process from start to end, by outcome.",
            ["outcome"],
            registry=registry,
            # From a small adaptor (seconds) to all weights of a large model (a day).
            buckets=(5, 15, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600),
        )
        self.step_seconds = Histogram(
            "matryoshka_trainer_step_seconds",
            "Mean time of a job's training steps.",
            ["method"],
            registry=registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.tokens = Counter(
            "matryoshka_trainer_tokens_total",
            "Tokens that went through models in training.",
            registry=registry,
        )
        self.flops_utilization = Gauge(
            "matryoshka_trainer_flops_utilization_ratio",
            "Operations a second that a training needs, as a share of the machine's measured peak.",
            registry=registry,
        )
        self.loss = Gauge(
            "matryoshka_trainer_loss_nats",
            "Loss of the newest step that was told of, by size.",
            ["dim"],
            registry=registry,
        )
        self.gradient_norm = Gauge(
            "matryoshka_trainer_gradient_norm_ratio",
            "Length of that step's gradient, before it is clipped.",
            registry=registry,
        )
        self.ndcg10 = Gauge(
            "matryoshka_trainer_ndcg_ratio",
            "nDCG@10 on held-out pairs or labelled texts of the newest model that has learned from "
            "such, by size, before and after training.",
            ["dim", "side"],
            registry=registry,
        )
        self.spearman = Gauge(
            "matryoshka_trainer_spearman_ratio",
            "Spearman on held-out scored pairs of the newest model that has learned from such, by "
            "size, before and after training.",
            ["dim", "side"],
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "matryoshka_trainer_queue_seconds",
            "Time that a job waited before it was started.",
            registry=registry,
            buckets=(0.1, 1, 5, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600),
        )
        self.failures = Counter(
            "matryoshka_trainer_failures_total",
            "Jobs that failed, by reason.",
            ["reason"],
            registry=registry,
        )
        self.checkpoint_seconds = Histogram(
            "matryoshka_trainer_checkpoint_seconds",
            "Time to write a checkpoint and sync it.",
            registry=registry,
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300),
        )
        self.checkpoint_size = Histogram(
            "matryoshka_trainer_checkpoint_bytes",
            "Size of a checkpoint.",
            registry=registry,
            buckets=tuple(10.0**power for power in range(4, 12)),
        )
        self.disk = Gauge(
            "matryoshka_trainer_folders_bytes", "Size of all jobs' folders.", registry=registry
        )
        self.uploaded = Counter(
            "matryoshka_trainer_uploaded_bytes_total", "Bytes of stored files.", registry=registry
        )
