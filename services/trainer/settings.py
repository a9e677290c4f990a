"""Settings of the trainer: `MATRYOSHKA_TRAINER_<FIELD>`."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.shared.settings import ServerSettings
from services.trainer.data.allowed import read_list


def _check_sources(sources: str | None) -> str | None:
    read_list(sources, None)
    return sources


def _check_networks(networks: str | None) -> str | None:
    read_list(None, networks)
    return networks


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
    threads: int = Field(default=0, ge=0)
    """Threads of a job's arithmetic; 0: one per core."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Steps between checkpoints: what a killed job does again at most."""
    stop_s: float = Field(default=10.0, gt=0)
    """Time for a job's process to write a checkpoint and end before it is killed."""
