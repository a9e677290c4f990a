"""The commands on a running router's collections.

List, index, search, calibrate, recall, nest, alias, delete.

What each needs is imported only when it is asked for.
"""

import importlib.util
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.cli.peer import HERE, TLS, RouterAddress, RouterKey, call, tell

commands = typer.Typer()

# What the router's requests call that which an option, or an argument, gives.
_OF_SEARCH = {
    "recall_target": "--recall",
    "max_engine_ms and max_bytes_per_point": "--max-ms",
    "limit": "--limit",
    "plan": "--plan",
    "filter": "--filter",
    "text": "TEXT",
}
_OF_CALIBRATE = {
    "target": "--target",
    "limit": "--limit",
    "queries": "--queries",
    "texts": "--queries",
    "slices": "--queries: slices",
}
_OF_NEST = {"target": "--target", "sizes": "--sizes"}
_OF_INDEX = {"sizes": "--dims", "text_index: language": "--words"}


class EngineName(StrEnum):
    """What `index` reads and sends with."""

    local = "local"
    ray = "ray"


@commands.command()
def collections(
    is_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """List the collections: points, model, sizes, and the recall that is promised."""
    from services.cli.collection_list import Options, list_collections

    options = Options(router, api_key, is_json)
    call(lambda: list_collections(options), "--router", router)


@commands.command()
def search(
    collection: Annotated[str, typer.Argument(help="Name or alias of a collection.")],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Hits wanted; unset: 10.")] = None,
    words: Annotated[
        bool,
        typer.Option(
            "--words",
            help="Search by words, too, and make one ranking of both; needs a text index.",
        ),
    ] = False,
    target: Annotated[
        float | None,
        typer.Option("--recall", help="Recall to keep, such as 0.95; unset: the collection's own."),
    ] = None,
    max_ms: Annotated[
        float | None,
        typer.Option(help="Most time in the engine, in the median; needs a calibration."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="A plan of your own: exact, or stages such as 64:100,384 (100 candidates by 64 "
            "numbers, reranked by 384) or 64:50:ef=200,384."
        ),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="A condition on an attribute, such as lang=en or 'year>=2020'; all must hold.",
        ),
    ] = None,
    is_explained: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also measure each stage, and the recall of this search; takes longer.",
        ),
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """Search a collection; show the plan that answered, its recall and its time.

    Ends with 1 where no plan within --max-ms keeps the recall.
    """
    from services.cli.search import Options
    from services.cli.search import search as run_search

    options = Options(
        router, api_key, collection, text, limit, target, max_ms, plan, filter_ or [],
        is_explained, is_json, words,
    )  # fmt: skip
    if not call(lambda: run_search(options), "--router", router, _OF_SEARCH):
        raise typer.Exit(1)


@commands.command()
def calibrate(
    collection: Annotated[str, typer.Argument(help="Name or alias of a collection.")],
    target: Annotated[
        float | None, typer.Option(help="Recall that searches shall keep; unset: 0.95.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Hits of a search; unset: 10.")] = None,
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
    show: Annotated[
        bool, typer.Option("--show", help="Measure nothing; show what was measured last.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="A PNG to write.")] = None,
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """Measure which plans keep which recall on a collection; searches may then state a target."""
    from services.cli.calibrate import Options
    from services.cli.calibrate import calibrate as run_calibrate

    options = Options(router, api_key, collection, target, limit, memory, queries, plot, show)
    call(lambda: run_calibrate(options), "--router", router, _OF_CALIBRATE)


@commands.command()
def recall(
    collection: Annotated[str, typer.Argument(help="Name or alias of a collection.")],
    is_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """Show the recall of live searches by slice, the worst first: what it lost, and what to do."""
    from services.cli.recall import Options
    from services.cli.recall import recall as run_recall

    options = Options(router, api_key, collection, is_json)
    call(lambda: run_recall(options), "--router", router)


@commands.command()
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
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """Make short sizes of any collection rank as its full vectors do, without labels."""
    from services.cli.nest import Options
    from services.cli.nest import nest as run_nest

    options = Options(router, api_key, collection, sizes, target, undo)
    call(lambda: run_nest(options), "--router", router, _OF_NEST)


@commands.command()
def alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="A name, such as docs-live.")],
    collection: Annotated[str, typer.Argument(help="Name of a collection.")],
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """Point a name at a collection; each search by it sees the old or the new one, whole."""
    from services.cli import collection_names as work

    named = work.Router(router, api_key)
    call(lambda: work.alias(named, name, collection), "--router", router, {"alias": "ALIAS"})


@commands.command()
def delete(
    collection: Annotated[str, typer.Argument(help="Its own name; aliases are not followed.")],
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
) -> None:
    """Delete a collection with all its points, at once and for good; no alias may point at it."""
    from services.cli import collection_names as work

    call(lambda: work.delete(work.Router(router, api_key), collection), "--router", router)


@commands.command()
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
    words: Annotated[
        str,
        typer.Option(help="With --create: also make texts searchable by words of that language."),
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
    router: RouterAddress = HERE,
    api_key: RouterKey = None,
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
                router=Router(router, api_key, TLS.get()),
                collection=collection,
                fields=fields,
                sending=sending,
            ),
            paths=sources,
            state=state or Path(f"{collection}.index-state"),
            create=creation(collection, model, dims, words) if create else None,
            skip_bad=skip_bad,
            with_ray=engine is EngineName.ray,
            ray_address=ray_address,
        )
        run_index(options)
    except (BadData, ServiceError, OSError) as error:
        tell(error, _OF_INDEX)
        raise typer.Exit(2 if isinstance(error, BadData | OSError) else _code(error)) from None


def _code(error: Exception) -> int:
    """Tell a mistake of the caller from a service that is away."""
    from services.shared.errors import InvalidRequest

    return 2 if isinstance(error, InvalidRequest) else 1
