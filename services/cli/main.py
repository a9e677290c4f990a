"""The `matryoshka` command: serve one service or all, show the whole, index, measure.

Entry points read the environment, build what lives long, and hand it on. Each service is
imported only when it is asked for: a machine that serves the router needs no torch.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NoReturn, TypeVar, cast

import typer
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from services.cli.collection_commands import commands
from services.cli.model_commands import models
from services.cli.operator_commands import operator
from services.cli.peer import GRPC_PORT_AHEAD, TLS, VARIABLES, describe
from services.cli.version_commands import promotions, versions
from services.shared import logs
from services.shared.errors import Unavailable
from services.shared.keys_file import KeysError
from services.shared.listen import Address, CannotListen
from services.shared.server import Service, run
from services.shared.settings import ServerSettings, SettingsError, ignored
from services.shared.tls import CertificatesError, TlsFiles
from services.shared.variables import of_service

S = TypeVar("S", bound=ServerSettings)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(commands)
app.add_typer(operator)
app.add_typer(models, name="models")
app.add_typer(versions, name="versions")
app.add_typer(promotions, name="promotions")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(version("matryoshka-suite"))
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version_: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="Commands that call a service do so over TLS: its CA, in PEM.",
            envvar="MATRYOSHKA_CLI_TLS_CA",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="The certificate that they show, in PEM.", envvar="MATRYOSHKA_CLI_TLS_CERT"
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Its private key, in PEM.", envvar="MATRYOSHKA_CLI_TLS_KEY"),
    ] = None,
) -> None:
    """Serve, search and train embeddings that can be cut to any size."""
    calls = context.invoked_subcommand not in ("serve", "up")
    for stranger in of_service(os.environ, "MATRYOSHKA_CLI_", VARIABLES):
        if stranger.is_misspelt and calls:  # another service than was meant
            _refuse(str(stranger))
        print(stranger, file=sys.stderr)
    if (tls_cert is None) != (tls_key is None):
        _refuse("--tls-cert and --tls-key go together: give both, or neither")
    if tls_cert is not None and tls_ca is None:
        _refuse("--tls-cert needs --tls-ca beside it")
    TLS.set(None if tls_ca is None else TlsFiles(tls_cert, tls_key, tls_ca))


class ServiceName(StrEnum):
    """The services that `serve` knows."""

    encoder = "encoder"
    router = "router"
    trainer = "trainer"


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
    _say_starting(service)
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

        def build(address: Address) -> list[Service]:
            return [RouterService(router, registry, address.own_grpc)]

        _run(build, router, registry, service, calls_itself=True)
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
    _say_starting("matryoshka")
    _share_cores()
    from services.encoder.service import EncoderService
    from services.encoder.settings import EncoderSettings
    from services.router.service import RouterService
    from services.router.settings import RouterSettings
    from services.trainer.service import TrainerService
    from services.trainer.settings import TrainerSettings

    if port is not None and grpc_port is None:
        grpc_port = port + GRPC_PORT_AHEAD if port else 0
    mistakes: list[str] = []
    settings = _read_or_note(
        UpSettings,
        {"http_port": port, "grpc_port": grpc_port, "host": host, "data_dir": data},
        mistakes,
    )
    if (settings.keys_file or settings.peer_keys_file) and settings.api_key is None:
        # The router calls the encoder as an operator; nobody else needs to know this key.
        settings = settings.model_copy(update={"api_key": SecretStr(secrets.token_urlsafe(32))})
    mistakes += _check_ignored(settings)
    # What bounds the process bounds each service in it: a body, a message, a wait at the end.
    shared = {field: getattr(settings, field) for field in ServerSettings.model_fields}

    def read(kind: type[S], name: str, **more: object) -> S:
        own = shared | {"data_dir": settings.data_dir / name} | more
        return _read_or_note(kind, own, mistakes)

    # Where they find each other is known once the process listens.
    here, key = "127.0.0.1:0", settings.api_key
    addresses = {"encoder_address": here, "trainer_address": here}
    own_keys = {"encoder_api_key": key, "trainer_api_key": key}
    trainers = {"encoder_address": here, "router_address": here}
    trainers_keys = {"encoder_api_key": key, "router_api_key": key}
    encoder = read(EncoderSettings, "encoder")
    router = read(RouterSettings, "router", **addresses, **own_keys)
    # One set of files: the router serves them, the trainer reads and adds some.
    shared_files = {"files_database_url": router.database, "files_url": router.files_place}
    trainer = read(TrainerSettings, "trainer", **shared_files, **trainers, **trainers_keys)
    if mistakes:
        _refuse(str(SettingsError(mistakes)))
    registry = CollectorRegistry()

    shown = settings.describe()

    def build(address: Address) -> list[Service]:
        plain = {"tls_peer_ca": None}
        found = router.model_copy(update=dict.fromkeys(addresses, address.own_grpc) | plain)
        training = trainer.model_copy(update=dict.fromkeys(trainers, address.own_grpc) | plain)
        for name, own in (("encoder", encoder), ("router", found), ("trainer", training)):
            changed = own.describe_changed().items()
            # What all of them share is told once, as the process's.
            mine = {field: value for field, value in changed if shown.get(field) != value}
            logs.show_settings(name, own.describe(), mine)
        return [
            EncoderService(encoder, registry),
            RouterService(found, registry, address.own_grpc),
            TrainerService(training, registry, serves_files=False),
        ]

    own = (encoder, router, trainer)
    _run(build, settings, registry, "matryoshka", calls_itself=True, within=own)


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
        _refuse(str(error))


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
        _refuse(f"--dims must be sizes such as 64,128, got {dims!r}")
    try:
        measure(model, texts, sizes, output)
    except (ServiceError, OSError) as error:
        _refuse(describe(error))


def _check_ignored(settings: UpSettings) -> list[str]:
    """Tell which settings of single services mean nothing to `up`; return those that lay open."""
    files = settings.secrets_dir.iterdir() if settings.secrets_dir else ()
    given = {*os.environ, *(path.name.upper() for path in files)}
    ignored = [
        name
        for service in ServiceName
        for field in ServerSettings.model_fields
        if (name := f"MATRYOSHKA_{service.upper()}_{field.upper()}") in given
    ]
    for name in ignored:
        print(f"{name} means nothing to `matryoshka up`; MATRYOSHKA_UP_... does", file=sys.stderr)
    mistakes = []
    keys = [name for name in ignored if name.endswith(("_API_KEY", "_KEYS_FILE", "_SECRETS_DIR"))]
    if keys and settings.api_key is None and settings.keys_file is None:
        mistakes.append(
            f"{', '.join(keys)} would protect nothing under `matryoshka up`: set "
            "MATRYOSHKA_UP_API_KEY or MATRYOSHKA_UP_KEYS_FILE, or unset it"
        )
    tls = [name for name in ignored if "_TLS_" in name]
    if tls and settings.tls_cert is None:
        mistakes.append(
            f"{', '.join(tls)} would protect nothing under `matryoshka up`: set "
            "MATRYOSHKA_UP_TLS_CERT and what goes with it, or unset it"
        )
    return mistakes


def _say_starting(name: str) -> None:
    """Tell that something happens: its libraries take seconds to load, a model may take more."""
    if sys.stderr.isatty():  # elsewhere it is a log, of lines of one form
        print(f"{name} is starting", file=sys.stderr, flush=True)


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
        _refuse(str(error))


def _read_or_note(kind: type[S], overrides: Mapping[str, object], mistakes: list[str]) -> S:
    """Read settings; where some are wrong, note each of them and return the defaults."""
    try:
        return kind.read(**overrides)
    except SettingsError as error:
        mistakes += error.mistakes
        return cast(S, kind.model_construct())


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(2) from None


def _run(
    build: Callable[[Address], list[Service]],
    settings: ServerSettings,
    registry: CollectorRegistry,
    name: str,
    calls_itself: bool = False,
    within: Sequence[ServerSettings] = (),
) -> None:
    try:  # before a model is measured, which takes a while
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"--data must name a folder, or a new one: {describe(error)}")
    logs.configure(settings.log_format)
    logs.show_settings(name, settings.describe(), settings.describe_changed())
    for told in ignored([settings, *within]):
        logging.getLogger(name).warning(told)

    def on_ready(address: Address) -> None:
        print(f"{name} is ready at {address.http} (gRPC at {address.grpc})", flush=True)

    try:
        with contextlib.ExitStack() as stack:
            own_socket = None
            if calls_itself and settings.tls_cert is not None:
                folder = stack.enter_context(TemporaryDirectory(prefix="matryoshka-"))
                own_socket = Path(folder) / "grpc"
            asyncio.run(run(build, settings, registry, name, on_ready, own_socket))
    except (KeysError, CertificatesError, Unavailable) as error:
        _refuse(str(error))
    except CannotListen as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
