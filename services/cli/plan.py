"""Plans of a search as people write and read them."""

from collections.abc import Iterable

from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb

EXACT = "exact"


def read_plan(text: str) -> pb.Plan:
    """Read a plan such as `64:100,384`: a shortlist of 100 by 64 numbers, reranked by 384.

    Stages are parted by commas; of each first the size ("64", "64 nested"), then, after colons,
    how many candidates it hands on, `ef=` and a width for its walk, or `exact`.

    Raises:
        InvalidRequest: says what would be accepted. Whether a collection has those sizes is the
            router's to say.
    """
    return pb.Plan(stages=[_read_stage(part.strip()) for part in text.split(",")])


def _read_stage(text: str) -> pb.Stage:
    size, *more = text.split(":")
    dim, _, nested = size.partition(" ")
    if not dim.isdecimal() or nested not in ("", "nested"):
        raise _refuse(text)
    stage = pb.Stage(dim=_number(dim, text), nested=bool(nested))
    for part in more:
        if part == EXACT:
            stage.exact = True
        elif part.startswith("ef="):
            stage.ef = _number(part.removeprefix("ef="), text)
        else:
            stage.candidates = _number(part, text)
    return stage


def _number(text: str, stage: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:  # the most that the message can hold
        raise _refuse(stage)
    return int(text)


def _refuse(stage: str) -> InvalidRequest:
    return InvalidRequest(
        f"--plan must be {EXACT}, or stages such as 64:100,384 or 64:100:ef=200,384: a size, the "
        f"candidates that it hands on, perhaps ef=N or {EXACT}; got {stage!r}"
    )


def describe(stages: Iterable[pb.Stage], is_measured: bool = True) -> str:
    """Return a plan in a few words.

    Args:
        stages: of the plan.
        is_measured: a calibration made it. Where such a plan names no ef there is no graph to
            walk; elsewhere it leaves the width of the walk to the engine.
    """
    *first, last = stages
    parts = [f"{stage.candidates} by {size(stage)}{_walk(stage, is_measured)}" for stage in first]
    if parts:
        return ", ".join([*parts, f"rerank by {size(last)}"])
    if last.exact:
        return f"exact search at {size(last)}"
    return f"{size(last)}, ef {last.ef}" if last.ef else f"one stage at {size(last)}"


def _walk(stage: pb.Stage, is_measured: bool) -> str:
    if stage.ef:
        return f" (ef {stage.ef})"
    return " (scan)" if stage.exact or is_measured else ""


def size(stage: pb.Stage | pb.StageReport) -> str:
    """Name a stage's size as the router does."""
    return f"{stage.dim} nested" if stage.nested else str(stage.dim)
