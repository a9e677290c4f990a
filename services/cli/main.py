"""The `matryoshka` command: serve one service or all, show the whole, index, measure.

Entry points read the environment, build what lives long, and hand it on. Each service is
imported only when it is asked for: a machine that serves the router needs no torch.
"""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from services.shared import logs
from services.shared.server import Address, CannotListen, Service, run
from services.shared.settings import ServerSettings, SettingsError

S = TypeVar("S", bound=ServerSettings)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve, search and train embeddings that can be cut to any size.",
)


class ServiceName(StrEnum):
    """The services that `serve` knows."""

    encoder = "encoder"
    router = "router"
    trainer = "trainer"


class EngineName(StrEnum):
    """What `index` reads and sends with."""

    local = "local"
    ray = "ray"


class UpSettings(ServerSettings):
    """The process that serves all three: its ports, bounds and times."""

    model_config = SettingsConfigDict(env_prefix="MATRYOSHKA_UP_")


Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data", help="Folder that survives a restart; unset: matryoshka-data."),
]
GrpcPort = Annotated[int | None, typer.Option(help="Port of gRPC; 0 takes a free one.")]


@app.command()
def serve(
    service: ServiceName,
    http_port: Annotated[
        int | None, typer.Option(help="Port of HTTP; 0 takes a free one; unset: the service's own.")
    ] = None,
    grpc_port: GrpcPort = None,
    host: Host = None,
    data: DataDir = None,
) -> None:
    """Serve one of the three services; settings come from MATRYOSHKA_<SERVICE>_<FIELD>."""
    overrides = {"http_port": http_port, "grpc_port": grpc_port, "host": host, "data_dir": data}
    registry = CollectorRegistry()
    if service is ServiceName.encoder:
        _share_cores()
        from services.encoder.service import EncoderService
        from services.encoder.settings import EncoderSettings

        encoder = _read(EncoderSettings, overrides)
        _run(lambda _: [EncoderService(encoder, registry)], encoder, registry, service)
    elif service is ServiceName.router:
        from services.router.service import RouterService
        from services.router.settings import RouterSettings

        router = _read(RouterSettings, overrides)
        _run(lambda _: [RouterService(router, registry)], router, registry, service)
    else:
        from services.trainer.service import TrainerService
        from services.trainer.settings import TrainerSettings

        trainer = _read(TrainerSettings, overrides)
        _run(lambda _: [TrainerService(trainer, registry)], trainer, registry, service)


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(help="Port of HTTP; unset: 8000; 0: a free one.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port of gRPC; unset: the HTTP port + 1000.")
    ] = None,
    host: Host = None,
    data: DataDir = None,
) -> None:
    """Serve all three on one HTTP port and one gRPC port, with embedded storage."""
    _share_cores()
    from services.encoder.service import EncoderService
    from services.encoder.settings import EncoderSettings
    from services.router.service import RouterService
    from services.router.settings import RouterSettings
    from services.trainer.service import TrainerService
    from services.trainer.settings import TrainerSettings

    if port is not None and grpc_port is None:
        grpc_port = port + 1000 if port else 0
    settings = _read(
        UpSettings, {"http_port": port, "grpc_port": grpc_port, "host": host, "data_dir": data}
    )
    registry = CollectorRegistry()

    # What bounds the process bounds each service in it: a body, a message, a wait at the end.
    shared = {field: getattr(settings, field) for field in ServerSettings.model_fields}

    def build(address: Address) -> list[Service]:
        def read(kind: type[S], name: str, **more: object) -> S:
            own = _read(kind, shared | {"data_dir": settings.data_dir / name} | more)
            logs.show_settings(name, own.describe())
            return own

        encoder = read(EncoderSettings, "encoder")
        router = read(
            RouterSettings,
            "router",
            encoder_address=address.grpc,
            encoder_api_key=settings.api_key,
            trainer_address=address.grpc,
            trainer_api_key=settings.api_key,
        )
        trainer = read(TrainerSettings, "trainer")
        return [
            EncoderService(encoder, registry),
            RouterService(router, registry),
            TrainerService(trainer, registry),
        ]

    _run(build, settings, registry, "matryoshka")


@app.command()
def demo(
    corpus: Annotated[
        Path | None,
        typer.Option(help="Folder or file of text, Markdown or JSON lines; unset: docstrings."),
    ] = None,
    documents: Annotated[int, typer.Option(help="Documents at most.", min=100)] = 10_000,
    output: Annotated[Path, typer.Option(help="Where picture, figures and logs go.")] = Path(
        "demo-output"
    ),
    exit_: Annotated[bool, typer.Option("--exit", help="End after the last step.")] = False,
) -> None:
    """Show the whole: index real text, search in stages, train, and swap without a failed query."""
    from services.cli.corpus import CorpusError
    from services.cli.demo import run_demo
    from services.cli.processes import ServiceDied

    try:
        run_demo(corpus, documents, output, exit_)
    except (CorpusError, ServiceDied) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


@app.command()
def calibrate(
    collection: Annotated[str, typer.Argument(help="Name or alias of a collection.")],
    target: Annotated[float, typer.Option(help="Recall that searches shall keep.")] = 0.95,
    limit: Annotated[int, typer.Option(help="Hits of a search.")] = 10,
    memory: Annotated[
        bool, typer.Option("--memory", help="Choose by memory; unset: by latency.")
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            help='Queries like those to come: one a line, or JSON lines of {"text", "slice"}; '
            "unset: recent searches, or documents."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG to write.")] = None,
    router: Annotated[str, typer.Option(help="host:port of the router's gRPC.")] = "127.0.0.1:9000",
    api_key: Annotated[
        str | None, typer.Option(help="The router's key.", envvar="MATRYOSHKA_ROUTER_API_KEY")
    ] = None,
) -> None:
    """Measure which plans keep which recall on a collection; searches may then state a target."""
    from services.cli.calibrate import Options
    from services.cli.calibrate import calibrate as run_calibrate

    options = Options(router, api_key, collection, target, limit, memory, queries, plot)
    _call_router(lambda: run_calibrate(options), router)


@app.command()
def nest(
    collection: Annotated[str, typer.Argument(help="Name or alias of a collection.")],
    sizes: Annotated[
        str,
        typer.Option(
            help="Nested sizes to add, with their codes: 64,96:int8; unset: a sixth and a quarter "
            "of the full one, in codes of four bits."
        ),
    ] = "",
    target: Annotated[
        float | None,
        typer.Option(help="Recall that searches shall keep; unset: as before, or 0.95."),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the nested sizes away.")] = False,
    router: Annotated[str, typer.Option(help="host:port of the router's gRPC.")] = "127.0.0.1:9000",
    api_key: Annotated[
        str | None, typer.Option(help="The router's key.", envvar="MATRYOSHKA_ROUTER_API_KEY")
    ] = None,
) -> None:
    """Make short sizes of any collection rank as its full vectors do, without labels."""
    from services.cli.nest import Options
    from services.cli.nest import nest as run_nest

    options = Options(router, api_key, collection, sizes, target, undo)
    _call_router(lambda: run_nest(options), router)


@app.command()
def index(
    collection: Annotated[str, typer.Argument(help="Name or alias of a collection.")],
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Files, or folders of them: JSON lines, CSV, Parquet; of text and Markdown each "
            "paragraph is a document."
        ),
    ],
    id_field: Annotated[
        str, typer.Option(help="Field of the id; unset: id, or the row's place if it has none.")
    ] = "",
    text_field: Annotated[
        list[str] | None, typer.Option(help="Field of the text; several are joined; unset: text.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="Field to keep as an attribute, such as lang or year:int."),
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Make the collection first.")] = False,
    model: Annotated[str, typer.Option(help="With --create: the encoder's model.")] = "default",
    dims: Annotated[
        str, typer.Option(help="With --create: sizes such as 64:int8,128; unset: the model's.")
    ] = "",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that are no documents.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="Progress file; unset: COLLECTION.index-state, here.")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Who reads and sends: this process, or Ray's tasks.")
    ] = EngineName.local,
    streams: Annotated[int, typer.Option(min=1, help="Engine ray: parts sent at once.")] = 4,
    part_mb: Annotated[
        int, typer.Option(min=1, help="Engine ray: MiB of JSON lines in a part.")
    ] = 4,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Engine ray: a cluster; unset: this machine.", envvar="RAY_ADDRESS"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Documents in a batch.")] = 256,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a router that is away or busy.")
    ] = 600.0,
    router: Annotated[str, typer.Option(help="host:port of the router's gRPC.")] = "127.0.0.1:9000",
    api_key: Annotated[
        str | None, typer.Option(help="The router's key.", envvar="MATRYOSHKA_ROUTER_API_KEY")
    ] = None,
) -> None:
    """Index files into a collection; run again, it goes on from the last acknowledged batch."""
    # Ray reports what it is used for unless it is told not to before it is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from services.cli.bulk.collection import creation
    from services.cli.bulk.documents import Fields, parse_attribute
    from services.cli.bulk.engine import Job, Sending
    from services.cli.bulk.index import BadData, Options
    from services.cli.bulk.index import index as run_index
    from services.cli.bulk.sender import Router
    from services.shared.errors import ServiceError

    if engine is EngineName.ray and importlib.util.find_spec("ray") is None:
        print("--engine ray needs: pip install 'matryoshka-suite[ray]'", file=sys.stderr)
        raise typer.Exit(2)
    sending = Sending(
        batch_documents=batch, max_wait_s=max_wait, streams=streams, part_bytes=part_mb * 2**20
    )
    try:
        attributes = tuple(map(parse_attribute, attribute or []))
        fields = Fields(id_field, tuple(text_field or ["text"]), attributes)
        options = Options(
            job=Job(
                router=Router(router, api_key),
                collection=collection,
                fields=fields,
                sending=sending,
            ),
            paths=sources,
            state=state or Path(f"{collection}.index-state"),
            create=creation(collection, model, dims) if create else None,
            skip_bad=skip_bad,
            with_ray=engine is EngineName.ray,
            ray_address=ray_address,
        )
        run_index(options)
    except (BadData, ServiceError, OSError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, BadData | OSError) else _code(error)) from None


def _code(error: Exception) -> int:
    """Tell a mistake of the caller from a service that is away."""
    from services.shared.errors import InvalidRequest

    return 2 if isinstance(error, InvalidRequest) else 1


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, or all-MiniLM-L6-v2.")],
    texts: Annotated[
        Path,
        typer.Argument(
            help='Texts like those to come: one a line, or JSON lines of {"text"} or of '
            '{"anchor", "positive"}.'
        ),
    ],
    dims: Annotated[
        str, typer.Option(help="Sizes such as 64,128; unset: the model's own, or powers of two.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(help="A new folder for a copy with the card; unset: into the model's own."),
    ] = None,
) -> None:
    """Measure what a model keeps at each size and how its bytes are stored; write its card."""
    _share_cores()
    from services.cli.card import measure
    from services.shared.errors import ServiceError

    try:
        sizes = [int(dim) for dim in dims.split(",") if dim]
    except ValueError:
        print(f"--dims must be sizes such as 64,128, got {dims!r}", file=sys.stderr)
        raise typer.Exit(2) from None
    try:
        measure(model, texts, sizes, output)
    except ServiceError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _call_router(command: Callable[[], None], address: str) -> None:
    """Run a command that calls the router; what goes wrong is one sentence and an exit code."""
    import grpc

    from services.shared.errors import ServiceError

    try:
        command()
    except (ServiceError, OSError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    except grpc.aio.AioRpcError as error:
        print(error.details(), file=sys.stderr)
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            print(f"--router is {address}: host:port of the router's gRPC", file=sys.stderr)
        raise typer.Exit(1) from None


def _share_cores() -> None:
    """Let threads that wait for each other sleep: on cores that others use too, spinning steals.

    Measured on two cores beside a busy process: 1.4 times the texts per second. Must be set before
    torch is imported; a value that the operator has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _read(kind: type[S], overrides: Mapping[str, object]) -> S:
    try:
        return kind.read(**overrides)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _run(
    build: Callable[[Address], list[Service]],
    settings: ServerSettings,
    registry: CollectorRegistry,
    name: str,
) -> None:
    logs.configure(settings.log_format)
    logs.show_settings(name, settings.describe())

    def on_ready(address: Address) -> None:
        print(f"{name} is ready at {address.http} (gRPC at {address.grpc})", flush=True)

    try:
        asyncio.run(run(build, settings, registry, on_ready))
    except CannotListen as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
