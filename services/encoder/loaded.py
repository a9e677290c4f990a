"""A model that is served: of either kind, with the batcher that feeds it.

In: a model just read. Out: the same, before the forward thread. Which names point at it is
`models.py`'s.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.encoder.batcher import Batcher
from services.encoder.flops import Utilization
from services.encoder.health import PrefixHealth
from services.encoder.metrics import EncoderMetrics
from services.encoder.pace import Pace
from services.encoder.settings import EncoderSettings
from services.shared.cross_encoder import CrossEncoder
from services.shared.errors import Unavailable
from services.shared.model import Role, TextModel
from services.shared.packing import Tokens
from services.shared.vectors import Array

log = logging.getLogger(__name__)

# Run once after loading, so that the first callers' time can be told: texts of a typical length.
_WARM_UP_TEXTS = ["A model is warm once it has read a sentence or two of a usual length."] * 16


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and the batcher that feeds it.

    Args:
        memory_bytes: of its weights as they are held.
    """

    id: str
    source: str
    text_model: TextModel | CrossEncoder
    batcher: Batcher
    utilization: Utilization
    memory_bytes: int
    loaded_at: float

    def close(self) -> None:
        """Fail what still waits, and take its metrics away."""
        self.batcher.close(Unavailable(f"model {self.id!r} is being unloaded"))
        self.utilization.forget()


@dataclass(frozen=True, slots=True)
class LoadedEmbedder(LoadedModel):
    """One that makes vectors of texts."""

    text_model: TextModel
    health: PrefixHealth

    def close(self) -> None:
        LoadedModel.close(self)
        self.health.forget()


@dataclass(frozen=True, slots=True)
class LoadedCrossEncoder(LoadedModel):
    """One that scores pairs of texts."""

    text_model: CrossEncoder


def serve(
    model_id: str,
    source: str,
    text_model: TextModel | CrossEncoder,
    peak: float | None,
    ready: threading.Condition,
    settings: EncoderSettings,
    metrics: EncoderMetrics,
) -> LoadedModel:
    """Give a model its batcher.

    Args:
        model_id: its name here, and in metrics.
        source: where it was read from.
        text_model: of either kind.
        peak: of the machine, FLOP/s.
        ready: of the forward thread.
        settings: how long a pass may be.
        metrics: shared by all models.
    """
    utilization = Utilization(model_id, text_model, metrics, peak)
    health: PrefixHealth | None = None
    read: Callable[[Sequence[Tokens]], Array]
    if isinstance(text_model, TextModel):
        health = PrefixHealth(model_id, text_model.full, text_model.declared_dims, metrics)
        read, width = text_model.encode, text_model.full
    else:
        read, width = text_model.score, 1

    def run(batch: Sequence[Tokens]) -> Array:
        start = time.perf_counter()
        rows_BD = read(batch)
        utilization.observe(batch, time.perf_counter() - start)
        if health:
            health.sample(rows_BD)
        return rows_BD

    batcher = Batcher(
        run, width, Pace(settings.max_pass_s, settings.max_batch_tokens), ready, metrics
    )
    held = sum(p.numel() * p.element_size() for p in text_model.transformer.parameters())
    if isinstance(text_model, CrossEncoder):
        return LoadedCrossEncoder(
            model_id, source, text_model, batcher, utilization, held, time.time()
        )
    assert health
    return LoadedEmbedder(
        model_id, source, text_model, batcher, utilization, held, time.time(), health
    )


def warm_up_tokens(text_model: TextModel | CrossEncoder) -> Sequence[Tokens]:
    """Return what a model is run on once before it is served."""
    if isinstance(text_model, CrossEncoder):
        pairs, _ = text_model.tokenize(_WARM_UP_TEXTS[0], _WARM_UP_TEXTS)
        return pairs
    role: Role = "document" if text_model.needs_role else "none"
    return text_model.tokenize(_WARM_UP_TEXTS, role)


def log_loaded(model: LoadedModel) -> None:
    """Log what was measured, and what is served now."""
    text_model = model.text_model
    for role, trial in text_model.trials:
        log.info(
            "measured %s%s: %.0f tokens/s, smallest cosine %.5f",
            "" if role == "none" else f"{role}: ", trial.engine, trial.tokens_per_second,
            trial.min_cosine,
        )  # fmt: skip
    log.info(
        "loaded %s from %s: %s, %s, %.2f GiB, space %s",
        model.id, model.source, text_model.engine, what_it_gives(text_model),
        model.memory_bytes / 2**30, text_model.space_id,
    )  # fmt: skip


def what_it_gives(text_model: TextModel | CrossEncoder) -> str:
    """Say it in words, for the log."""
    if isinstance(text_model, CrossEncoder):
        return "scores of pairs"
    declared = ", ".join(map(str, text_model.declared_dims))
    return f"{declared} dimensions" if declared else f"{text_model.full} dimensions, none declared"
