"""One request, from texts to cut vectors; both wires call this and nothing else.

texts -> checked -> tokens -> batches -> full vectors -> {dim: cut, normalised vectors}
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from services.encoder.metrics import EncoderMetrics
from services.encoder.models import LoadedModel, Models
from services.encoder.settings import EncoderSettings
from services.shared.errors import InvalidRequest
from services.shared.model import Role, Side, TextModel
from services.shared.packing import Tokens
from services.shared.vectors import Array, check_dim, truncate

Truncation = Literal["refuse"] | Side
Priority = Literal["interactive", "bulk"]


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """What a caller wants.

    Args:
        model: id or alias; empty for the default.
        inputs: texts, or token ids without special tokens.
        dims: sizes wanted, in the order of the answer; empty for the full one.
        role: which of the model's prompts or towers to use.
        truncation: what to do with over-long texts.
        priority: which lane to wait in.
    """

    model: str
    inputs: Sequence[str] | Sequence[Tokens]
    dims: Sequence[int] = ()
    role: Role = "none"
    truncation: Truncation = "refuse"
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer.

    Args:
        vectors: (dim, vectors_BM) for each size asked for, rows of unit length.
        num_tokens: for each input, after any cut.
        truncated: rows that were cut.
        warnings: sentences for the caller.
    """

    model: LoadedModel
    vectors: list[tuple[int, Array]]
    num_tokens: list[int]
    truncated: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Embedder:
    """Checks requests and leads them through tokenizer, batcher and cut."""

    def __init__(self, models: Models, settings: EncoderSettings, metrics: EncoderMetrics) -> None:
        self._models = models
        self._settings = settings
        self._metrics = metrics
        # Tokenising and cutting release the GIL for long enough to stay off the event loop.
        self._threads = ThreadPoolExecutor(settings.tokenizer_threads, "tokenize")

    async def embed(self, wanted: EmbedInput) -> Embedded:
        """Encode.

        Raises:
            InvalidRequest: something in the request; checked before any forward pass.
            ModelNotFound: the model is not loaded.
            Overloaded: the queue is full.
        """
        model = self._models.get(wanted.model)
        dims = list(wanted.dims) or [model.text_model.full]
        warnings = self._check(model, wanted, dims)
        loop = asyncio.get_running_loop()
        with self._metrics.stage("tokenize"):
            texts, truncated = await loop.run_in_executor(
                self._threads, self._tokenize, model.text_model, wanted
            )
        self._metrics.texts.inc(len(texts))
        self._metrics.tokens.inc(sum(map(len, texts)))
        vectors_BD = await model.batcher.encode(texts)
        with self._metrics.stage("cut"):
            vectors = await loop.run_in_executor(self._threads, _cut, vectors_BD, dims)
        for dim in dims:
            self._metrics.vectors.labels(str(dim)).inc(len(texts))
        return Embedded(model, vectors, [len(ids) for ids in texts], truncated, warnings)

    def close(self) -> None:
        self._threads.shutdown()

    def _check(self, model: LoadedModel, wanted: EmbedInput, dims: list[int]) -> list[str]:
        """Refuse what needs no tokenizer to be seen as wrong; return warnings."""
        if not 1 <= len(wanted.inputs) <= self._settings.max_texts:
            raise InvalidRequest(
                f"input must have 1 to {self._settings.max_texts} texts, got {len(wanted.inputs)}",
                "input",
            )
        for row, item in enumerate(wanted.inputs):
            if not len(item):
                raise InvalidRequest(f"input {row} must not be empty", "input")
        full, declared = model.text_model.full, model.text_model.declared_dims
        policy = self._settings.undeclared_dimensions
        for dim in dims:
            strict = declared or ((full,) if policy == "strict" else ())
            check_dim(dim, strict, full)
        if declared or policy == "allow":
            return []
        return [
            f"{model.id} declares no sizes: {dim} of {full} dimensions are untested for it"
            for dim in dims
            if dim != full
        ]

    def _tokenize(
        self, text_model: TextModel, wanted: EmbedInput
    ) -> tuple[list[Tokens], list[int]]:
        """Return the tokens of each input, and the rows that were cut."""
        for row, item in enumerate(wanted.inputs):
            if isinstance(item, str) and not _is_unicode(item):
                raise InvalidRequest(f"input {row} must be valid Unicode text", "input")
        first = wanted.inputs[0]
        texts = (
            text_model.tokenize([t for t in wanted.inputs if isinstance(t, str)], wanted.role)
            if isinstance(first, str)
            else [text_model.wrap(t) for t in wanted.inputs if not isinstance(t, str)]
        )
        too_long = [row for row, ids in enumerate(texts) if len(ids) > text_model.max_tokens]
        if too_long and wanted.truncation == "refuse":
            raise InvalidRequest(
                f"input {too_long[0]} has {len(texts[too_long[0]])} tokens, the model reads at "
                f"most {text_model.max_tokens}; shorten it or set truncate",
                "input",
            )
        if wanted.truncation != "refuse":
            texts = [text_model.cut_tokens(ids, wanted.truncation) for ids in texts]
        tokens = sum(map(len, texts))
        if tokens > self._settings.max_request_tokens:
            raise InvalidRequest(
                f"a request may have at most {self._settings.max_request_tokens} tokens, "
                f"this one has {tokens}; send it in parts",
                "input",
            )
        return texts, too_long


def _is_unicode(text: str) -> bool:
    """JSON can smuggle in lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(vectors_BD: Array, dims: list[int]) -> list[tuple[int, Array]]:
    return [(dim, truncate(vectors_BD, dim)) for dim in dims]
