"""The encoder's HTTP door: OpenAI's `/v1/embeddings` and `/v1/models`.

What OpenAI lacks travels beside its fields: `input_type` and `truncate` in the request (an
SDK's `extra_body`), `matryoshka` in the answer.
Source: openai/openai-openapi, `CreateEmbeddingRequest` and `CreateEmbeddingResponse`.
"""

import asyncio
import base64
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.encoder.embed import Embedded, Embedder, EmbedInput, Truncation
from services.encoder.models import LoadedModel, Models
from services.shared.errors import InvalidRequest
from services.shared.http import read_json, while_connected
from services.shared.model import Role
from services.shared.vectors import Array, pack

_TokenIds = list[Annotated[StrictInt, Field(ge=0)]]


class _EmbeddingsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: StrictStr
    input: StrictStr | list[StrictStr] | _TokenIds | list[_TokenIds]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    user: StrictStr | None = None
    input_type: Literal["query", "document"] | None = None
    truncate: StrictBool | Literal["end", "start"] = False

    def to_input(self) -> EmbedInput:
        role: Role = self.input_type or "none"
        dims = [] if self.dimensions is None else [self.dimensions]
        one = isinstance(self.input, str) or (self.input and isinstance(self.input[0], int))
        inputs = [self.input] if one else self.input
        truncation: Truncation = "refuse"
        if self.truncate:
            truncation = "end" if self.truncate is True else self.truncate
        return EmbedInput(self.model, inputs, dims, role, truncation)  # type: ignore[arg-type]  # one kind, by the field's type


_FIELDS = ", ".join(_EmbeddingsBody.model_fields)
_ACCEPTED = {
    "model": "model must be a string",
    "input": "input must be a string, an array of strings, an array of token ids, or an array of "
    "arrays of token ids",
    "encoding_format": "encoding_format must be 'float' or 'base64'",
    "dimensions": "dimensions must be an integer",
    "user": "user must be a string",
    "input_type": "input_type must be 'query' or 'document'",
    "truncate": "truncate must be true, false, 'end' or 'start'",
}


class OpenAIRoutes:
    """The routes, over the same models and embedder as gRPC."""

    def __init__(self, models: Models, embedder: Embedder, max_body_bytes: int) -> None:
        self._models = models
        self._embedder = embedder
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        return [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._list_models, methods=["GET"]),
            Route("/v1/models/{model:path}", self._get_model, methods=["GET"]),
        ]

    async def _embeddings(self, request: Request) -> Response:
        body = _parse(await read_json(request, self._max_body_bytes))
        embedded = await while_connected(request, self._embedder.embed(body.to_input()))
        # Thousands of numbers as text take time: not on the event loop.
        content = await asyncio.to_thread(_write, embedded, body.encoding_format)
        return Response(content, media_type="application/json")

    async def _list_models(self, _: Request) -> Response:
        models = [_describe(name, model) for name, model in self._named()]
        return JSONResponse({"object": "list", "data": models})

    async def _get_model(self, request: Request) -> Response:
        name: str = request.path_params["model"]
        return JSONResponse(_describe(name, self._models.get(name)))

    def _named(self) -> list[tuple[str, LoadedModel]]:
        return [
            (name, model)
            for model in self._models.list()
            for name in (model.id, *self._models.aliases_of(model.id))
        ]


def _parse(body: object) -> _EmbeddingsBody:
    """Check the body; the error names the first wrong field and what it may be."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return _EmbeddingsBody.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        name = str(first["loc"][0])[:64]
        if first["type"] == "missing":
            message = f"you must provide {name!r}"
        elif name in _ACCEPTED:
            message = _ACCEPTED[name]
        else:
            message = f"unknown field {name!r}; the fields are: {_FIELDS}"
        raise InvalidRequest(message, name) from error


def _describe(name: str, model: LoadedModel) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": "matryoshka",
        "matryoshka": {
            "model": model.id,
            "space_id": model.text_model.space_id,
            "dimensions": model.text_model.full,
            "matryoshka_dims": list(model.text_model.declared_dims),
            "max_tokens": model.text_model.max_tokens,
            "engine": model.text_model.engine,
        },
    }


def _write(embedded: Embedded, encoding_format: str) -> bytes:
    dim, vectors_BM = embedded.vectors[0]
    tokens = sum(embedded.num_tokens)
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": row, "embedding": vector}
            for row, vector in enumerate(_encode(vectors_BM, encoding_format))
        ],
        "model": embedded.model.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "matryoshka": {
            "space_id": embedded.model.text_model.space_id,
            "dimensions": dim,
            "truncated": embedded.truncated,
            "warnings": embedded.warnings,
        },
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def _encode(vectors_BM: Array, encoding_format: str) -> list[str] | list[list[float]]:
    if encoding_format == "base64":
        return [base64.b64encode(pack(vector_M)).decode() for vector_M in vectors_BM]
    vectors: list[list[float]] = vectors_BM.tolist()
    return vectors
