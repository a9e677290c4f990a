"""What the commands on models do: one call of the encoder each, and what is said of it."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.peer import RunningService
from services.cli.table import show
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc


class Encoder(RunningService):
    """Where the encoder is."""

    stub = pb_grpc.EncoderServiceStub


def list_models(encoder: Encoder) -> None:
    """Show the loaded models in a table."""
    answer: pb.ListModelsResponse = encoder.ask("ListModels", pb.ListModelsRequest())
    table = Table()
    table.add_column("model", no_wrap=True)
    table.add_column("names", overflow="fold")
    for column in ("dimensions", "declared", "tokens", "memory"):
        table.add_column(column, justify="right")
    table.add_column("engine")
    for model in answer.models:
        table.add_row(
            escape(model.id), escape(", ".join(model.aliases)), str(model.dim),
            ", ".join(map(str, model.matryoshka_dims)) or "none", str(model.max_tokens),
            _size(model.memory_bytes), model.engine,
        )  # fmt: skip
    show(table)


def load(encoder: Encoder, source: str, model_id: str) -> None:
    """Load a model, and say what it became; a folder that is here is named in full."""
    folder = Path(source).expanduser()
    if folder.is_dir():  # the encoder may run in another folder
        source = str(folder.resolve())
    request = pb.LoadModelRequest(source=source, id=model_id)
    with Console(stderr=True).status("loading and measuring"):
        answer: pb.LoadModelResponse = encoder.ask("LoadModel", request)
    model = answer.model
    print(
        f"{model.id} is served: {model.dim} dimensions, {model.engine}, "
        f"{_size(model.memory_bytes)}, space {model.space_id}"
    )


def alias(encoder: Encoder, name: str, model_id: str) -> None:
    """Point a name at a model."""
    encoder.ask("SetAlias", pb.SetAliasRequest(alias=name, model=model_id))
    print(f"{name} points at {model_id}")


def unload(encoder: Encoder, model_id: str) -> None:
    """Stop serving a model."""
    encoder.ask("UnloadModel", pb.UnloadModelRequest(id=model_id))
    print(f"{model_id} is not served any more")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
