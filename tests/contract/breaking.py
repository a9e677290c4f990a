"""What a newer OpenAPI document takes from callers that go by an older one.

A caller may go on if all that it could send is still taken, and if all that it is answered is as it
was told, new fields aside. `python -m tests.contract.breaking FILE` writes the encoder's document.
Knows the keywords that our documents use; another one may be there, but must stay as it is.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.encoder.openapi import describe_api
from services.encoder.settings import EncoderSettings

Schema = dict[str, Any]

_NOTES = {"title", "description", "default", "examples"}
_LOWEST = {"minimum": float("-inf"), "minLength": 0, "minItems": 0}
_HIGHEST = dict.fromkeys(("maximum", "maxLength", "maxItems"), float("inf"))
_COMPARED = {
    "type", "enum", "properties", "required", "additionalProperties", "items", "uniqueItems",
    *_LOWEST, *_HIGHEST, *_NOTES,
}  # fmt: skip
_TYPES = {
    "null": type(None), "boolean": bool, "string": str, "number": (int, float), "array": list,
    "object": dict,
}  # fmt: skip


def breaking(old: Schema, new: Schema) -> list[str]:
    """Return a sentence on each change that may break a caller."""
    found = []
    for path, operations in old["paths"].items():
        for method, before in operations.items():
            where = f"{method.upper()} {path}"
            after = new["paths"].get(path, {}).get(method)
            if after is None:
                found.append(f"{where} is gone")
                continue
            found += _Wire(old, new, is_request=True).requests(before, after, where)
            found += _Wire(new, old, is_request=False).responses(before, after, where)
    return found


@dataclass
class _Wire:
    """One direction: what the sender's document has must be in what the receiver's has."""

    sender: Schema
    receiver: Schema
    is_request: bool
    _seen: set[tuple[str, str]] = field(default_factory=set)
    """What is being compared: schemas may hold themselves."""

    def requests(self, old: Schema, new: Schema, where: str) -> Iterator[str]:
        before, after = _parameters(old), _parameters(new)
        for name, one in before.items():
            if name not in after:
                yield f"{where}: {name} is gone"
            else:
                yield from self.beyond(one["schema"], after[name]["schema"], f"{where}: {name}")
        for name, one in after.items():
            if one.get("required") and not before.get(name, {}).get("required"):
                yield f"{where}: {name} must be sent now"
        body, newer = old.get("requestBody", {}), new.get("requestBody", {})
        if newer.get("required") and not body.get("required"):
            yield f"{where}: a body must be sent now"
        yield from self._contents(body, newer, f"{where} request")

    def responses(self, old: Schema, new: Schema, where: str) -> Iterator[str]:
        for status, before in old["responses"].items():
            after = new["responses"].get(status)
            if after is not None:
                yield from self._contents(before, after, f"{where} {status}")
            elif status.startswith("2"):
                yield f"{where} {status} is gone"

    def _contents(self, old: Schema, new: Schema, where: str) -> Iterator[str]:
        for media, before in old.get("content", {}).items():
            after = new.get("content", {}).get(media)
            if after is None:
                yield f"{where}: {media} is gone"
            elif self.is_request:
                yield from self.beyond(before["schema"], after["schema"], where)
            else:
                yield from self.beyond(after["schema"], before["schema"], where)

    def beyond(self, sent: Schema, taken: Schema, where: str) -> list[str]:
        """Say what may be sent that is not taken."""
        pair = (json.dumps(sent, sort_keys=True), json.dumps(taken, sort_keys=True))
        if pair in self._seen or not taken.keys() - _NOTES:
            return []
        self._seen.add(pair)
        wide = _choices(taken, self.receiver)
        found = []
        for choice in _choices(sent, self.sender):
            fits = [self._beyond_one(choice, one, where) for one in wide if _holds(one, choice)]
            if fits:
                found += min(fits, key=len)
            else:
                found.append(f"{where}: {choice['type']} {self._say('refused', 'answered')} now")
        self._seen.discard(pair)
        return found

    def _beyond_one(self, sent: Schema, taken: Schema, where: str) -> list[str]:
        found = []
        if "enum" in taken:
            values = [one for one in sent.get("enum", ["any"]) if one not in taken["enum"]]
            if values:
                found.append(f"{where}: {values} {self._say('refused', 'answered')} now")
        for bounds, is_over in ((_LOWEST, float.__lt__), (_HIGHEST, float.__gt__)):
            for name, at_most in bounds.items():
                limits = sent.get(name, at_most), taken.get(name, at_most)
                if is_over(float(limits[0]), float(limits[1])):
                    found.append(f"{where}: {name} is another")
        if taken.get("uniqueItems") and not sent.get("uniqueItems"):
            found.append(f"{where}: uniqueItems is another")
        found += [
            f"{where}: {name} is another"
            for name in sorted((sent.keys() | taken.keys()) - _COMPARED)
            if sent.get(name) != taken.get(name)
        ]
        if sent["type"] == "array":
            found += self.beyond(sent.get("items", {}), taken.get("items", {}), f"{where}[]")
        if sent["type"] == "object":
            found += self._beyond_object(sent, taken, where)
        return found

    def _beyond_object(self, sent: Schema, taken: Schema, where: str) -> Iterator[str]:
        for name in sorted(set(taken.get("required", [])) - set(sent.get("required", []))):
            yield f"{where}: {name} {self._say('must be sent', 'may be missing')} now"
        fields, known = sent.get("properties", {}), taken.get("properties", {})
        others, open_to = (one.get("additionalProperties", {}) for one in (sent, taken))
        for name in sorted(fields.keys() | known.keys()):
            inner, outer = fields.get(name, others), known.get(name, open_to)
            if name not in fields and not self.is_request:
                yield f"{where}: {name} is gone"
            elif outer is False and self.is_request and inner is not False:
                yield f"{where}: {name} is refused now"
            elif outer is not False and inner is not False:
                yield from self.beyond(_open(inner), _open(outer), f"{where}.{name}")
        if others is not False and open_to is not False:
            yield from self.beyond(_open(others), _open(open_to), f"{where}.*")
        elif others is not False and self.is_request:
            yield f"{where}: other fields are refused now"

    def _say(self, of_request: str, of_response: str) -> str:
        return of_request if self.is_request else of_response


def _open(schema: Schema | bool) -> Schema:
    """Write the schema `true` as an object."""
    return {} if isinstance(schema, bool) else schema


def _parameters(operation: Schema) -> dict[str, Schema]:
    return {f"{one['in']} {one['name']}": one for one in operation.get("parameters", [])}


def _choices(schema: Schema, document: Schema) -> list[Schema]:
    """Return schemas of one type each, which together are this one."""
    if "$ref" in schema:
        return _choices(document["components"]["schemas"][schema["$ref"].split("/")[-1]], document)
    if "anyOf" in schema:
        if others := schema.keys() - _NOTES - {"anyOf"}:
            raise ValueError(f"a schema has anyOf and {sorted(others)}")
        return [one for choice in schema["anyOf"] for one in _choices(choice, document)]
    schema = dict(schema)
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    values = schema.pop("enum", None)
    wanted = schema.pop("type", list(_TYPES))
    found: list[Schema] = []
    for kind in [wanted] if isinstance(wanted, str) else wanted:
        one = schema | {"type": kind}
        if values is not None:
            one["enum"] = [value for value in values if _is_of(value, kind)]
        if one.get("enum") != []:
            found.append(one)
    return found


def _is_of(value: object, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _holds(taken: Schema, sent: Schema) -> bool:
    return sent["type"] in (taken["type"], {"number": "integer"}.get(taken["type"]))


def encoder_document() -> Schema:
    """Return what the encoder shows by default."""
    document: Schema = describe_api("0", EncoderSettings().max_texts)
    return document


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(encoder_document(), indent=1, sort_keys=True) + "\n")
