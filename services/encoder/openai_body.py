"""The body of `POST /v1/embeddings`: OpenAI's fields, and what we take beside them.

JSON in, `EmbedInput` out, or an error that names the first wrong field and says what it may be.
Source: openai/openai-openapi, `CreateEmbeddingRequest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from services.encoder.auto import Auto
from services.encoder.body import check_body
from services.encoder.embed import EmbedInput
from services.encoder.tokens import Truncation
from services.shared.errors import InvalidRequest
from services.shared.images import from_base64
from services.shared.model import Role
from services.shared.quantization import Dtype

_TokenIds = list[Annotated[StrictInt, Field(ge=0)]]
# Sizes out of range are the embedder's to refuse, as it knows the model; the schema says so too.
_Size = Annotated[StrictInt, Field(json_schema_extra={"minimum": 1})]

_Sizes = Annotated[
    list[_Size], Field(json_schema_extra={"minItems": 1, "maxItems": 16, "uniqueItems": True})
]


class ImageItem(BaseModel):
    """An image among the inputs."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    image: StrictStr = Field(min_length=1)
    """A PNG, JPEG or WebP file as base64, or as a data URL of it."""


class EmbeddingsBody(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: StrictStr
    """Id or alias of a loaded model; `default` is always there."""
    input: StrictStr | list[StrictStr] | _TokenIds | list[_TokenIds] | list[StrictStr | ImageItem]
    """A text, texts, the model's own token ids, lists of them, or texts and images."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers, or base64 of the stored bytes (float: little-endian float32)."""
    dimensions: _Size | _Sizes | Literal["auto"] | None = None
    """A size, several of one pass, or `auto`."""
    user: StrictStr | None = None
    """Taken for OpenAI's sake, and not used."""
    input_type: Literal["query", "document"] | None = None
    """What the texts are for; models with prompts or two towers treat the two differently."""
    output_dtype: Literal["float", "int8", "uint8", "binary", "ubinary"] | None = None
    """How each number is stored, after the cut."""
    truncate: StrictBool | Literal["end", "start"] | None = None
    """Cut over-long texts at their end (also: true) or start instead of refusing them."""
    min_retention: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    """With `auto`: the smallest size that keeps this share of the full size's nDCG@10."""
    max_bytes: Annotated[StrictInt, Field(ge=1)] | None = None
    """With `auto`: the largest size whose vectors take at most this many bytes."""


_ACCEPTED = {
    "model": "model must be a string",
    "input": "input must be a string, an array of strings, an array of token ids, an array of "
    'arrays of token ids, or an array of strings and {"image": "<base64 or data URL>"} objects',
    "encoding_format": "encoding_format must be 'float' or 'base64'",
    "dimensions": "dimensions must be an integer, an array of integers, or 'auto'",
    "user": "user must be a string",
    "input_type": "input_type must be 'query' or 'document'",
    "output_dtype": "output_dtype must be 'float', 'int8', 'uint8', 'binary' or 'ubinary'",
    "truncate": "truncate must be true, false, 'end' or 'start'",
    "min_retention": "min_retention must be a number between 0 and 1",
    "max_bytes": "max_bytes must be a positive integer",
}


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A checked body.

    Args:
        wanted: for the embedder; images are behind the texts there.
        encoding_format: of the answer.
        places: where each row of the embedder's answer stands in the caller's `input`; None if
            the order is the same.
        several: whether `dimensions` was a list.
    """

    wanted: EmbedInput
    encoding_format: Literal["float", "base64"]
    places: list[int] | None
    several: bool


def read_request(content: bytes) -> EmbeddingsRequest:
    """Check a body.

    Raises:
        InvalidRequest: it is not JSON, or a field is wrong.
    """
    body = check_body(content, EmbeddingsBody, _ACCEPTED)
    inputs, images, places = _split(body.input)
    role: Role = body.input_type or "none"
    truncation: Truncation = "refuse"
    if body.truncate:
        truncation = "end" if body.truncate is True else body.truncate
    named = body.output_dtype or "float"
    dtype: Dtype = "float32" if named == "float" else named
    wanted = EmbedInput(
        body.model,
        inputs,
        _sizes(body),
        role,
        truncation,
        dtype=dtype,
        auto=_auto(body),
        images=images,
    )
    several = isinstance(body.dimensions, list)
    return EmbeddingsRequest(wanted, body.encoding_format or "float", places, several)


def _sizes(body: EmbeddingsBody) -> list[int]:
    if body.dimensions is None or body.dimensions == "auto":
        return []
    if isinstance(body.dimensions, int):
        return [body.dimensions]
    sizes = body.dimensions
    if not sizes or len(set(sizes)) < len(sizes):
        raise InvalidRequest("dimensions must list at least one size, each once", "dimensions")
    return sizes


def _auto(body: EmbeddingsBody) -> Auto | None:
    if body.dimensions == "auto":
        return Auto(body.min_retention, body.max_bytes)
    for name in ("min_retention", "max_bytes"):
        if getattr(body, name) is not None:
            raise InvalidRequest(f"{name} is for dimensions 'auto' only", name)
    return None


def _split(
    value: str | list[str] | list[int] | list[list[int]] | list[str | ImageItem],
) -> tuple[list[str] | list[list[int]], list[bytes], list[int] | None]:
    """Part texts from images.

    Returns:
        The texts, the images, and the place of each of them in `value`, texts first; None if
        there are no images.
    """
    # The field's type says that all are of one kind, which the checker cannot carry through.
    items: Any = value if isinstance(value, list) and not _are_ids(value) else [value]
    if not any(isinstance(item, ImageItem) for item in items):
        return items, [], None
    texts = [(place, item) for place, item in enumerate(items) if isinstance(item, str)]
    images = [(place, item) for place, item in enumerate(items) if isinstance(item, ImageItem)]
    files = [_decode(place, item.image) for place, item in images]
    places = [place for place, _ in texts] + [place for place, _ in images]
    return [text for _, text in texts], files, places


def _are_ids(value: Sequence[object]) -> bool:
    return bool(value) and isinstance(value[0], int)


def _decode(place: int, image: str) -> bytes:
    try:
        return from_base64(image)
    except ValueError as error:
        raise InvalidRequest(
            f"input {place} must hold an image as base64 or as a data URL "
            "(data:image/png;base64,...); images are never fetched from other URLs",
            "input",
        ) from error
