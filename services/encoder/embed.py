"""One request, from texts to cut vectors; both wires call this and nothing else.

texts -> checked -> tokens -> cache or batches -> full vectors -> {dim: cut, normalised, quantised}
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from services.encoder.admission import Admission, estimate_tokens
from services.encoder.auto import Auto, Choice, choose
from services.encoder.cache import VectorCache, join
from services.encoder.loaded import LoadedEmbedder, LoadedModel
from services.encoder.metrics import EncoderMetrics
from services.encoder.models import Models
from services.encoder.settings import EncoderSettings
from services.encoder.threads import SMALL_CHARS, SMALL_NUMBERS, Threads
from services.encoder.tokens import Truncation, read_tokens
from services.shared.errors import InvalidRequest
from services.shared.model import Role
from services.shared.packing import Tokens
from services.shared.quantization import Dtype, Stored, check_bits, needs_ranges, quantize
from services.shared.vectors import Array, check_dim, truncate

Priority = Literal["interactive", "bulk"]

# Each size is a copy of all rows; more than any collection keeps, and a bound on an answer.
_MAX_SIZES = 16


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
        remaining_s: until the caller stops waiting; None if he did not say.
        dtype: how the numbers of the answer are stored.
        auto: leaves the size to the model's card, instead of `dims`.
        images: files; their rows follow those of the texts.
        tenant: who asks, and whose texts may be known from before; None: an operator.
    """

    model: str
    inputs: Sequence[str] | Sequence[Tokens]
    dims: Sequence[int] = ()
    role: Role = "none"
    truncation: Truncation = "refuse"
    priority: Priority = "interactive"
    dtype: Dtype = "float32"
    auto: Auto | None = None
    images: Sequence[bytes] = ()
    remaining_s: float | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer.

    Args:
        vectors: (dim, vectors_BM) for each size asked for; before quantising, rows of unit length.
        dtype: of the vectors.
        num_tokens: for each input, after any cut.
        truncated: rows that were cut.
        warnings: sentences for the caller.
        choice: of the size, if it was left to the model.
    """

    model: LoadedEmbedder
    vectors: list[tuple[int, Stored]]
    dtype: Dtype
    num_tokens: list[int]
    truncated: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Texts ready for the model.

    Args:
        texts: all of them; `keys` are their names in the cache.
        found: vectors that the cache had, by key.
        missing: what the model must encode, each text once, by key.
    """

    texts: list[Tokens]
    truncated: list[int]
    keys: list[bytes]
    found: dict[bytes, bytes]
    missing: dict[bytes, Tokens]


class Embedder:
    """Checks requests and leads them through tokenizer, cache, batcher and cut.

    Args:
        models: those that are served.
        admission: the door of the queue that all models share.
        threads: for tokenising and cutting.
        settings: bounds of a request, and of the cache.
        metrics: see there.
    """

    def __init__(
        self,
        models: Models,
        admission: Admission,
        threads: Threads,
        settings: EncoderSettings,
        metrics: EncoderMetrics,
    ) -> None:
        self._models = models
        self._admission = admission
        self._threads = threads
        self._settings = settings
        self._metrics = metrics
        self._cache = VectorCache(settings.cache_bytes)

    async def embed(self, wanted: EmbedInput) -> Embedded:
        """Encode.

        Raises:
            InvalidRequest: something in the request; checked before any forward pass.
            ModelNotFound: the model is not loaded.
            Overloaded: too much is waiting; nothing was done.
        """
        model = self._models.embedder(wanted.model)
        choice = _choose(model, wanted)
        dims = [choice.dim] if choice else list(wanted.dims) or [model.text_model.full]
        warnings = self._check(model, wanted, dims)
        estimate = estimate_tokens(wanted.inputs, wanted.images, model.text_model.max_tokens)
        with self._admission.enter(
            model.batcher, wanted.priority, estimate, wanted.remaining_s
        ) as place:
            small = not wanted.images and sum(map(len, wanted.inputs)) <= SMALL_CHARS
            with self._metrics.stage("tokenize"):
                prepared = await self._threads.run(small, self._prepare, model, wanted)
            self._count(prepared)
            fresh_BD = None
            if prepared.missing:
                texts = list(prepared.missing.values())
                place.settle(sum(map(len, texts)))
                fresh_BD = await model.batcher.encode(texts, place.lane, place.done)
        small = len(prepared.texts) * max(model.text_model.full, sum(dims)) <= SMALL_NUMBERS
        with self._metrics.stage("cut"):
            vectors = await self._threads.run(
                small, self._finish, model, prepared, fresh_BD, dims, wanted.dtype
            )
        for dim in dims:
            self._metrics.vectors.labels(model.health.watch(dim)).inc(len(prepared.texts))
        num_tokens = [len(ids) for ids in prepared.texts]
        return Embedded(
            model, vectors, wanted.dtype, num_tokens, prepared.truncated, warnings, choice
        )

    def forget(self, model: LoadedModel) -> None:
        """Drop what is kept of a model that is served no more."""
        self._cache.forget(model.text_model.space_id)
        self._metrics.cache_bytes.set(self._cache.num_bytes)

    def _check(self, model: LoadedEmbedder, wanted: EmbedInput, dims: list[int]) -> list[str]:
        """Refuse what needs no tokenizer to be seen as wrong; return warnings."""
        count = len(wanted.inputs) + len(wanted.images)
        if not 1 <= count <= self._settings.max_texts:
            raise InvalidRequest(
                f"input must have 1 to {self._settings.max_texts} texts, got {count}", "input"
            )
        for row, item in enumerate(wanted.inputs):
            if not len(item):
                raise InvalidRequest(f"input {row} must not be empty", "input")
        length = sum(map(len, wanted.inputs))
        if length > self._settings.max_request_chars:
            raise InvalidRequest(
                f"a request may have at most {self._settings.max_request_chars} characters, "
                f"this one has {length}; send it in parts",
                "input",
            )
        if wanted.images and not model.text_model.takes_images:
            raise InvalidRequest(f"{model.id} takes texts only, no images", "input")
        if len(dims) > _MAX_SIZES:
            raise InvalidRequest(
                f"dimensions may list at most {_MAX_SIZES} sizes, got {len(dims)}", "dimensions"
            )
        full, declared = model.text_model.full, model.text_model.declared_dims
        policy = self._settings.undeclared_dimensions
        for dim in dims:
            strict = declared or ((full,) if policy == "strict" else ())
            check_dim(dim, strict, full)
            _check_dtype(model, dim, wanted.dtype)
        if declared or policy == "allow":
            return []
        return [
            f"{model.id} declares no sizes: {dim} of {full} dimensions are untested for it"
            for dim in dims
            if dim != full
        ]

    def _prepare(self, model: LoadedEmbedder, wanted: EmbedInput) -> _Prepared:
        text_model = model.text_model
        texts, truncated = read_tokens(
            text_model,
            wanted.inputs,
            wanted.images,
            wanted.role,
            wanted.truncation,
            self._settings.max_request_tokens,
        )
        contents = _contents(model, wanted, texts)
        keys = self._cache.keys(text_model.space_id, contents, wanted.tenant)
        found = self._cache.find(keys)
        missing = {key: ids for key, ids in zip(keys, texts, strict=True) if key not in found}
        return _Prepared(texts, truncated, keys, found, missing)

    def _count(self, prepared: _Prepared) -> None:
        rows, missed = len(prepared.texts), len(prepared.missing)
        self._metrics.texts.inc(rows)
        self._metrics.tokens.inc(sum(map(len, prepared.texts)))
        self._metrics.cache_requests.labels("miss").inc(missed)
        self._metrics.cache_requests.labels("hit").inc(rows - missed)

    def _finish(
        self,
        model: LoadedEmbedder,
        prepared: _Prepared,
        fresh_BD: Array | None,
        dims: list[int],
        dtype: Dtype,
    ) -> list[tuple[int, Stored]]:
        """Keep what is new, put all rows in order, and cut."""
        if fresh_BD is None:
            vectors_BD = join([prepared.found[key] for key in prepared.keys])
        else:
            # A model that was unloaded meanwhile leaves nothing behind.
            if model in self._models.list():
                self._cache.put(list(prepared.missing), fresh_BD)
                self._metrics.cache_bytes.set(self._cache.num_bytes)
            vectors_BD = _in_order(prepared, fresh_BD)
        card = model.text_model.card
        ranges = card.ranges if card else {}
        return [(dim, quantize(truncate(vectors_BD, dim), dtype, ranges.get(dim))) for dim in dims]


def _contents(
    model: LoadedEmbedder, wanted: EmbedInput, texts: Sequence[Tokens]
) -> Iterator[tuple[str, bytes]]:
    """Name the part of the model that reads each row, and what it reads."""
    # Where one tower reads all, tokens after the prompt are all that counts.
    tower = wanted.role if model.text_model.needs_role else ""
    for tokens in texts[: len(wanted.inputs)]:
        yield tower, array("q", tokens).tobytes()
    for image in wanted.images:
        yield f"image {wanted.role}", image


def _choose(model: LoadedEmbedder, wanted: EmbedInput) -> Choice | None:
    if wanted.auto is None:
        return None
    if wanted.dims:
        raise InvalidRequest("give dimensions or auto, not both", "dimensions")
    card = model.text_model.card
    quality = card.quality if card else None
    return choose(wanted.auto, quality, model.id, model.text_model.full, wanted.dtype)


def _check_dtype(model: LoadedEmbedder, dim: int, dtype: Dtype) -> None:
    check_bits(dim, dtype)
    card = model.text_model.card
    if not needs_ranges(dtype) or (card and dim in card.ranges):
        return
    measured = ", ".join(map(str, card.ranges)) if card and card.ranges else "no size"
    raise InvalidRequest(
        f"{dtype} needs the ranges of {dim} dimensions in the model's card; {model.id} has them "
        f"for {measured}; measure them with 'matryoshka card <model> <texts> --output <folder>' "
        "and load that folder",
        "output_dtype",
    )


def _in_order(prepared: _Prepared, fresh_BD: Array) -> Array:
    """Join what was found and what was encoded in the order of the texts."""
    if len(fresh_BD) == len(prepared.keys):
        return fresh_BD
    rows = {key: row for row, key in enumerate(prepared.missing)}
    vectors_BD = np.empty((len(prepared.keys), fresh_BD.shape[1]), dtype=np.float32)
    for place, key in enumerate(prepared.keys):
        row = rows.get(key)
        vectors_BD[place] = (
            np.frombuffer(prepared.found[key], np.float32) if row is None else fresh_BD[row]
        )
    return vectors_BD
