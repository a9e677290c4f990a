"""What a search may say and hear beside OpenAI's fields: the recall it wants, its plan, its cost.

In a request it travels as `routing`, through an SDK's `extra_body`; the answer then has one too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from services.router.cross_encoder import CrossEncoder
from services.router.hybrid.hybrid import Hybrid
from services.router.plan import Plan, Stage
from services.router.recall.promise import Promise
from services.router.search import Found, TextReport
from services.shared.errors import InvalidRequest


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _StageBody(_Body):
    dim: StrictInt = Field(ge=1)
    candidates: StrictInt = Field(default=0, ge=0)
    exact: StrictBool = False
    ef: StrictInt = Field(default=0, ge=0)
    ignore_quantization: StrictBool = False
    oversampling: float | None = Field(default=None, ge=0, strict=True)
    nested: StrictBool = False


class _HybridBody(_Body):
    fusion: Literal["score", "rank"] = "score"
    weight: float | None = Field(default=None, ge=0, le=1, strict=True)
    candidates: StrictInt = Field(default=0, ge=0)


class _CrossEncoderBody(_Body):
    model: StrictStr = Field(min_length=1)
    candidates: StrictInt = Field(default=0, ge=0)


class _RoutingBody(_Body):
    recall_target: float | None = Field(default=None, ge=0, le=1, strict=True)
    slice: StrictStr = ""
    max_engine_ms: float | None = Field(default=None, gt=0, strict=True)
    max_bytes_per_point: StrictInt | None = Field(default=None, ge=1)
    plan: list[_StageBody] | None = None
    explain: StrictBool = False
    measure_recall: StrictBool = False
    hybrid: _HybridBody | None = None
    cross_encoder: _CrossEncoderBody | None = None


_FIELDS = ", ".join(_RoutingBody.model_fields)
_STAGE_FIELDS = ", ".join(_StageBody.model_fields)


@dataclass(frozen=True, slots=True)
class Routing:
    """How a search goes, beside what it looks for."""

    plan: Plan | None = None
    """None: the cheapest that keeps the target."""
    recall_target: float | None = None
    """None: the collection's own, if it was calibrated."""
    slice: str = ""
    """Group of queries that this one belongs to."""
    max_seconds: float | None = None
    max_bytes: int | None = None
    explain: bool = False
    measure_recall: bool = False
    hybrid: Hybrid | None = None
    """Also search by words; None: by vectors only."""
    cross_encoder: CrossEncoder | None = None
    """Who has the last word; None: nobody."""


def read_routing(value: object) -> Routing:
    """Read a request's `routing`.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    try:
        body = _RoutingBody.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest(
            f"routing must be an object with some of {_FIELDS}: recall_target is a number from 0 "
            "to 1, slice a string, max_engine_ms a positive number, max_bytes_per_point a positive "
            f"integer, plan a list of stages with {_STAGE_FIELDS}; hybrid an object with some of "
            "fusion ('score' or 'rank'), weight (0 to 1) and candidates; "
            "cross_encoder one with a model and maybe candidates; explain and measure_recall are "
            "booleans",
            "routing",
        ) from error
    plan = None
    if body.plan is not None:
        plan = Plan(tuple(map(_read_stage, body.plan)))
    return Routing(
        plan,
        body.recall_target,
        body.slice,
        body.max_engine_ms / 1000 if body.max_engine_ms is not None else None,
        body.max_bytes_per_point,
        body.explain,
        body.measure_recall,
        None if body.hybrid is None else Hybrid("", **body.hybrid.model_dump()),
        None if body.cross_encoder is None else CrossEncoder(**body.cross_encoder.model_dump()),
    )


def _read_stage(stage: _StageBody) -> Stage:
    return Stage(
        stage.dim, stage.candidates, stage.exact, stage.ef, stage.ignore_quantization,
        stage.oversampling, stage.nested,
    )  # fmt: skip


def write_routing(found: Sequence[Found]) -> dict[str, object]:
    """Write an answer's `routing`: of several queries, times add up and the lowest recall holds."""
    first = found[0]
    recalls = [one.recall for one in found if one.recall is not None]
    return {
        "collection": first.collection.name,
        "space_id": first.collection.space_id,
        "plan": write_plan(first.plan),
        "stages": [
            {
                "dim": stages[0].size[0],
                "nested": stages[0].size[1],
                "candidates": sum(stage.candidates for stage in stages),
                "seconds": sum(stage.seconds for stage in stages),
            }
            for stages in zip(*(one.stages for one in found), strict=True)
        ],
        "encode_seconds": sum(one.encode_seconds for one in found),
        "search_seconds": sum(one.search_seconds for one in found),
        "promise": None if first.promise is None else _write_promise(first.promise),
        "recall": min(recalls) if recalls else None,
        "exact_seconds": sum(one.exact_seconds for one in found),
        "text": _write_text([one.text for one in found if one.text is not None]),
    }


def _write_text(texts: Sequence[TextReport]) -> dict[str, object] | None:
    if not texts:
        return None
    return {
        "terms": sum(text.terms for text in texts),
        "candidates": sum(text.candidates for text in texts),
        "seconds": sum(text.seconds for text in texts),
    }


def write_plan(plan: Plan) -> list[dict[str, object]]:
    """Write a plan as `routing` takes one."""
    return [
        {
            "dim": stage.dim,
            "candidates": stage.candidates,
            "exact": stage.exact,
            "ef": stage.ef,
            "ignore_quantization": stage.ignore_quantization,
            "oversampling": stage.oversampling,
            "nested": stage.is_nested,
        }
        for stage in plan.stages
    ]


def _write_promise(promise: Promise) -> dict[str, object]:
    return {
        "recall_target": promise.target,
        "recall": promise.recall,
        "met": promise.is_met,
        "exact": promise.basis == "exact",
        "slice": promise.slice,
        "note": promise.note,
    }
