"""Settings of the router: `MATRYOSHKA_ROUTER_<FIELD>`."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.router.hybrid.text_index import LANGUAGES
from services.shared.address import check_address
from services.shared.settings import CallerSettings

Address = Annotated[str, AfterValidator(check_address)]


class RouterSettings(CallerSettings):
    """Where the encoder and the storage are, and what one caller may ask for."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_ROUTER_")

    http_port: int = Field(default=8001, ge=0, le=65535)
    """Port of the HTTP routes; 0 takes a free one."""
    grpc_port: int = Field(default=9001, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""

    encoder_address: Address = "127.0.0.1:9000"
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

    trainer_address: Address = "127.0.0.1:9002"
    """host:port of the trainer's gRPC, which learns rotations."""
    trainer_api_key: SecretStr | None = None
    """Sent to the trainer; unset: nothing is sent."""
    trainer_timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for an answer of the trainer; its jobs take as long as they take."""
    nest_points: int = Field(default=100_000, ge=1000, le=200_000)
    """Vectors that a rotation is learned from; of a larger collection a random sample."""
    change_lease_s: float = Field(default=60.0, gt=0)
    """A change of a collection that no router was seen at for so long is gone on with."""
    change_patience_s: float = Field(default=600.0, ge=0)
    """Longest that a change waits for an encoder, a trainer or a storage that is away."""

    qdrant_url: str | None = None
    """A Qdrant server, for example http://qdrant:6333, or https:// where it speaks TLS, over gRPC
    too; unset: Qdrant Edge in `data_dir`."""
    qdrant_grpc_port: int = Field(default=6334, ge=1, le=65535)
    """The Qdrant server's gRPC port."""
    qdrant_api_key: SecretStr | None = None
    """Sent to the Qdrant server."""
    qdrant_tls_ca: Path | None = None
    """The Qdrant server must show a certificate of this CA (PEM), read at the start; unset: of one
    that gRPC trusts by itself. For a `qdrant_url` of https://."""
    qdrant_timeout_s: int = Field(default=60, ge=1)
    """Longest wait for one call to the Qdrant server, its repetitions included."""
    qdrant_retry_s: float = Field(default=3.0, ge=0)
    """Longest that a read, or a write of points, is repeated while the Qdrant server is away or its
    connection breaks; 0: never."""

    max_shards: int = Field(default=64, ge=1)
    """Most shards of one collection, which only a Qdrant server spreads."""
    max_replicas: int = Field(default=8, ge=1)
    """Most replicas of each shard of one."""

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
    """Most points of one upsert batch, and most ids of one call that deletes or changes points."""
    upsert_read_ahead: int = Field(default=4, ge=1, le=64)
    """Batches of one upsert stream that are read and encoded while one before them is written."""
    max_text_chars: int = Field(default=1_000_000, ge=1)
    """Longest text of a point or a query, in characters."""
    migrate_page_points: int = Field(default=256, ge=1, le=2048)
    """Points that a migration reads, encodes and writes at once; writers wait while a page is put
    into the target."""

    rarity_documents: int = Field(default=2000, ge=100, le=100_000)
    """Documents, of each tenant's its own, that a search by words looks at to tell rare terms."""
    rarity_age_s: float = Field(default=60.0, ge=0)
    """From when it looks anew, after a search that finds what it knows older; 0: at each search."""

    calibrate_queries: int = Field(default=4000, ge=100)
    """Most queries of a calibration: 600 choose plans, the others bound their recall."""
    calibrate_points: int = Field(default=2_000_000, ge=1000)
    """Vectors that a calibration reads; of a larger collection a random sample, and then the truth
    is asked of the engine."""
    calibrate_candidates: int = Field(default=5000, ge=10)
    """Longest shortlist that a calibration tries."""

    evaluate_queries: int = Field(default=10_000, ge=1)
    """Most labelled queries of an evaluation."""
    recent_queries: int = Field(default=2000, ge=0)
    """Vectors of recent queries kept with each collection, for its calibration; 0 keeps none."""
    recent_collections: int = Field(default=64, ge=1)
    """Collections that recent queries are held of in memory, the last searched ones."""
    recent_flush_s: float = Field(default=60.0, gt=0)
    """Time between two writes of recent queries; a crash loses as much."""
    shadow_share: float = Field(default=0.01, ge=0, le=1)
    """Share of live searches that are repeated exactly to see their recall; 0 turns it off."""
    shadow_max_busy: float = Field(default=0.1, gt=0, le=1)
    """Most of the time that one search or another is being repeated."""
    shadow_queue: int = Field(default=64, ge=1)
    """Searches that wait to be repeated; more are left out, and counted."""
    shadow_slices: int = Field(default=500, ge=1)
    """Slices, of all collections, whose recall is told apart, of the operator and of each tenant;
    all others are one."""
    recall_history_points: int = Field(default=1440, ge=0)
    """Points of each slice's recall over time that are kept in memory, at most one a minute, so
    that the default is a day; 0 keeps none. One takes 40 bytes."""
    lost_searches: int = Field(default=100, ge=0)
    """Searches of a collection that lost hits, the last ones, that are kept in memory with their
    texts, for operators with an `admin` key (ListLostSearches); 0 keeps none."""
    recalibrate: bool = False
    """Calibrate a collection anew, with its recent queries, when a slice falls below its target."""

    database_url: SecretStr | None = None
    """Where vector stores and the names of files are kept, as SQLAlchemy names it; unset: SQLite in
    `data_dir`."""
    files_url: str | None = None
    """Where uploaded files are kept, as fsspec names it (s3://...); unset: in `data_dir`."""
    max_file_bytes: int = Field(default=512 * 2**20, ge=1)
    """Longest uploaded file."""
    max_upload_s: float = Field(default=600.0, gt=0)
    """Time for an uploaded file to arrive; without a pause longer than `max_body_s`."""
    max_document_bytes: int = Field(default=64 * 2**20, ge=1)
    """Longest file that is put into a vector store."""
    max_document_tokens: int = Field(default=5_000_000, ge=1)
    """Most tokens of a file in a vector store."""
    max_pages: int = Field(default=5000, ge=1)
    """Most pages of a PDF."""
    read_timeout_s: float = Field(default=120.0, gt=0)
    """Time for a file to be read and cut into chunks, in a process that is killed after it."""
    read_memory_bytes: int = Field(default=2 * 2**30, ge=256 * 2**20)
    """Address space of that process."""
    vector_store_language: str = "english"
    """Language by whose words new vector stores can be searched, too: `any` for words as they are,
    in any script; empty: none can."""
    ingest_concurrency: int = Field(default=2, ge=1, le=64)
    """Files read, encoded and written into vector stores at once."""
    ingest_retry_s: float = Field(default=3600.0, ge=0)
    """Longest that a file waits for an encoder or a storage out of reach before it fails."""
    ingest_lease_s: float = Field(default=60.0, gt=0)
    """A file on its way into a vector store that no router was seen at for so long is gone on with
    by another."""
    sweep_s: float = Field(default=60.0, gt=0)
    """Time between two looks for vector stores and files that have expired."""

    @field_validator("qdrant_tls_ca")
    @classmethod
    def _is_for_tls(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        if ca is not None and not (info.data.get("qdrant_url") or "").startswith("https://"):
            raise ValueError("needs a MATRYOSHKA_ROUTER_QDRANT_URL of https://")
        return ca

    @field_validator("vector_store_language")
    @classmethod
    def _is_a_language(cls, value: str) -> str:
        if value and value not in LANGUAGES:
            raise ValueError(f"must be one of {', '.join(LANGUAGES)}, or empty, got {value!r}")
        return value

    @property
    def database(self) -> SecretStr:
        """Where vector stores and the names of files are."""
        return self.database_url or SecretStr(f"sqlite:///{self.data_dir / 'router.sqlite'}")

    @property
    def files_place(self) -> str:
        """Where uploaded files are."""
        return self.files_url or str(self.data_dir / "files")
