"""The bodies of requests to `/v1/vector_stores`: OpenAI's fields, and `model` and `routing`.

JSON in, our own types out, or an error that names the first wrong field and says what it may be.
Source: openai/openai-openapi, the schemas of the same names.
"""

import asyncio
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from starlette.requests import Request

from services.router.vector_stores.chunks import MAX_TOKENS, MIN_TOKENS
from services.shared.errors import InvalidRequest
from services.shared.http import parse_json, read_body

MAX_STORE_FILES, MAX_BATCH_FILES = 500, 2000
MAX_RESULTS, DEFAULT_RESULTS, MAX_QUERIES = 50, 10, 16
_MAX_NAME_CHARS, _MAX_DESCRIPTION_CHARS = 256, 2048
_MAX_DAYS = 365
# A longer one is parsed by a thread: all others would wait for it.
_SMALL_BODY_BYTES = 65_536

_Id = Annotated[StrictStr, Field(min_length=1, max_length=256)]
_Name = Annotated[StrictStr, Field(max_length=_MAX_NAME_CHARS)]

T = TypeVar("T", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StaticBody(_Body):
    """Sizes of chunks."""

    max_chunk_size_tokens: StrictInt = Field(ge=MIN_TOKENS, le=MAX_TOKENS)
    chunk_overlap_tokens: StrictInt = Field(ge=0)


class ChunkingBody(_Body):
    """How files are cut."""

    type: Literal["auto", "static"]
    static: StaticBody | None = None


class ExpiryBody(_Body):
    """When a store expires."""

    anchor: Literal["last_active_at"]
    days: StrictInt = Field(ge=1, le=_MAX_DAYS)


class CreateStoreBody(_Body):
    """`CreateVectorStoreRequest`."""

    name: _Name | None = None
    description: Annotated[StrictStr, Field(max_length=_MAX_DESCRIPTION_CHARS)] | None = None
    file_ids: list[_Id] | None = Field(default=None, max_length=MAX_STORE_FILES)
    chunking_strategy: ChunkingBody | None = None
    expires_after: ExpiryBody | None = None
    metadata: object = None
    model: StrictStr = Field(default="default", min_length=1)
    """Ours: the encoder's model, for good."""


class UpdateStoreBody(_Body):
    """`UpdateVectorStoreRequest`; a field that is null is emptied."""

    name: _Name | None = None
    expires_after: ExpiryBody | None = None
    metadata: object = None


class FileBody(_Body):
    """`CreateVectorStoreFileRequest`."""

    file_id: _Id
    attributes: object = None
    chunking_strategy: ChunkingBody | None = None


class BatchBody(_Body):
    """`CreateVectorStoreFileBatchRequest`."""

    file_ids: list[_Id] | None = Field(default=None, min_length=1, max_length=MAX_BATCH_FILES)
    files: list[FileBody] | None = Field(default=None, min_length=1, max_length=MAX_BATCH_FILES)
    attributes: object = None
    chunking_strategy: ChunkingBody | None = None


class AttributesBody(_Body):
    """`UpdateVectorStoreFileAttributesRequest`."""

    attributes: object


class HybridBody(_Body):
    """Weights of both sides in reciprocal rank fusion; as `file_search` has them."""

    embedding_weight: float = Field(ge=0, le=1e6, strict=True)
    text_weight: float = Field(ge=0, le=1e6, strict=True)

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if not self.embedding_weight + self.text_weight > 0:
            raise ValueError("one of them must be above 0")
        return self


class RankingBody(_Body):
    """`ranking_options`; a ranker changes nothing."""

    hybrid_search: HybridBody | None = None
    ranker: Literal["none", "auto", "default-2024-11-15"] = "auto"
    score_threshold: float = Field(default=0.0, ge=0, le=1, strict=True)


class SearchBody(_Body):
    """`VectorStoreSearchRequest`."""

    query: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_QUERIES)]
    filters: object = None
    max_num_results: StrictInt = Field(default=DEFAULT_RESULTS, ge=1, le=MAX_RESULTS)
    ranking_options: RankingBody | None = None
    rewrite_query: StrictBool = False
    """Taken for OpenAI's sake; a query is searched for as it is."""
    routing: object = None
    """Ours: see `routing.py`."""


class QueryBody(_Body):
    """Ours: a query to measure with."""

    text: StrictStr
    slice: StrictStr = ""


class CalibrateBody(_Body):
    """Ours: what a calibration shall measure; see `CalibrateRequest` in router.proto."""

    queries: list[StrictStr | QueryBody] | None = None
    """Unset: recent searches, or chunks in their place."""
    recall_target: float | None = Field(default=None, gt=0, lt=1, strict=True)
    objective: Literal["latency", "memory"] = "latency"
    confidence: float | None = Field(default=None, ge=0.5, lt=1, strict=True)
    max_num_results: StrictInt = Field(default=DEFAULT_RESULTS, ge=1, le=MAX_RESULTS)


_ACCEPTED = {
    "queries": "queries must be a list of strings, or of objects with a text and a slice",
    "recall_target": "recall_target must be a number above 0 and below 1; exact search keeps 1",
    "objective": "objective must be 'latency' or 'memory'",
    "confidence": "confidence must be a number of at least 0.5 and below 1",
    "name": f"name must be a string of at most {_MAX_NAME_CHARS} characters",
    "description": f"description must be a string of at most {_MAX_DESCRIPTION_CHARS} characters",
    "file_id": "file_id must be the id of an uploaded file",
    "chunking_strategy": "chunking_strategy must be {'type': 'auto'} or {'type': 'static', "
    f"'static': {{'max_chunk_size_tokens': {MIN_TOKENS} to {MAX_TOKENS}, 'chunk_overlap_tokens': "
    "0 to half of that}}",
    "expires_after": f"expires_after must have the anchor 'last_active_at' and days from 1 to "
    f"{_MAX_DAYS}",
    "model": "model must be the name of a model that the encoder serves",
    "files": f"files must be a list of 1 to {MAX_BATCH_FILES} objects with a file_id, and maybe "
    "attributes and a chunking_strategy",
    "query": f"query must be a string, or a list of 1 to {MAX_QUERIES} strings",
    "max_num_results": f"max_num_results must be an integer from 1 to {MAX_RESULTS}",
    "ranking_options": "ranking_options must have some of: a ranker ('none', 'auto' or "
    "'default-2024-11-15'), a score_threshold from 0 to 1, and hybrid_search with an "
    "embedding_weight and a text_weight, both 0 or more and one of them above",
    "rewrite_query": "rewrite_query must be true or false",
}


async def read_body_as(kind: type[T], request: Request, max_body_bytes: int) -> T:
    """Read a request's body.

    Raises:
        InvalidRequest: it is not JSON, or a field is wrong.
        TooLarge, TooSlow, Overloaded: as `read_body`.
    """
    content = await read_body(request, max_body_bytes)
    if len(content) <= _SMALL_BODY_BYTES:
        return parse_as(kind, content)
    return await asyncio.to_thread(parse_as, kind, content)


def parse_as(kind: type[T], content: bytes) -> T:
    """Check a body; InvalidRequest."""
    body = parse_json(content)
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        if not first["loc"]:
            raise InvalidRequest("names of fields must be valid Unicode text") from error
        raise InvalidRequest(*_explain(kind, first["type"], str(first["loc"][0])[:64])) from error


def _explain(kind: type[BaseModel], problem: str, name: str) -> tuple[str, str]:
    if name not in kind.model_fields:
        return f"unknown field {name!r}; the fields are: {', '.join(kind.model_fields)}", name
    if name == "file_ids":
        most = MAX_BATCH_FILES if kind is BatchBody else MAX_STORE_FILES
        return f"file_ids must be a list of at most {most} ids of uploaded files", name
    if problem == "missing" and name not in _ACCEPTED:
        return f"you must provide {name!r}", name
    return _ACCEPTED[name], name
