"""Settings of the encoder: `MATRYOSHKA_ENCODER_<FIELD>`."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.shared.folder import DEFAULT_MODEL
from services.shared.settings import ServerSettings


class EncoderSettings(ServerSettings):
    """What the encoder loads, and the bounds within which it serves."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_ENCODER_")

    model: str = DEFAULT_MODEL
    """Model to serve from the start: a folder, a hub id, or the packaged default."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; auto measures which is faster here and still faithful."""
    device: str | None = None
    """A torch device such as cuda:1; unset takes an accelerator if there is one."""
    undeclared_dimensions: Literal["strict", "warn", "allow"] = "warn"
    """Sizes of a model that declares none: only the full one, any with a warning, or any."""
    max_texts: int = Field(default=2048, ge=1)
    """Texts per request (OpenAI's own bound)."""
    max_request_tokens: int = Field(default=300_000, ge=1)
    """Tokens per request (OpenAI's own bound); the encoder splits it into batches."""
    max_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward pass. More fills wide hardware better; less lets a query in sooner."""
    max_queued_tokens: int = Field(default=600_000, ge=1)
    """Tokens waiting; a request that would pass this is refused at once."""
    tokenizer_threads: int = Field(default=2, ge=1)
    """Threads that turn texts into tokens and answers into bytes."""
