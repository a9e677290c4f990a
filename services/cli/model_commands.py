"""The commands on a running encoder's models: list, load, alias, unload.

What they need is imported only when one of them is asked for.
"""

from typing import Annotated

import typer

from services.cli.peer import HERE, EncoderAddress, EncoderKey, call

models = typer.Typer(no_args_is_help=True, help="The models that a running encoder serves.")


@models.command("list")
def list_models(encoder: EncoderAddress = HERE, api_key: EncoderKey = None) -> None:
    """Show the models, their names, sizes and memory."""
    from services.cli import models as work

    call(lambda: work.list_models(work.Encoder(encoder, api_key)), "--encoder", encoder)


@models.command()
def load(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A model folder, or a hub id (org/name).")
    ],
    model_id: Annotated[
        str, typer.Option("--id", help="Name to serve it under; unset: its own.")
    ] = "",
    encoder: EncoderAddress = HERE,
    api_key: EncoderKey = None,
) -> None:
    """Load a model beside those that are served; the encoder must be able to read the folder."""
    from services.cli import models as work

    call(lambda: work.load(work.Encoder(encoder, api_key), source, model_id), "--encoder", encoder)


@models.command()
def alias(
    name: Annotated[str, typer.Argument(help="A name, such as default.")],
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a loaded model.")],
    encoder: EncoderAddress = HERE,
    api_key: EncoderKey = None,
) -> None:
    """Point a name at a loaded model; the next request by that name uses it."""
    from services.cli import models as work

    call(lambda: work.alias(work.Encoder(encoder, api_key), name, model_id), "--encoder", encoder)


@models.command()
def unload(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a loaded model.")],
    encoder: EncoderAddress = HERE,
    api_key: EncoderKey = None,
) -> None:
    """Stop serving a model and free its memory; no name may point at it."""
    from services.cli import models as work

    call(lambda: work.unload(work.Encoder(encoder, api_key), model_id), "--encoder", encoder)
