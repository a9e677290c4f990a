"""The body of a request for a job: OpenAI's fields, and Matryoshka's settings in four places.

They are taken from `method.matryoshka`, `method.supervised.hyperparameters`, `hyperparameters` and,
through the SDK's `extra_body`, `matryoshka`; one that stands in several must be the same in all.
JSON in, our own types out, or an error that names the first wrong field and says what it may be.
Source: openai/openai-openapi, `CreateFineTuningJobRequest`.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError

from services.shared.errors import InvalidRequest
from services.trainer.jobs.create import JobRequest
from services.trainer.jobs.hyperparameters import Wanted
from services.trainer.jobs.metadata import read_metadata
from services.trainer.jobs.spec import Mining

_FIELDS = (
    "model", "training_file", "validation_file", "method", "hyperparameters", "matryoshka",
    "suffix", "seed", "metadata", "integrations", "columns", "mine_negatives",
)  # fmt: skip
_MAX_CHARS = 4096  # of an address with its signature
_MAX_SEED = 2**31 - 1
_FILTER = "metadata"
# What stands for "choose for me" in OpenAI's words.
_AUTO = (None, "auto")


def read_create(body: object) -> JobRequest:
    """Read a request for a job.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    for name in body:
        if name not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise InvalidRequest(f"unknown field {name[:64]!r}; the fields are: {known}", name[:64])
    if body.get("integrations"):
        raise InvalidRequest("integrations must be empty or left out", "integrations")
    if "model" not in body:
        raise InvalidRequest("you must provide 'model'; '' is the default one", "model")
    return JobRequest(
        base_model=_text(body, "model"),
        training_file=_text(body, "training_file"),
        validation_file=_text(body, "validation_file"),
        suffix=_text(body, "suffix"),
        hyperparameters=_read_settings(body),
        metadata=read_metadata(body.get("metadata")),
        columns=_columns(body),
        mining=_mining(body),
    )


def read_filter(query: Mapping[str, str]) -> tuple[dict[str, str] | None, list[str]]:
    """Read the filter `metadata[key]=value` of a list.

    Returns:
        The pairs that jobs must have, None if they must have none (`metadata=null`); and the names
        of the parameters that say so.
    """
    names = [name for name in query if name == _FILTER or name.startswith(f"{_FILTER}[")]
    if _FILTER in names:
        if query[_FILTER] != "null" or len(names) > 1:
            raise InvalidRequest(
                "metadata must be 'null', or be given as metadata[key]=value", "metadata"
            )
        return None, names
    if not all(name.endswith("]") for name in names):
        raise InvalidRequest("metadata must be given as metadata[key]=value", "metadata")
    return {name[len(_FILTER) + 1 : -1]: query[name] for name in names}, names


def _columns(body: Mapping[str, Any]) -> dict[str, str]:
    columns = _object(body, "columns")
    if not all(isinstance(role, str) for role in columns.values()):
        raise InvalidRequest("columns must map fields of the file to what they are", "columns")
    return columns


def _mining(body: Mapping[str, Any]) -> Mining | None:
    if body.get("mine_negatives") is None:
        return None
    given = _object(body, "mine_negatives")
    if unknown := next((name for name in given if name not in Mining.model_fields), None):
        known = " and ".join(Mining.model_fields)
        raise InvalidRequest(
            f"mine_negatives: unknown setting {unknown[:64]!r}; there are: {known}",
            "mine_negatives",
        )
    try:
        return Mining.model_validate(given, strict=True)
    except ValidationError as error:
        raise InvalidRequest(Mining.ACCEPTED, "mine_negatives") from error


def _text(body: Mapping[str, object], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_CHARS or "\0" in value:
        raise InvalidRequest(f"{name} must be a string of at most {_MAX_CHARS} characters", name)
    return value


def _read_settings(body: Mapping[str, Any]) -> Wanted:
    given: dict[str, object] = {}
    for place, values in _places(body):
        for name, value in values.items():
            if name not in Wanted.model_fields:
                known = ", ".join(Wanted.model_fields)
                raise InvalidRequest(
                    f"{place}: unknown setting {name[:64]!r}; there are: {known}", place
                )
            if value in _AUTO:
                continue
            if name in given and given[name] != value:
                raise InvalidRequest(f"{name} must be the same wherever it stands", place)
            given[name] = value
    try:
        # As JSON: strict about numbers, and lists may stand for tuples.
        return Wanted.model_validate_json(orjson.dumps(given), strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "method"
        raise InvalidRequest(f"{name}: {first['msg']}", f"method.matryoshka.{name}") from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            "settings must be valid Unicode and 64-bit numbers", "method"
        ) from error


def _places(body: Mapping[str, Any]) -> list[tuple[str, dict[str, object]]]:
    """Return where settings stand, and what stands there."""
    method = _object(body, "method")
    kind = method.get("type", "matryoshka")
    if kind not in ("matryoshka", "supervised") or set(method) - {"type", kind}:
        raise InvalidRequest(
            "method must be {'type': 'matryoshka', 'matryoshka': {...}}; 'supervised' with "
            "hyperparameters works too",
            "method",
        )
    inner = _object(method, str(kind), "method")
    place = f"method.{kind}"
    if kind == "supervised":
        inner, place = _object(inner, "hyperparameters", place), f"{place}.hyperparameters"
    seed = body.get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed <= _MAX_SEED):
        raise InvalidRequest(f"seed must be an integer from 0 to {_MAX_SEED}", "seed")
    return [
        (place, inner),
        ("hyperparameters", _object(body, "hyperparameters")),
        ("matryoshka", _object(body, "matryoshka")),
        ("seed", {} if seed is None else {"seed": seed}),
    ]


def _object(values: Mapping[str, Any], name: str, within: str = "") -> dict[str, Any]:
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        place = f"{within}.{name}" if within else name
        raise InvalidRequest(f"{place} must be an object", place)
    return value
