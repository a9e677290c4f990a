"""The encoder's HTTP door for scores: `POST /v1/rerank`.

The shape is Jina's, which vLLM, Infinity and LiteLLM speak too, and Cohere's v1: documents
as strings or `{"text"}` in, results with `index` and `relevance_score` out, the best first. What
it lacks travels beside it in the answer as `matryoshka`. Errors are OpenAI's.
Source: Jina AI "Reranker API", Cohere API v1 "Rerank", vLLM "Re-rank API".
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.encoder.body import SMALL_BODY_BYTES, check_body
from services.encoder.rerank import Reranked, Reranker, RerankInput
from services.encoder.settings import EncoderSettings
from services.shared.http import read_body, while_connected

RERANK_OPEN_TO_TENANTS = frozenset({"POST /v1/rerank"})


class DocumentItem(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    text: StrictStr
    """The document itself."""


class RerankBody(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: StrictStr
    """Id or alias of a loaded cross-encoder."""
    query: StrictStr
    """What the documents are scored for."""
    documents: list[StrictStr | DocumentItem]
    """Texts; those that are too long together with the query are cut."""
    top_n: Annotated[StrictInt, Field(ge=1)] | None = None
    """How many of the best to answer; all of them when not said."""
    return_documents: StrictBool | None = None
    """Whether the answer holds the documents' texts too; not when not said."""


_ACCEPTED = {
    "model": "model must be a string",
    "query": "query must be a string",
    "documents": 'documents must be an array of strings or of {"text": "..."} objects',
    "top_n": "top_n must be a positive integer",
    "return_documents": "return_documents must be true or false",
}


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A checked body.

    Args:
        wanted: for the reranker.
        top_n: results to answer; None for all.
        return_documents: whether they hold the texts.
    """

    wanted: RerankInput
    top_n: int | None
    return_documents: bool


class RerankRoutes:
    """The route, over the same reranker as gRPC."""

    def __init__(self, reranker: Reranker, settings: EncoderSettings) -> None:
        self._reranker = reranker
        self._max_body_bytes = settings.max_body_bytes

    def routes(self) -> list[Route]:
        return [Route("/v1/rerank", self._rerank, methods=["POST"])]

    async def _rerank(self, request: Request) -> Response:
        body = await read_body(request, self._max_body_bytes)
        small = len(body) <= SMALL_BODY_BYTES
        asked = read_request(body) if small else await asyncio.to_thread(read_request, body)
        reranked = await while_connected(request, self._reranker.rerank(asked.wanted))
        if small:
            content = write_answer(reranked, asked)
        else:
            content = await asyncio.to_thread(write_answer, reranked, asked)
        return Response(content, media_type="application/json")


def read_request(content: bytes) -> RerankRequest:
    """Check a body.

    Raises:
        InvalidRequest: it is not JSON, or a field is wrong.
    """
    body = check_body(content, RerankBody, _ACCEPTED)
    documents = [item if isinstance(item, str) else item.text for item in body.documents]
    wanted = RerankInput(body.model, body.query, documents)
    return RerankRequest(wanted, body.top_n, bool(body.return_documents))


def write_answer(reranked: Reranked, request: RerankRequest) -> bytes:
    """Write the answer as JSON, the best document first, equal ones in their order."""
    order = sorted(range(len(reranked.scores)), key=lambda row: -reranked.scores[row])
    results: list[dict[str, object]] = [
        {"index": row, "relevance_score": reranked.scores[row]} for row in order[: request.top_n]
    ]
    if request.return_documents:
        for result, row in zip(results, order, strict=False):
            result["document"] = {"text": request.wanted.documents[row]}
    tokens = sum(reranked.num_tokens)
    return orjson.dumps(
        {
            "model": reranked.model.id,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "matryoshka": {"truncated": reranked.truncated},
        }
    )
