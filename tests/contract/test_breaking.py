"""The wires go on for callers of the last release, and what would break one of them is told."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.breaking import breaking, encoder_document

ROOT = Path(__file__).parents[2]
RELEASED = Path(__file__).with_name("released")
PARTS = "/components/schemas/"


def buf_breaking(sources):
    """Hold protos against the release's."""
    command = [Path(sys.executable).with_name("buf"), "breaking", "--against"]
    return subprocess.run(
        [*command, RELEASED / "protos.binpb"],
        cwd=sources, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_protos_break_no_caller():
    """buf's FILE rules: what was generated from the release's compiles and talks as before."""
    ended = buf_breaking(ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_document_of_the_encoder_breaks_no_caller():
    """Nothing that was taken is refused, nothing that was answered is gone."""
    released = json.loads((RELEASED / "encoder.openapi.json").read_text())
    assert breaking(released, encoder_document()) == []


@pytest.mark.parametrize(
    ("file", "line", "instead", "told"),
    [
        ("encoder.proto", "  rpc Rerank(RerankRequest) returns (RerankResponse);\n", "", "Rerank"),
        ("encoder.proto", "  string model = 1;", "  bytes model = 1;", "changed type"),
        ("router.proto", "  uint32 limit = ", "  uint32 most = ", "limit"),
        ("trainer.proto", "  rpc GetJob(", "  rpc ReadJob(", "GetJob"),
    ],
)
def test_a_breaking_change_of_a_proto_is_told(tmp_path, file, line, instead, told):
    """A call or a field that is gone or is another one."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    proto = tmp_path / "protos" / file
    text = proto.read_text()
    assert line in text
    proto.write_text(text.replace(line, instead, 1))
    ended = buf_breaking(tmp_path)
    assert ended.returncode != 0
    assert told in ended.stdout


def edit(document, path, change):
    """Return a copy with what is at a path changed by a function, or gone with None."""
    changed = copy.deepcopy(document)
    *way, last = path
    place = changed
    for step in way:
        place = place[step]
    if change is None:
        del place[last]
    else:
        place[last] = change(place[last])
    return changed


BODY = ("components", "schemas", "EmbeddingsBody")
ANSWER = ("components", "schemas", "Embeddings")
POST = ("paths", "/v1/embeddings", "post")
BREAKING = {
    "GET /v1/models is gone": (("paths", "/v1/models"), None),
    "POST /v1/embeddings is gone": (POST, None),
    "200 is gone": ((*POST, "responses", "200"), None),
    "application/json is gone": ((*POST, "requestBody", "content", "application/json"), None),
    "path model is gone": (("paths", "/v1/models/{model}", "get", "parameters"), lambda _: []),
    "user is refused now": ((*BODY, "properties", "user"), None),
    "user must be sent now": ((*BODY, "required"), lambda names: [*names, "user"]),
    "request.model: string refused now": (
        (*BODY, "properties", "model", "type"), lambda _: "integer"),
    "maxItems is another": (
        ("components", "schemas", "RerankBody", "properties", "documents", "maxItems"),
        lambda most: most - 1),
    "request.encoding_format: ['base64'] refused now": (
        (*BODY, "properties", "encoding_format", "anyOf", 0, "enum"), lambda _: ["float"]),
    "usage is gone": ((*ANSWER, "properties", "usage"), None),
    "model may be missing now": ((*ANSWER, "required"), lambda names: sorted({*names} - {"model"})),
    "200.model: integer answered now": (
        (*ANSWER, "properties", "model", "type"), lambda _: ["string", "integer"]),
    "200.data: object answered now": (
        (*ANSWER, "properties", "data"), lambda data: data["items"]),
}  # fmt: skip


@pytest.mark.parametrize("told", BREAKING)
def test_a_breaking_change_of_the_document_is_told(told):
    """Paths, methods, fields, types, bounds and values, in what is sent and in what is answered."""
    document = encoder_document()
    found = breaking(document, edit(document, *BREAKING[told]))
    assert any(told in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (("paths",), lambda paths: paths | {"/v2/embeddings": {"get": {"responses": {}}}}),
        ((*POST, "responses"), lambda statuses: statuses | {"418": {"description": "new"}}),
        ((*BODY, "properties"), lambda fields: fields | {"more": {"type": "string"}}),
        ((*BODY, "required"), lambda _: []),
        ((*BODY, "properties", "input", "anyOf", 1, "maxItems"), lambda most: most + 1),
        ((*ANSWER, "properties"), lambda fields: fields | {"more": {"type": "string"}}),
        ((*ANSWER, "required"), lambda names: [*names, "more"]),
        ((*ANSWER, "properties", "usage", "properties"), lambda f: f | {"more": {"type": "null"}}),
    ],
)
def test_what_only_adds_is_let_be(path, change):
    """New paths, statuses and fields, and wider bounds of what is sent."""
    document = encoder_document()
    assert breaking(document, edit(document, path, change)) == []


def test_schemas_that_hold_themselves_are_compared():
    """A tree ends; and its change is seen once."""

    def tree(kind):
        node = {"type": "object", "properties": {"left": {"$ref": f"#{PARTS}Node"}, "value": kind}}
        return document_of({"$ref": f"#{PARTS}Node"}, Node=node)

    assert breaking(tree({"type": "string"}), tree({"type": "string"})) == []
    assert len(breaking(tree({"type": "string"}), tree({"type": "null"}))) == 2  # both directions


def document_of(schema, **parts):
    """A document with one call, which is sent and answers the same."""
    content = {"content": {"application/json": {"schema": schema}}}
    return {
        "paths": {"/x": {"post": {"requestBody": content, "responses": {"200": content}}}},
        "components": {"schemas": parts},
    }


NAMES = st.sampled_from("abc")
SCALARS = st.one_of(
    st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda t: {"type": t}),
    st.just({"type": ["string", "null"]}),
    st.lists(st.sampled_from(["x", "y", 1, None]), min_size=1, unique=True).map(
        lambda values: {"enum": values}
    ),
    st.just({"const": "x"}),
    st.integers(0, 5).map(lambda least: {"type": "integer", "minimum": least}),
    st.integers(1, 3).map(lambda most: {"type": "string", "maxLength": most}),
)


def compound(inner):
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least},
        inner, st.integers(0, 2),
    )  # fmt: skip
    objects = st.builds(
        lambda fields, required, others: {
            "type": "object",
            "properties": fields,
            "required": sorted(required & fields.keys()),
        } | ({} if others is None else {"additionalProperties": others}),
        st.dictionaries(NAMES, inner, max_size=3),
        st.sets(NAMES),
        st.one_of(st.none(), st.just(False), inner),
    )  # fmt: skip
    choices = st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some})
    return arrays | objects | choices


SCHEMAS = st.recursive(SCALARS, compound, max_leaves=6)
VALUES = st.recursive(
    st.sampled_from([None, True, 0, 1, 7, 2.5, "", "x", "y", "long"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(SCHEMAS)
def test_what_stays_breaks_nobody(schema):
    """Whatever the schema, it is within itself."""
    assert breaking(document_of(schema), document_of(schema)) == []


def narrowed(schema):
    """Other schemas that are near this one."""
    if schema.get("type") == "object":
        yield schema | {"required": ["a", "b"]}
        yield schema | {"additionalProperties": False}
        yield schema | {"properties": {"a": {"type": "null"}}}
    if schema.get("type") == "array":
        yield schema | {"minItems": schema["minItems"] + 1}
        yield schema | {"items": {"type": "string"}}
    if "enum" in schema:
        yield {"enum": schema["enum"][:1]}
    if "anyOf" in schema:
        yield {"anyOf": schema["anyOf"][:1]}
    yield {"anyOf": [{"type": "boolean"}, schema]}


@given(st.data(), SCHEMAS, VALUES)
def test_what_is_let_be_refuses_nothing_that_was_taken(data, old, value):
    """By the word of jsonschema: what the old schema takes, the new one takes too."""
    new = data.draw(st.sampled_from(list(narrowed(old))) | SCHEMAS)
    told = [one for one in breaking(document_of(old), document_of(new)) if " 200" not in one]
    if not told and jsonschema.Draft202012Validator(old).is_valid(value):
        assert jsonschema.Draft202012Validator(new).is_valid(value)


@given(st.data(), st.dictionaries(NAMES, SCHEMAS, min_size=1))
def test_a_field_that_is_gone_or_new_and_required_is_told(data, fields):
    """Wherever it is: of an answer, and of what is sent."""
    name = data.draw(st.sampled_from(sorted(fields)))
    whole = {"type": "object", "properties": fields, "additionalProperties": False}
    less = whole | {"properties": {k: v for k, v in fields.items() if k != name}}
    gone = breaking(document_of(whole), document_of(less))
    assert f"POST /x request: {name} is refused now" in gone
    assert f"POST /x 200: {name} is gone" in gone
    told = breaking(document_of(less), document_of(whole | {"required": [name]}))
    assert told == [f"POST /x request: {name} must be sent now"]
