"""Schemas of objects: Kubernetes' own, strict, and ours of what operators bring."""

import json
from functools import cache
from pathlib import Path

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

_KUBERNETES = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
NEWEST = kubernetes_validate.latest_version()
# The oldest that the chart says it takes, and all after it.
VERSIONS = [f"1.{minor}" for minor in range(31, int(NEWEST.split(".")[1]) + 1)]
OPERATORS = {
    (schema := json.loads(path.read_text()))["properties"]["kind"]["const"]: schema
    for path in (Path(__file__).parent / "crds").glob("*.json")
}


def check(found: dict, version: str) -> None:
    """Hold an object against its schema; jsonschema.ValidationError tells what is wrong."""
    kind = found["kind"]
    if kind in OPERATORS:
        Draft202012Validator(OPERATORS[kind]).validate(found)
    else:
        _validator(version, kind, found["apiVersion"]).validate(found)


@cache
def _validator(version: str, kind: str, api_version: str) -> Draft202012Validator:
    # As `kubernetes_validate.validate` does it, which parses 5 MB anew for each object.
    group, slash, number = api_version.partition("/")
    name = f"{kind}-{group.split('.')[0]}{'-' if slash else ''}{number}.json".lower()
    folder = _folder(version)
    schema = json.loads((folder / name).read_text())
    registry = Resource.from_contents(schema) @ _definitions(folder)
    return Draft202012Validator(schema, registry=registry)


@cache
def _folder(version: str) -> Path:
    (folder,) = _KUBERNETES.glob(f"v{version}*-local-strict")
    return folder


@cache
def _definitions(folder: Path) -> Registry:
    definitions = json.loads((folder / "_definitions.json").read_text())
    return Resource.from_contents(definitions) @ Registry()
