"""The OpenAPI document of the encoder's HTTP routes, served at `/openapi.json`.

The requests' schemas come from the models that check them (`openai_body.py`, `rerank_http.py`);
the answers' are written here, as `openai_answer.py`, `openai.py` and `rerank_http.py` write them.
Statuses are those of the tree in
`services.shared.errors`.
Source: OpenAPI 3.1.1.
"""

from typing import Any

from pydantic import BaseModel

from services.encoder.openai_body import EmbeddingsBody
from services.encoder.rerank_http import RerankBody

Schema = dict[str, Any]

_DIM: Schema = {"type": "integer", "minimum": 1}
_SHARE: Schema = {"type": "number", "minimum": 0}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STRING: Schema = {"type": "string"}
_STRINGS: Schema = {"type": "array", "items": _STRING}
# What a model that makes vectors says of itself, and a cross-encoder does not.
_OF_EMBEDDERS: Schema = {
    "dimensions": _DIM,
    "matryoshka_dims": {"type": "array", "items": _DIM},
    "needs_input_type": {"type": "boolean"},
    "takes_images": {"type": "boolean"},
}
_ERRORS = {
    400: "The request can never work as it is; the message says what would be accepted.",
    401: "An API key is set and the request does not carry it.",
    403: "The API key is not for this.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too much is waiting; try again after `Retry-After` seconds.",
    500: "A bug of ours.",
    503: "Starting, stopping or unloading; try again after `Retry-After` seconds.",
}
_OF_ALL_CALLS = (401, 403, 500, 503)


def describe_api(version: str, max_texts: int) -> Schema:
    """Build the document.

    Args:
        version: of the suite.
        max_texts: inputs per request, at most.
    """
    embeddings, parts = _body(EmbeddingsBody)
    embeddings["properties"]["input"] |= {"anyOf": _input(max_texts)}
    rerank, rerank_parts = _body(RerankBody)
    rerank["properties"]["query"] |= {"minLength": 1}
    rerank["properties"]["documents"] |= {"minItems": 1, "maxItems": max_texts}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Matryoshka encoder",
            "version": version,
            "description": "OpenAI's embeddings API, with vectors that can be cut to any size, and "
            "scores of documents for a query.",
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/embeddings": {
                "post": _post("Turn texts into vectors", "EmbeddingsBody", "Embeddings")
                | {"operationId": "createEmbeddings"}
            },
            "/v1/rerank": {"post": _post("Score documents for a query", "RerankBody", "Ranking")},
            "/v1/models": {"get": _get("List the models", "ModelList")},
            "/v1/models/{model}": {"get": _get_model()},
            "/openapi.json": {"get": _get("Get this document", None)},
            "/livez": {"get": _probe("Whether the process lives", 200)},
            "/readyz": {"get": _probe("Whether new callers may come", 200, 503)},
            "/metrics": {"get": _probe("Metrics for Prometheus", 200)},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                **parts,
                **rerank_parts,
                "EmbeddingsBody": embeddings,
                "RerankBody": rerank,
                **_answers(),
            },
        },
    }


def _input(max_texts: int) -> list[Schema]:
    """What pydantic's own schema leaves out: nothing may be empty."""
    text: Schema = {"type": "string", "minLength": 1}
    ids: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
    image: Schema = {"$ref": "#/components/schemas/ImageItem"}

    def list_of(item: Schema) -> Schema:
        return {"type": "array", "minItems": 1, "maxItems": max_texts, "items": item}

    return [text, list_of(text), ids, list_of(ids), list_of({"anyOf": [text, image]})]


def _body(kind: type[BaseModel]) -> tuple[Schema, Schema]:
    """Return a body's schema, and those of its parts by name."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return schema, schema.pop("$defs")


def _post(summary: str, body: str, answer: str) -> Schema:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        },
        "responses": _responses(answer, 400, 404, 408, 413, 429),
    }


def _get_model() -> Schema:
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "Id or alias; may hold slashes.",
        "schema": {"type": "string", "minLength": 1},
    }
    return _get("Get a model", "Model", 404) | {"parameters": [name]}


def _get(summary: str, answer: str | None, *errors: int) -> Schema:
    return {"summary": summary, "responses": _responses(answer, *errors)}


def _responses(answer: str | None, *errors: int) -> Schema:
    schema = _ref(answer) if answer else {"type": "object"}
    found: Schema = {
        "200": {
            "description": "As asked.",
            "content": {"application/json": {"schema": schema}},
        }
    }
    for status in sorted({*errors, *_OF_ALL_CALLS}):
        found[str(status)] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
        if status in (429, 503):
            found[str(status)]["headers"] = {"Retry-After": {"schema": _COUNT}}
    return found


def _probe(summary: str, *statuses: int) -> Schema:
    answer = {"description": summary, "content": {"text/plain": {"schema": _STRING}}}
    return {
        "summary": summary,
        "security": [],
        "responses": {str(status): answer for status in statuses},
    }


def _answers() -> Schema:
    vector: Schema = {
        "description": "Numbers, or base64 of the stored bytes.",
        "anyOf": [{"type": "array", "minItems": 1, "items": {"type": "number"}}, _STRING],
    }
    row = _object(
        {
            "object": {"const": "embedding"},
            "index": _COUNT,
            "embedding": vector,
            "embeddings": {
                "description": "By size, where several were asked for.",
                "type": "object",
                "additionalProperties": vector,
            },
        },
        optional=("embeddings",),
    )
    return {
        "Embeddings": _object(
            {
                "object": {"const": "list"},
                "data": {"type": "array", "minItems": 1, "items": row},
                "model": _STRING,
                "usage": _usage(),
                "matryoshka": _said(),
            }
        ),
        "Ranking": _ranking(),
        "ModelList": _object(
            {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}
        ),
        "Model": _object(
            {
                "id": _STRING,
                "object": {"const": "model"},
                "created": _COUNT,
                "owned_by": _STRING,
                "matryoshka": _object(
                    {
                        "model": _STRING,
                        "kind": {"enum": ["embedder", "cross_encoder"]},
                        "space_id": _STRING,
                        "max_tokens": _DIM,
                        "engine": _STRING,
                        **_OF_EMBEDDERS,
                    },
                    optional=tuple(_OF_EMBEDDERS),
                ),
            }
        ),
        "Error": _object(
            {
                "error": _object(
                    {
                        "message": _STRING,
                        "type": _STRING,
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    }
                )
            }
        ),
    }


def _usage() -> Schema:
    return _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT})


def _ranking() -> Schema:
    result = _object(
        {
            "index": _COUNT,
            "relevance_score": {"type": "number"},
            "document": _object({"text": _STRING}),
        },
        optional=("document",),
    )
    return _object(
        {
            "model": _STRING,
            "results": {"type": "array", "minItems": 1, "items": result},
            "usage": _usage(),
            "matryoshka": _object({"truncated": {"type": "array", "items": _COUNT}}),
        }
    )


def _said() -> Schema:
    """What stands in an answer's `matryoshka`."""
    auto = _object(
        {
            "dimensions": _DIM,
            "bytes": _DIM,
            "retained": _SHARE,
            "reason": _STRING,
            "measured": {"type": "object", "additionalProperties": _SHARE},
            "measured_on": _STRING,
        }
    )
    return _object(
        {
            "space_id": _STRING,
            "dimensions": {"anyOf": [_DIM, {"type": "array", "minItems": 1, "items": _DIM}]},
            "dtype": {"enum": ["float", "int8", "uint8", "binary", "ubinary"]},
            "truncated": {"type": "array", "items": _COUNT},
            "warnings": _STRINGS,
            "auto": auto,
        },
        optional=("auto",),
    )


def _object(properties: Schema, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
