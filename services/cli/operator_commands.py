"""The commands of whoever runs a deployment: how large it must be, and what is wrong with it.

What each needs is imported only when it is asked for.
"""

import sys
from typing import Annotated

import typer

from services.cli.peer import ADDRESS_VARIABLE, HERE, KEY_VARIABLE

operator = typer.Typer()


@operator.command("plan-capacity")
def plan_capacity(
    vectors: Annotated[int, typer.Option(help="Vectors to search.")] = 1_000_000_000,
    dims: Annotated[int, typer.Option(help="Numbers of a full vector.")] = 384,
    searches_per_s: Annotated[float, typer.Option(help="Searches a second.")] = 10_000,
    recall_target: Annotated[float, typer.Option(help="Recall@10 to keep, up to 0.99.")] = 0.95,
    replicas: Annotated[
        int, typer.Option(help="Least copies of each shard; from 2 on one may be lost.")
    ] = 2,
    texts_per_s: Annotated[float, typer.Option(help="Documents to encode a second.")] = 100,
    payload_bytes: Annotated[
        int, typer.Option(help="Text and attributes of a document, on the disk.")
    ] = 1000,
    train_pairs: Annotated[int, typer.Option(help="Pairs to train with.")] = 1_000_000,
    train_hours: Annotated[
        float, typer.Option(help="Time in which all weights see them once.")
    ] = 24,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="CORES:MEMORY_GIB:DISK_GIB:PRICE, relative; several: the cheapest is taken. "
            "Unset: 16:128:2000:1."
        ),
    ] = None,
    gpu: Annotated[
        str, typer.Option(help="TOKENS_PER_S:PRICE of a GPU, with your model as you measured it.")
    ] = "",
    plan: Annotated[
        str, typer.Option(help="A plan of your own: the size searched first, such as 128:turbo4.")
    ] = "",
    measured: Annotated[
        str,
        typer.Option(
            help="With --plan, of one shard: P50_MS:P99_MS:POINTS:SCORED, where SCORED is its "
            "candidates."
        ),
    ] = "",
    busy: Annotated[float, typer.Option(help="Most of the time that cores may be at work.")] = 0.7,
    memory_share: Annotated[
        float, typer.Option(help="Of a machine's memory, for codes, links and vectors.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    is_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Show what your numbers take: memory by plan, nodes, encoders, cost; and simulate it."""
    from services.cli.capacity.need import Need, parse_gpu, parse_machine, parse_own_plan
    from services.cli.capacity.report import plan_capacity as run_plan
    from services.shared.errors import InvalidRequest

    try:
        need = Need(
            vectors=vectors,
            dims=dims,
            searches_per_s=searches_per_s,
            recall_target=recall_target,
            replicas=replicas,
            texts_per_s=texts_per_s,
            payload_bytes=payload_bytes,
            train_pairs=train_pairs,
            train_hours=train_hours,
            machines=tuple(map(parse_machine, machine or ["16:128:2000:1"])),
            gpu=parse_gpu(gpu) if gpu else None,
            own_plan=parse_own_plan(plan, measured) if plan or measured else None,
            busy=busy,
            memory_share=memory_share,
        )
        run_plan(need, seed, is_json)
    except InvalidRequest as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


_Grpc = Annotated[
    str, typer.Option(help="host:port of its gRPC, or none.", envvar=ADDRESS_VARIABLE)
]
_Http = Annotated[
    str | None,
    typer.Option(help="URL of its HTTP; unset: gRPC's host, and 1000 less than its port."),
]


@operator.command()
def doctor(
    encoder: _Grpc = HERE,
    router: _Grpc = HERE,
    trainer: _Grpc = HERE,
    encoder_http: _Http = None,
    router_http: _Http = None,
    trainer_http: _Http = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="An operator's key, for all of them.",
            envvar=[KEY_VARIABLE, "MATRYOSHKA_UP_API_KEY"],
        ),
    ] = None,
    encoder_api_key: Annotated[
        str | None, typer.Option(help="The encoder's own.", envvar="MATRYOSHKA_ENCODER_API_KEY")
    ] = None,
    router_api_key: Annotated[
        str | None, typer.Option(help="The router's own.", envvar="MATRYOSHKA_ROUTER_API_KEY")
    ] = None,
    trainer_api_key: Annotated[
        str | None, typer.Option(help="The trainer's own.", envvar="MATRYOSHKA_TRAINER_API_KEY")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 10.0,
    is_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Look at a running deployment: a line for each thing, and what to do; 1: a problem."""
    from services.cli.doctor.report import doctor as run_doctor
    from services.cli.doctor.targets import read_target
    from services.shared.errors import InvalidRequest

    try:
        targets = [
            read_target("encoder", encoder_http, encoder, encoder_api_key or api_key),
            read_target("router", router_http, router, router_api_key or api_key),
            read_target("trainer", trainer_http, trainer, trainer_api_key or api_key),
        ]
        is_well = run_doctor([target for target in targets if target], timeout, is_json)
    except InvalidRequest as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    if not is_well:
        raise typer.Exit(1)
