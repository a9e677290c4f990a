"""The answer to `POST /v1/embeddings`: OpenAI's shape, and what we say beside it.

Vectors stand where OpenAI's SDKs look for them, `data[].embedding`; where several sizes were asked
for, `data[].embeddings` has all of them by size. The rest is in `matryoshka`.
Source: openai/openai-openapi, `CreateEmbeddingResponse`.
"""

import binascii
from collections.abc import Callable

import numpy as np
import orjson

from services.encoder.auto import Choice
from services.encoder.embed import Embedded
from services.encoder.openai_body import EmbeddingsRequest
from services.shared.quantization import Stored


def write_answer(embedded: Embedded, request: EmbeddingsRequest) -> bytes:
    """Write the answer as JSON; rows stand in the order of the caller's `input`."""
    write = _base64 if request.encoding_format == "base64" else _numbers
    sizes = [(str(dim), write(_stored(vectors))) for dim, vectors in embedded.vectors]
    rows = range(len(embedded.num_tokens))
    # Row of the embedder's answer, by place in the caller's input.
    order = sorted(rows, key=request.places.__getitem__) if request.places else rows
    data: list[dict[str, object]] = [
        {"object": "embedding", "index": place, "embedding": sizes[0][1](row)}
        for place, row in enumerate(order)
    ]
    if request.several:
        for item, row in zip(data, order, strict=True):
            item["embeddings"] = {dim: at(row) for dim, at in sizes}
    tokens = sum(embedded.num_tokens)
    answer = {
        "object": "list",
        "data": data,
        "model": embedded.model.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "matryoshka": _matryoshka(embedded, request),
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _matryoshka(embedded: Embedded, request: EmbeddingsRequest) -> dict[str, object]:
    dims = [dim for dim, _ in embedded.vectors]
    places = request.places
    said: dict[str, object] = {
        "space_id": embedded.model.text_model.space_id,
        "dimensions": dims if request.several else dims[0],
        "dtype": "float" if embedded.dtype == "float32" else embedded.dtype,
        "truncated": sorted(places[row] if places else row for row in embedded.truncated),
        "warnings": embedded.warnings + _bytes_warning(embedded, request),
    }
    if embedded.choice:
        said["auto"] = _auto(embedded.choice)
    return said


def _bytes_warning(embedded: Embedded, request: EmbeddingsRequest) -> list[str]:
    if embedded.dtype == "float32" or request.encoding_format == "float":
        return []
    # Their own default asks for base64, and takes whatever comes for floats.
    return [
        f"the base64 holds {embedded.dtype}; OpenAI's SDKs read it as float32 unless you give "
        "encoding_format 'float'"
    ]


def _auto(choice: Choice) -> dict[str, object]:
    return {
        "dimensions": choice.dim,
        "bytes": choice.num_bytes,
        "retained": round(choice.retained, 4),
        "reason": choice.reason,
        "measured": {str(dim): round(retained, 4) for dim, retained in choice.measured},
        "measured_on": choice.data,
    }


def _stored(vectors: Stored) -> Stored:
    """Little-endian and row after row, as both writers want them."""
    return np.ascontiguousarray(vectors, dtype=vectors.dtype.newbyteorder("<"))


def _base64(vectors: Stored) -> Callable[[int], object]:
    return lambda row: binascii.b2a_base64(vectors[row].data, newline=False).decode("ascii")


def _numbers(vectors: Stored) -> Callable[[int], object]:
    return lambda row: vectors[row]
