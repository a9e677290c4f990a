"""The encoder's HTTP door: OpenAI's `/v1/embeddings` and `/v1/models`.

What OpenAI lacks travels beside its fields: in the request through an SDK's `extra_body` (see
`openai_body.py`), in the answer as `matryoshka` (see `openai_answer.py`).
Source: openai/openai-openapi, `CreateEmbeddingRequest` and `CreateEmbeddingResponse`.
"""

import asyncio
import importlib.metadata
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.encoder.body import SMALL_BODY_BYTES
from services.encoder.embed import Embedder
from services.encoder.loaded import LoadedModel
from services.encoder.models import Models
from services.encoder.openai_answer import write_answer
from services.encoder.openai_body import read_request
from services.encoder.openapi import describe_api
from services.encoder.settings import EncoderSettings
from services.shared.auth import caller
from services.shared.http import read_body, while_connected
from services.shared.model import TextModel

# Up to here an answer is written on the event loop: 21 vectors of 384 numbers take 57 us as base64
# or 152 us as numbers, handing them to a thread 50 to 90 us (two cores).
_SMALL_ANSWER_NUMBERS = 8_192

OPEN_TO_TENANTS = frozenset(
    {
        "POST /v1/embeddings",
        "GET /openapi.json",
        "GET /v1/models",
        "GET /v1/models/{model:path}",
    }
)


class OpenAIRoutes:
    """The routes, over the same models and embedder as gRPC."""

    def __init__(self, models: Models, embedder: Embedder, settings: EncoderSettings) -> None:
        self._models = models
        self._embedder = embedder
        self._max_body_bytes = settings.max_body_bytes
        version = importlib.metadata.version("matryoshka-suite")
        self._document = describe_api(version, settings.max_texts)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/openapi.json", self._get_document, methods=["GET"]),
            Route("/v1/models", self._list_models, methods=["GET"]),
            Route("/v1/models/{model:path}", self._get_model, methods=["GET"]),
        ]

    async def _embeddings(self, request: Request) -> Response:
        body = await read_body(request, self._max_body_bytes)
        if len(body) <= SMALL_BODY_BYTES:
            parsed = read_request(body)
        else:
            parsed = await asyncio.to_thread(read_request, body)
        wanted = replace(parsed.wanted, tenant=caller().tenant)
        embedded = await while_connected(request, self._embedder.embed(wanted))
        if sum(vectors.size for _, vectors in embedded.vectors) <= _SMALL_ANSWER_NUMBERS:
            content = write_answer(embedded, parsed)
        else:
            content = await asyncio.to_thread(write_answer, embedded, parsed)
        return Response(content, media_type="application/json")

    async def _get_document(self, _: Request) -> Response:
        return JSONResponse(self._document)

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


def _describe(name: str, model: LoadedModel) -> dict[str, object]:
    text_model = model.text_model
    said: dict[str, object] = {
        "model": model.id,
        "kind": "cross_encoder",
        "space_id": text_model.space_id,
        "max_tokens": text_model.max_tokens,
        "engine": text_model.engine,
    }
    if isinstance(text_model, TextModel):
        said |= {
            "kind": "embedder",
            "dimensions": text_model.full,
            "matryoshka_dims": list(text_model.declared_dims),
            "needs_input_type": text_model.needs_role,
            "takes_images": text_model.takes_images,
        }
    return {
        "id": name,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": "matryoshka",
        "matryoshka": said,
    }
