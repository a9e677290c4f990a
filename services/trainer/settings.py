"""Settings of the trainer: `MATRYOSHKA_TRAINER_<FIELD>`."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.shared.address import check_address
from services.shared.settings import ServerSettings

Address = Annotated[str, AfterValidator(check_address)]


class TrainerSettings(ServerSettings):
    """Where jobs and files are kept, and the bounds within which jobs run."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_TRAINER_")

    http_port: int = Field(default=8002, ge=0, le=65535)
    """Port of the HTTP routes; 0 takes a free one."""
    grpc_port: int = Field(default=9002, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""
    database_url: SecretStr | None = None
    """Where the states of jobs are kept, as SQLAlchemy names it; unset: SQLite in `data_dir`."""
    files_url: str | None = None
    """Where uploaded files are kept, as fsspec names it (s3://...); unset: in `data_dir`."""
    max_concurrent_jobs: int = Field(default=1, ge=1)
    """Job processes at the same time; each uses `threads` threads."""
    max_queued_jobs: int = Field(default=100, ge=1)
    """Jobs waiting; one more is refused at once."""
    max_file_bytes: int = Field(default=2**30, ge=1)
    """Longest uploaded file."""
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
    stop_s: float = Field(default=10.0, gt=0)
    """Time for a job's process to write a checkpoint and end before it is killed."""
