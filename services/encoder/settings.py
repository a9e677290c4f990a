"""Settings of the encoder: `MATRYOSHKA_ENCODER_<FIELD>`."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.encoder.memory import default_max_model_bytes
from services.shared.folder import DEFAULT_MODEL
from services.shared.settings import ServerSettings


class EncoderSettings(ServerSettings):
    """What the encoder loads, and the bounds within which it serves."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_ENCODER_")

    model: str = DEFAULT_MODEL
    """Model to serve from the start: a folder, a hub id, or the packaged default."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Arithmetic of the forward pass; auto measures which is fastest here and still faithful."""
    engines_dir: Path | None = None
    """Where measurements and int8 weights are kept for the next start; unset: in data_dir."""
    served_file: Path | None = None
    """Where a trainer writes what its promotions have made all encoders serve (`served.json` in its
    data_dir): loaded before this one is ready, and followed; unset: it is told by calls alone."""
    device: str | None = None
    """A torch device such as cuda:1; unset takes an accelerator if there is one."""
    undeclared_dimensions: Literal["strict", "warn", "allow"] = "warn"
    """Sizes of a model that declares none: only the full one, any with a warning, or any."""
    max_texts: int = Field(default=2048, ge=1)
    """Texts per request (OpenAI's own bound), or documents to be scored."""
    max_request_tokens: int = Field(default=300_000, ge=1)
    """Tokens per request (OpenAI's own bound); the encoder splits it into batches."""
    max_request_chars: int = Field(default=2_000_000, ge=1)
    """Characters per request: what a text is cut to must be tokenised first, all of it."""
    max_batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens per forward pass at most; it bounds the memory of a pass on fast hardware."""
    max_pass_s: float = Field(default=0.1, gt=0, le=10)
    """Seconds per forward pass. More fills wide hardware better; less lets a query in sooner."""
    bulk_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the time that bulk work gets while interactive work waits too."""
    max_queue_s: float = Field(default=5.0, gt=0)
    """Seconds until an interactive request is answered; one that would take longer is refused."""
    max_bulk_queue_s: float = Field(default=120.0, gt=0)
    """The same for bulk requests, whose callers have more patience."""
    max_queued_tokens: int = Field(default=600_000, ge=1)
    """Tokens waiting; a request that would pass this is refused at once."""
    stream_read_ahead: int = Field(default=4, ge=1)
    """Requests of one stream that are read and not yet answered."""
    max_model_bytes: int = Field(default_factory=default_max_model_bytes, ge=1)
    """Weights of all loaded models together; by default half of the memory there is."""
    cache_bytes: int = Field(default=64 * 2**20, ge=0)
    """Full vectors kept for texts that come again, 40,000 of 384 numbers by default; 0: none."""
    tokenizer_threads: int = Field(default=2, ge=1)
    """Threads that turn texts into tokens and answers into bytes."""
