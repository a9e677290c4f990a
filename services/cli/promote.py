"""What the commands on promotions do, and how one is shown while it goes on."""

import asyncio
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.peer import connect, metadata
from services.cli.table import show
from services.cli.versions import Trainer, comparison
from services.shared.errors import ServiceError
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc

_MOST = 100
_SAID = {
    pb.PROMOTION_STATE_CHECKING: "the gate judges",
    pb.PROMOTION_STATE_LOADING: "the encoder loads it",
    pb.PROMOTION_STATE_MIGRATING: "collections are filled",
    pb.PROMOTION_STATE_SWITCHING: "switching",
    pb.PROMOTION_STATE_ROLLING_BACK: "rolling back",
}


def gate(max_drop: float, dims: Sequence[int], slices: Sequence[str], min_queries: int) -> pb.Gate:
    return pb.Gate(max_drop=max_drop, dims=dims, slices=slices, min_queries=min_queries)


def wanted(
    version: str, encoder_alias: str, collections: Sequence[str], rule: pb.Gate, hold: bool,
    watch: bool,
) -> pb.PromoteRequest:  # fmt: skip
    return pb.PromoteRequest(
        version=version, encoder_alias=encoder_alias, collections=collections, gate=rule,
        hold=hold, watch=watch,
    )  # fmt: skip


def start(trainer: Trainer, request: pb.PromoteRequest) -> None:
    """Start a promotion and show it until it ends or waits for somebody.

    Raises:
        ServiceError: it was refused or given up; says why.
    """
    promotion = asyncio.run(_follow(trainer, request))
    if promotion.judged:
        Console().print(comparison(promotion.judged, "what the gate looked at"))
    if promotion.state == pb.PROMOTION_STATE_REFUSED:
        reasons = "\n".join(f"  {reason}" for reason in promotion.reasons)
        raise ServiceError(f"the gate refused {promotion.version}; nothing was touched:\n{reasons}")
    if promotion.state == pb.PROMOTION_STATE_FAILED:
        raise ServiceError(f"given up, and what was served before is: {promotion.error}")
    print(_result(promotion))


async def _follow(trainer: Trainer, request: pb.PromoteRequest) -> pb.Promotion:
    promotion = pb.Promotion()
    with Console(stderr=True).status("asking the trainer") as status:
        async with connect(trainer.address) as channel:
            call = pb_grpc.TrainerServiceStub(channel).Promote(
                request, metadata=metadata(trainer.api_key)
            )
            async for answer in call:
                promotion = answer.promotion
                said = promotion.step or _SAID.get(promotion.state, "")
                waits = f" (waits: {promotion.error})" if promotion.error else ""
                status.update(escape(said + waits))
    return promotion


def list_promotions(trainer: Trainer) -> None:
    """Show promotions in a table."""
    request = pb.ListPromotionsRequest(limit=_MOST)
    answer: pb.ListPromotionsResponse = trainer.ask("ListPromotions", request)
    table = Table()
    table.add_column("promotion", no_wrap=True)
    table.add_column("version", no_wrap=True)
    table.add_column("collections", overflow="fold")
    table.add_column("state")
    for one in answer.promotions:
        state = _state(one) + (f": {one.error}" if one.error else "")
        table.add_row(
            one.id, escape(one.version), escape(", ".join(one.collections)), escape(state)
        )
    show(table)


def cut_over(trainer: Trainer, promotion_id: str) -> None:
    """Switch a promotion that waits."""
    answer: pb.CutOverPromotionResponse = trainer.ask(
        "CutOverPromotion", pb.CutOverPromotionRequest(id=promotion_id)
    )
    print(_result(answer.promotion))


def roll_back(trainer: Trainer, promotion_id: str) -> None:
    """Give a promotion up, or switch back."""
    answer: pb.RollBackPromotionResponse = trainer.ask(
        "RollBackPromotion", pb.RollBackPromotionRequest(id=promotion_id)
    )
    print(_result(answer.promotion))


def finish(trainer: Trainer, promotion_id: str) -> None:
    """End a promotion that is watched."""
    answer: pb.FinishPromotionResponse = trainer.ask(
        "FinishPromotion", pb.FinishPromotionRequest(id=promotion_id)
    )
    print(_result(answer.promotion))


def _result(one: pb.Promotion) -> str:
    """Say what came of it, and what to do next."""
    match one.state:
        case pb.PROMOTION_STATE_READY:
            return f"ready: `matryoshka promotions cut-over {one.id}` switches to {one.version}"
        case pb.PROMOTION_STATE_WATCHING:
            return (
                f"{one.version} is served; `matryoshka promotions roll-back {one.id}` goes back, "
                f"`finish` closes the way back"
            )
        case pb.PROMOTION_STATE_DONE:
            return f"{one.version} is served"
        case pb.PROMOTION_STATE_ROLLED_BACK:
            return "what was served before is served"
    return f"{_state(one)}: {one.error}"


def _state(one: pb.Promotion) -> str:
    name = pb.PromotionState.Name(one.state).removeprefix("PROMOTION_STATE_")
    return name.lower().replace("_", " ")
