"""Settings of the router: `MATRYOSHKA_ROUTER_<FIELD>`."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.shared.settings import ServerSettings


class RouterSettings(ServerSettings):
    """Where the encoder and the storage are, and what one caller may ask for."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_ROUTER_")

    http_port: int = Field(default=8001, ge=0, le=65535)
    """Port of the HTTP routes; 0 takes a free one."""
    grpc_port: int = Field(default=9001, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""

    encoder_address: str = Field(default="127.0.0.1:9000", pattern=r"^.+:\d+$")
    """host:port of the encoder's gRPC."""
    encoder_api_key: SecretStr | None = None
    """Sent to the encoder; unset: nothing is sent."""
    encoder_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one call to the encoder."""
    encoder_batch_texts: int = Field(default=256, ge=1, le=2048)
    """Texts in one call to the encoder; small enough that a query waits little behind it."""
    encoder_max_wait_s: float = Field(default=600.0, ge=0)
    """Longest that a batch of documents waits for an encoder that refuses it as too much, ten times
    the longest that the encoder tells anyone to wait; queries do not wait: their callers decide."""
    encoder_concurrency: int = Field(default=4, ge=1)
    """Calls of documents in flight at the encoder; queries are not held back by these."""

    qdrant_url: str | None = None
    """A Qdrant server, for example http://qdrant:6333; unset: Qdrant Edge in `data_dir`."""
    qdrant_grpc_port: int = Field(default=6334, ge=1, le=65535)
    """The Qdrant server's gRPC port."""
    qdrant_api_key: SecretStr | None = None
    """Sent to the Qdrant server."""
    qdrant_timeout_s: int = Field(default=60, ge=1)
    """Longest wait for one call to the Qdrant server."""

    edge_queue: int = Field(default=256, ge=1)
    """Requests waiting at one Edge worker; one more is refused as overloaded."""
    edge_indexing_threshold_kb: int = Field(default=10_000, ge=1)
    """Full-size vectors not yet in a graph, in KiB, from which a collection is indexed again.
    Below it a scan is as fast: 10,000 points at 64 numbers take 0.5 ms (measured, Edge 0.9)."""
    edge_start_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for an Edge worker to open a collection; it may have a log to replay."""

    max_limit: int = Field(default=1000, ge=1)
    """Most hits of one search."""
    max_candidates: int = Field(default=20_000, ge=1)
    """Most points one stage hands on."""
    max_batch_points: int = Field(default=2048, ge=1)
    """Most points of one upsert batch, and most ids of one delete."""
    max_text_chars: int = Field(default=1_000_000, ge=1)
    """Longest text of a point or a query, in characters."""
    reindex_batch_points: int = Field(default=256, ge=1, le=2048)
    """Points read, encoded and written at once by a reindex; each is one step of its progress."""
