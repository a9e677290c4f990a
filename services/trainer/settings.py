"""Settings of the trainer: `MATRYOSHKA_TRAINER_<FIELD>`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.shared.address import check_address
from services.shared.settings import CallerSettings
from services.trainer.data.allowed import read_list
from services.trainer.jobs.placement import check_class, read_node_selector, read_tolerations


def _check_sources(sources: str | None) -> str | None:
    read_list(sources, None)
    return sources


def _check_networks(networks: str | None) -> str | None:
    read_list(None, networks)
    return networks


def _check_node_selector(labels: str | None) -> str | None:
    read_node_selector(labels)
    return labels


def _check_tolerations(tolerations: str | None) -> str | None:
    read_tolerations(tolerations)
    return tolerations


Class = Annotated[str | None, AfterValidator(check_class)]
Address = Annotated[str, AfterValidator(check_address)]


class TrainerSettings(CallerSettings):
    """Where jobs and files are kept, and the bounds within which jobs run."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_TRAINER_")

    http_port: int = Field(default=8002, ge=0, le=65535)
    """Port of the HTTP routes; 0 takes a free one."""
    grpc_port: int = Field(default=9002, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""
    database_url: SecretStr | None = None
    """Where the states of jobs are kept, as SQLAlchemy names it; unset: SQLite in `data_dir`."""
    files_database_url: SecretStr | None = None
    """Where the names of uploaded files are kept, if another service keeps them and ends what was
    deleted; unset: with the jobs."""
    files_url: str | None = None
    """Where uploaded files are kept, as fsspec names it (s3://...); unset: in `data_dir`."""
    max_concurrent_jobs: int = Field(default=1, ge=1)
    """Job processes at the same time; each uses `threads` threads."""
    max_jobs_per_owner: int = Field(default=4, ge=1)
    """Jobs of one owner at the same time, at all services together; others of it wait."""
    max_queued_jobs: int = Field(default=100, ge=1)
    """Jobs waiting; one more is refused at once."""
    lease_s: float = Field(default=30.0, gt=0)
    """A running job that no service was seen at for so long is gone on with by another."""
    disk_wait_s: float = Field(default=3600.0, gt=0)
    """Longest that a job waits for room on a full disk before it fails."""
    max_folders_bytes: int = Field(default=100 * 2**30, ge=1)
    """What jobs' folders may take together. Beyond it, checkpoints and vectors of ended jobs go,
    the oldest first; if that is not enough, no job is taken. Models stay."""
    max_file_bytes: int = Field(default=2**30, ge=1)
    """Longest uploaded file, and most bytes of a source of training data elsewhere."""
    sources: Annotated[str | None, AfterValidator(_check_sources)] = None
    """What training data may be read from beside uploaded files: absolute folders and addresses
    such as https://host/path or s3://bucket/path, each with all below it, with commas between
    them; unset: nothing."""
    source_networks: Annotated[str | None, AfterValidator(_check_networks)] = None
    """Private networks that hosts of `sources` may lie in, such as 10.1.0.0/16, with commas between
    them; unset: none."""
    source_timeout_s: float = Field(default=300.0, gt=0)
    """Time to fetch training data from another machine; the caller waits for it."""
    max_examples: int = Field(default=5_000_000, ge=4)
    """Examples of one job's training data; they are in memory while they are checked."""
    max_upload_s: float = Field(default=3600.0, gt=0)
    """Time for an uploaded file to arrive."""
    threads: int = Field(default=0, ge=0)
    """Threads of a job's arithmetic; 0: one per core."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Steps between checkpoints: what a killed job does again at most."""
    encoder_address: Address = "127.0.0.1:9000"
    """host:port of the encoder's gRPC, which loads promoted models."""
    encoder_api_key: SecretStr | None = None
    """Sent to the encoder; unset: nothing is sent."""
    encoder_timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait for the encoder; it loads and measures a model in that time."""
    router_address: Address = "127.0.0.1:9001"
    """host:port of the router's gRPC, which moves collections to promoted models."""
    router_api_key: SecretStr | None = None
    """Sent to the router; unset: nothing is sent."""
    router_timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for an answer of the router; a migration takes as long as it takes."""
    mining_searches: int = Field(default=4, ge=1)
    """Searches that a job which mines its negatives in a collection makes at the same time."""
    mining_patience_s: float = Field(default=3600.0, ge=0)
    """Longest that such a job waits for a router that is away or busy before it fails."""
    devices: int = Field(default=1, ge=1)
    """Processes of one job on one machine, each with an accelerator of its own (torchrun)."""
    kubernetes_image: str | None = None
    """Image of a Job's pods, with this package in it; needed for the launcher kubernetes."""
    kubernetes_claim: str | None = None
    """Volume claim of `data_dir`, which the service and all pods mount; needed for kubernetes."""
    launcher: Literal["local", "kubernetes"] = "local"
    """Where jobs run: as processes beside the service, or as Jobs of the cluster it runs in."""
    kubernetes_namespace: str = "default"
    """Where Jobs are made."""
    kubernetes_nodes: int = Field(default=1, ge=1)
    """Pods of one job."""
    kubernetes_gpus: int = Field(default=0, ge=0)
    """GPUs of a pod (nvidia.com/gpu)."""
    kubernetes_cpu: str = "2"
    """CPU of a pod, as Kubernetes writes it."""
    kubernetes_memory: str = "8Gi"
    """Memory of a pod, as Kubernetes writes it."""
    kubernetes_queue: str | None = None
    """Kueue's LocalQueue for the Jobs; unset: they start at once."""
    kubernetes_node_selector: Annotated[str | None, AfterValidator(_check_node_selector)] = None
    """Labels of the nodes that pods may run on, a JSON object; unset: any node."""
    kubernetes_tolerations: Annotated[str | None, AfterValidator(_check_tolerations)] = None
    """Taints that pods tolerate, a JSON list as pods take it; unset: none."""
    kubernetes_runtime_class: Class = None
    """Runtime class of pods, such as nvidia; unset: the cluster's default."""
    kubernetes_priority_class: Class = None
    """Priority class of pods; unset: the cluster's default."""
    kubernetes_url: str = "https://kubernetes.default.svc"
    """The cluster's API; the service account's token and certificates are read where pods have
    them."""
    stop_s: float = Field(default=10.0, gt=0)
    """Time for a job's process to write a checkpoint and end before it is killed."""

    @field_validator("stop_s")
    @classmethod
    def _fits_the_lease(cls, stop_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s")
        if lease_s is not None and stop_s > 0.4 * lease_s:
            raise ValueError(
                "must be at most 0.4 times MATRYOSHKA_TRAINER_LEASE_S, so that a process has ended "
                f"before its lease is over; got {stop_s:g} and {lease_s:g}"
            )
        return stop_s

    @field_validator("launcher")
    @classmethod
    def _has_what_kubernetes_needs(cls, launcher: str, info: ValidationInfo) -> str:
        needed = ("kubernetes_image", "kubernetes_claim")
        if launcher == "kubernetes" and not all(info.data.get(name) for name in needed):
            raise ValueError("kubernetes needs KUBERNETES_IMAGE and KUBERNETES_CLAIM beside it")
        return launcher
