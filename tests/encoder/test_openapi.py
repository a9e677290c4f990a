"""The OpenAPI document says what the running encoder does."""

import re

import pytest

from services.encoder.openai_body import EmbeddingsBody
from services.shared import errors


@pytest.fixture
def document(http_client):
    answer = http_client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def problems(value, schema, document, where="answer"):
    """Name what of a value is not as its schema says; the few keywords that the document uses."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        found = [problems(value, choice, document, where) for choice in schema["anyOf"]]
        return [] if [] in found else [f"{where}: none of its choices"]
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return [] if value in allowed else [f"{where}: {value!r} is not in {allowed}"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    kinds |= {"number": (int, float), "null": type(None)}
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, kinds[kind]) for kind in wanted):
        return [f"{where}: {value!r} is no {wanted}"]
    if isinstance(value, list):
        return [p for item in value for p in problems(item, schema["items"], document, where)]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    found = [f"{where}: no {name}" for name in schema.get("required", []) if name not in value]
    for name, item in value.items():
        inner = known.get(name, schema.get("additionalProperties", {}))
        if inner is False:
            found.append(f"{where}: {name} is not documented")
        elif inner:
            found += problems(item, inner, document, f"{where}.{name}")
    return found


def schema_of(document, method, path, status):
    response = document["paths"][path][method]["responses"][str(status)]
    return response["content"]["application/json"]["schema"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"encoding_format": "base64"},
        {"dimensions": [64, 384], "truncate": True, "input": ["x", "word " * 400]},
        {"output_dtype": "ubinary"},
        {"dimensions": 0},
        {"model": "gone"},
        {"surprise": 1},
    ],
)
def test_answers_are_as_documented(http_client, document, fields):
    """Good and bad requests: the status is listed and the body has its schema."""
    body = {"model": "default", "input": "x"} | fields
    answer = http_client.post("/v1/embeddings", json=body)
    schema = schema_of(document, "post", "/v1/embeddings", answer.status_code)
    assert problems(answer.json(), schema, document) == []


def test_automatic_sizes_are_as_documented(carded):
    """The figures of the choice are part of the document."""
    document = carded.get("/openapi.json").json()
    body = {"model": "default", "input": "x", "dimensions": "auto", "min_retention": 0.5}
    answer = carded.post("/v1/embeddings", json=body)
    schema = schema_of(document, "post", "/v1/embeddings", 200)
    assert problems(answer.json(), schema, document) == []
    assert "auto" in answer.json()["matryoshka"]


@pytest.mark.parametrize(
    ("path", "url"),
    [("/v1/models", "/v1/models"), ("/v1/models/{model}", "/v1/models/default"),
     ("/v1/models/{model}", "/v1/models/gone"), ("/openapi.json", "/openapi.json")],
)  # fmt: skip
def test_reading_routes_are_as_documented(http_client, document, path, url):
    """Models, one model, a missing one, and the document itself."""
    answer = http_client.get(url)
    schema = schema_of(document, "get", path, answer.status_code)
    assert problems(answer.json(), schema, document) == []


def test_the_checker_sees_a_planted_problem(document):
    """It is able to fail."""
    schema = {"$ref": "#/components/schemas/Error"}
    good = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
    assert problems(good, schema, document) == []
    assert problems({"error": good["error"] | {"param": 3}}, schema, document)
    assert problems({"error": good["error"] | {"more": 3}}, schema, document)
    assert problems({"error": {}}, schema, document)


def test_every_field_and_every_error_is_there(document):
    """What the parser takes and what the tree of errors may answer."""
    schemas = document["components"]["schemas"]
    assert schemas["EmbeddingsBody"]["properties"].keys() == EmbeddingsBody.model_fields.keys()
    assert schemas["EmbeddingsBody"]["additionalProperties"] is False
    statuses = set(document["paths"]["/v1/embeddings"]["post"]["responses"])
    tree = [errors.InvalidRequest, errors.TooLarge, errors.TooSlow, errors.Unauthenticated]
    tree += [
        errors.PermissionDenied,
        errors.NotFound,
        errors.Overloaded,
        errors.Unavailable,
        errors.ServiceError,
    ]
    assert {str(kind.http_status) for kind in tree} | {"200"} == statuses


def test_every_route_is_there(document):
    """The document's paths are those of the app."""
    from services.encoder.openai import OpenAIRoutes
    from services.encoder.rerank_http import RerankRoutes
    from services.encoder.settings import EncoderSettings

    settings = EncoderSettings()
    routes = OpenAIRoutes(None, None, settings).routes() + RerankRoutes(None, settings).routes()
    paths = {re.sub(r":\w+}", "}", route.path) for route in routes}
    assert set(document["paths"]) == paths | {"/livez", "/readyz", "/metrics"}
