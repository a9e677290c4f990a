"""Protobuf messages of versions and promotions to our own types and back."""

from collections.abc import Sequence
from pathlib import Path

from services.shared.errors import InvalidRequest
from services.shared.pb import trainer_pb2 as pb
from services.trainer.models.promoter import Wanted
from services.trainer.models.promotion import Promotion
from services.trainer.models.registry import Version
from services.trainer.results.gate import Rule
from services.trainer.results.slices import SliceQuality
from services.trainer.wire import write_hyperparameters, write_quality, write_scores


def write_version(version: Version, aliases: Sequence[str], folder: Path) -> pb.ModelVersion:
    """Write a version.

    Args:
        version: see there.
        aliases: that point at it.
        folder: of its model.
    """
    return pb.ModelVersion(
        id=version.id,
        name=version.name,
        version=version.version,
        job_id=version.job_id,
        created_at=int(version.created_at),
        base_model=version.base_model,
        parent=version.parent,
        space_id=version.space_id,
        data_digest=version.data_digest,
        data_name=version.data_name,
        code_version=version.code_version,
        hyperparameters=write_hyperparameters(version.hyperparameters),
        quality=write_quality(version.quality),
        aliases=aliases,
        model_dir=str(folder),
    )


def write_comparison(slices: Sequence[SliceQuality]) -> list[pb.SliceComparison]:
    return [
        pb.SliceComparison(
            slice=one.name,
            num_queries=one.num_queries,
            dims=[
                pb.DimComparison(
                    dim=change.dim,
                    before=write_scores(before),
                    after=write_scores(after),
                    change=change.mean,
                    low=change.low,
                    high=change.high,
                )
                for before, after, change in zip(one.before, one.after, one.changes, strict=True)
            ],
        )
        for one in slices
    ]


def read_wanted(request: pb.PromoteRequest) -> Wanted:
    """Read what shall be promoted; InvalidRequest comes from `Promoter.begin`."""
    return Wanted(
        version=request.version,
        encoder_alias=request.encoder_alias,
        collections=tuple(request.collections),
        rule=_read_rule(request.gate),
        holds=request.hold,
        watches=request.watch,
    )


def write_promotion(promotion: Promotion) -> pb.Promotion:
    return pb.Promotion(
        id=promotion.id,
        version=promotion.version_id,
        encoder_alias=promotion.encoder_alias,
        collections=[target.alias for target in promotion.targets],
        state=pb.PromotionState.Value(f"PROMOTION_STATE_{promotion.state.upper()}"),
        reasons=promotion.reasons,
        judged=write_comparison(promotion.judged),
        error=promotion.error,
        previous=promotion.previous,
        created_at=int(promotion.created_at),
        updated_at=int(promotion.updated_at),
        step=promotion.step,
        done=promotion.done,
        total=promotion.total,
    )


def _read_rule(gate: pb.Gate) -> Rule:
    """Read the gate's rule.

    Raises:
        InvalidRequest: the allowed fall is none.
    """
    rule = Rule(dims=tuple(gate.dims), slices=tuple(gate.slices))
    if gate.HasField("max_drop"):
        if not 0 <= gate.max_drop <= 1:
            raise InvalidRequest(
                f"gate.max_drop must be between 0 and 1, got {gate.max_drop}", "gate.max_drop"
            )
        rule = rule.model_copy(update={"max_drop": gate.max_drop})
    if gate.min_queries:
        rule = rule.model_copy(update={"min_queries": gate.min_queries})
    return rule
