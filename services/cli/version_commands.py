"""The commands on what training has made: versions, and promotions of them.

What they need is imported only when one of them is asked for.
"""

from typing import Annotated

import typer

from services.cli.peer import HERE, TrainerAddress, TrainerKey, call

versions = typer.Typer(no_args_is_help=True, help="The models that a running trainer has made.")
promotions = typer.Typer(
    no_args_is_help=True, help="Bring a trained model into service, and back out of it."
)

Id = Annotated[str, typer.Argument(metavar="PROMOTION", help="Id, as `list` shows it.")]


@versions.command("list")
def list_versions(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only versions of it.")] = "",
    trainer: TrainerAddress = HERE,
    api_key: TrainerKey = None,
) -> None:
    """Show versions, newest first, with what each size scores."""
    from services.cli import versions as work

    call(lambda: work.list_versions(work.Trainer(trainer, api_key), name), "--trainer", trainer)


@versions.command()
def compare(
    before: Annotated[str, typer.Argument(help="Id or alias; or the base model of the other.")],
    after: Annotated[str, typer.Argument(help="Id or alias.")],
    trainer: TrainerAddress = HERE,
    api_key: TrainerKey = None,
) -> None:
    """Show whose queries get better or worse from one version to another."""
    from services.cli import versions as work

    call(lambda: work.compare(work.Trainer(trainer, api_key), before, after), "--trainer", trainer)


@versions.command()
def alias(
    name: Annotated[str, typer.Argument(help="A name of your choice, such as live.")],
    version: Annotated[str, typer.Argument(metavar="[ID]", help="Unset: remove the name.")] = "",
    trainer: TrainerAddress = HERE,
    api_key: TrainerKey = None,
) -> None:
    """Point a name at a version."""
    from services.cli import versions as work

    call(lambda: work.alias(work.Trainer(trainer, api_key), name, version), "--trainer", trainer)


@versions.command()
def delete(
    version: Annotated[str, typer.Argument(metavar="ID")],
    trainer: TrainerAddress = HERE,
    api_key: TrainerKey = None,
) -> None:
    """Remove a version, its checkpoints and its copy of the data; nothing may need it any more."""
    from services.cli import versions as work

    call(lambda: work.delete(work.Trainer(trainer, api_key), version), "--trainer", trainer)


@promotions.command("start")
def start(
    version: Annotated[str, typer.Argument(help="Id or alias of a version.")],
    collection: Annotated[
        list[str] | None,
        typer.Option(help="A collection's alias at the router; may be given several times."),
    ] = None,
    encoder_alias: Annotated[
        str, typer.Option(help="The encoder's name that shall mean the version; empty: none.")
    ] = "default",
    max_drop: Annotated[
        float,
        typer.Option(min=0, max=1, help="Most that nDCG@10 or Spearman may fall at a served size."),
    ] = 0.01,
    dim: Annotated[
        list[int] | None, typer.Option(help="A served size; unset: all measured ones.")
    ] = None,
    slice_: Annotated[
        list[str] | None, typer.Option("--slice", help="A slice that must not lose either.")
    ] = None,
    min_queries: Annotated[
        int, typer.Option(min=1, help="Fewer held-out queries of a slice say nothing.")
    ] = 30,
    hold: Annotated[
        bool, typer.Option("--hold", help="Wait for `cut-over` when all is ready.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the way back open until `finish`.")
    ] = False,
    trainer: TrainerAddress = HERE,
    api_key: TrainerKey = None,
) -> None:
    """Judge a version, and if it may pass, serve it. It goes on if this command is ended."""
    from services.cli import promote as work
    from services.cli.versions import Trainer

    gate = work.gate(max_drop, dim or [], slice_ or [], min_queries)
    wanted = work.wanted(version, encoder_alias, collection or [], gate, hold, watch)
    call(lambda: work.start(Trainer(trainer, api_key), wanted), "--trainer", trainer)


@promotions.command("list")
def list_promotions(trainer: TrainerAddress = HERE, api_key: TrainerKey = None) -> None:
    """Show promotions, newest first."""
    from services.cli import promote as work
    from services.cli.versions import Trainer

    call(lambda: work.list_promotions(Trainer(trainer, api_key)), "--trainer", trainer)


@promotions.command("cut-over")
def cut_over(promotion: Id, trainer: TrainerAddress = HERE, api_key: TrainerKey = None) -> None:
    """Switch a promotion that waits for it."""
    from services.cli import promote as work
    from services.cli.versions import Trainer

    call(lambda: work.cut_over(Trainer(trainer, api_key), promotion), "--trainer", trainer)


@promotions.command("roll-back")
def roll_back(promotion: Id, trainer: TrainerAddress = HERE, api_key: TrainerKey = None) -> None:
    """Give up a promotion, or switch back to what was served before."""
    from services.cli import promote as work
    from services.cli.versions import Trainer

    call(lambda: work.roll_back(Trainer(trainer, api_key), promotion), "--trainer", trainer)


@promotions.command()
def finish(promotion: Id, trainer: TrainerAddress = HERE, api_key: TrainerKey = None) -> None:
    """End a promotion that was watched; there is no way back then."""
    from services.cli import promote as work
    from services.cli.versions import Trainer

    call(lambda: work.finish(Trainer(trainer, api_key), promotion), "--trainer", trainer)
