"""The command that searches: hits, the plan that found them, what it promises and what it took."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.filter import doubt, read_filter
from services.cli.peer import Metadata, connect, metadata
from services.cli.plan import EXACT, describe, read_plan, size
from services.cli.table import one_line, show
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.server import channel_options

_MAX_MESSAGE_BYTES = 64 * 2**20  # a thousand hits with long texts
_DEFAULT_LIMIT = 10
_SHOWN_CHARS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    address: str
    """host:port of the router's gRPC."""
    api_key: str | None
    collection: str
    text: str
    limit: int | None
    target: float | None
    max_ms: float | None
    plan: str | None
    filters: Sequence[str]
    is_explained: bool
    is_json: bool
    by_words: bool = False


def search(options: Options) -> bool:
    """Search and show what was found, as tables or as JSON; say whether the target was kept.

    Raises:
        InvalidRequest: plan or filter cannot be read, or options do not fit together.
        grpc.aio.AioRpcError: the router refused, or cannot be reached.
    """
    if options.plan and (options.target is not None or options.max_ms is not None):
        raise InvalidRequest(
            "--plan names the stages; with --recall and --max-ms the router chooses them: give "
            "one or the other"
        )
    request = pb.SearchRequest(
        collection=options.collection,
        text=options.text,
        limit=options.limit or 0,
        filter=read_filter(options.filters),
        plan=read_plan(options.plan) if options.plan and options.plan != EXACT else None,
        recall_target=options.target,
        max_engine_ms=options.max_ms,
        explain=options.is_explained,
        measure_recall=options.is_explained,
        hybrid=pb.Hybrid() if options.by_words else None,
    )
    answer = asyncio.run(_ask(options, request))
    if options.is_json:
        print(json.dumps(to_json(answer, options)))
    else:
        show_hits(answer, options)
        _say(summary(answer, options))
        if options.is_explained:
            show_stages(answer)
        if advice := next_step(answer, options):
            _say(advice)
    return answer.promise.met or not answer.HasField("promise")


async def _ask(options: Options, request: pb.SearchRequest) -> pb.SearchResponse:
    limits = channel_options(_MAX_MESSAGE_BYTES)
    async with connect(options.address, options=limits) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        key = metadata(options.api_key)
        if options.plan == EXACT:
            named = pb.GetCollectionRequest(name=options.collection)
            found = await router.GetCollection(named, metadata=key)
            full = found.collection.sizes[-1].dim
            request.plan.stages.add(dim=full, exact=True)
        answer: pb.SearchResponse = await router.Search(request, metadata=key)
        if options.filters and not answer.hits:
            print(await _look_without_filter(router, request, key), file=sys.stderr)
    return answer


async def _look_without_filter(
    router: "pb_grpc.RouterServiceAsyncStub", request: pb.SearchRequest, key: Metadata
) -> str:
    """Say what may be wrong with a filter that lets nothing through."""
    asked = pb.Filter()
    asked.CopyFrom(request.filter)
    request.ClearField("filter")
    request.measure_recall = False
    request.explain = True  # so that it counts as no live search
    try:
        answer = await router.Search(request, metadata=key)
    except grpc.aio.AioRpcError:  # such as a key that may make no more calls now
        return (
            "--filter lets no point through: are names and kinds of values those that points have?"
        )
    return doubt(answer.hits, asked)


def to_json(answer: pb.SearchResponse, options: Options) -> dict[str, object]:
    """Return an answer for machines; what was not asked for, or not promised, is null."""
    is_explained = options.is_explained
    return {
        "collection": answer.collection,
        "hits": [
            {
                "rank": rank,
                "id": hit.id,
                "score": hit.score,
                "text": hit.text,
                "attributes": _attributes(hit),
                "tenant": hit.tenant,
                "shortlist_rank": hit.shortlist_rank if is_explained else None,
                "cosine": hit.cosine if hit.HasField("cosine") else None,
                "bm25": hit.bm25 if hit.HasField("bm25") else None,
            }
            for rank, hit in enumerate(answer.hits, 1)
        ],
        "plan": [_fields(stage) for stage in answer.plan.stages],
        "promise": _fields(answer.promise) if answer.HasField("promise") else None,
        "words": _fields(answer.text) if answer.HasField("text") else None,
        "encode_seconds": answer.encode_seconds,
        "search_seconds": answer.search_seconds,
        "stages": [_fields(stage) for stage in answer.stages] if is_explained else None,
        "recall": answer.recall if answer.HasField("recall") else None,
        "exact_seconds": answer.exact_seconds if answer.HasField("recall") else None,
        "next_step": next_step(answer, options),
    }


def show_hits(answer: pb.SearchResponse, options: Options) -> None:
    """Print the hits, best first; of what none of them has there is no column."""
    if not answer.hits:
        _say("nothing was found" + (" that the filter lets through" if options.filters else ""))
        return
    has_shortlist = len(answer.stages) > 1
    has_attributes = any(hit.attributes for hit in answer.hits)
    has_tenants = any(hit.tenant for hit in answer.hits)
    table = Table(title=_cell(f"{answer.collection}: {options.text}"))
    sides = ("cosine", "bm25") if options.by_words else ()
    for column in ("rank", "score", *sides):
        table.add_column(column, justify="right")
    if has_shortlist:
        table.add_column("in shortlist", justify="right")
    table.add_column("id", no_wrap=True)
    if has_tenants:
        table.add_column("tenant", overflow="fold")
    table.add_column("text", overflow="fold")
    if has_attributes:
        table.add_column("attributes", overflow="fold")
    for rank, hit in enumerate(answer.hits, 1):
        cells = [Text(str(rank)), Text(f"{hit.score:.4f}")]
        if options.by_words:
            cells.append(Text(f"{hit.cosine:.4f}" if hit.HasField("cosine") else ""))
            cells.append(Text(f"{hit.bm25:.4f}" if hit.HasField("bm25") else ""))
        if has_shortlist:
            cells.append(Text(str(hit.shortlist_rank or "")))
        cells.append(Text(one_line(hit.id)))
        if has_tenants:
            cells.append(_cell(hit.tenant))
        cells.append(_cell(hit.text))
        if has_attributes:
            cells.append(_cell(_pairs(hit)))
        table.add_row(*cells)
    show(table)


def summary(answer: pb.SearchResponse, options: Options) -> str:
    """Say which plan answered, what recall it promises, and how long it took."""
    promise, is_late = answer.promise, _is_late(answer)
    if options.plan == EXACT or promise.exact:
        recall = "loses nothing"
    elif answer.HasField("promise"):
        only = "" if promise.met or is_late else "only "
        # Nobody has measured what a plan keeps of the few points that a filter lets through.
        without, with_it = "", ""
        if options.filters:
            without, with_it = " without a filter", "; with this one it was not measured"
        recall = (
            f"sure of a recall of {only}{promise.recall:.3f}{without} "
            f"(target {promise.recall_target:g}){with_it}"
        )
    else:
        recall = "no recall is promised"
    if is_late:
        recall += f", but no plan is within {options.max_ms:g} ms"
    plan = describe(answer.plan.stages, is_measured=answer.HasField("promise"))
    told = (
        f"{plan}: {recall}; {1e3 * answer.search_seconds:.2f} ms in the engine, "
        f"{1e3 * answer.encode_seconds:.1f} ms to encode"
    )
    if not answer.HasField("text"):
        return told
    words = answer.text
    return (
        f"{told}; by words: {words.candidates:,} hits for {words.terms} words that count, "
        f"{1e3 * words.seconds:.2f} ms"
    )


def show_stages(answer: pb.SearchResponse) -> None:
    """Print what each stage handed on and took, how far the rerank moved hits, and the recall."""
    table = Table(title="stages")
    for column in ("dimensions", "candidates", "ms"):
        table.add_column(column, justify="right")
    for stage in answer.stages:
        table.add_row(size(stage), f"{stage.candidates:,}", f"{1e3 * stage.seconds:.2f}")
    Console().print(table)
    # What words alone found was in no shortlist.
    if len(answer.stages) > 1 and answer.hits and not answer.HasField("text"):
        _say(moves([hit.shortlist_rank for hit in answer.hits]))
    _say(
        f"recall of this search: {answer.recall:.2f}, against exact search, which took "
        f"{1e3 * answer.exact_seconds:.2f} ms"
    )


def moves(shortlist_ranks: Sequence[int]) -> str:
    """Say how far the rerank moved the hits, given their places in the shortlist, best first."""
    moved = [(before, now) for now, before in enumerate(shortlist_ranks, 1) if before != now]
    told = f"the rerank moved {len(moved)} of {len(shortlist_ranks)} hits"
    if not moved:
        return told
    before, now = max(moved, key=lambda move: abs(move[0] - move[1]))
    return f"{told}, at most from place {before} to {now}"


def next_step(answer: pb.SearchResponse, options: Options) -> str:
    """Say what the router has to add, and what to do; "": nothing."""
    promise, name = answer.promise, options.collection
    calibrate = f"`matryoshka calibrate {name}"
    if options.limit and options.limit > _DEFAULT_LIMIT:
        calibrate += f" --limit {options.limit}"
    if not answer.HasField("promise"):
        is_wanted = answer.hits and not options.plan
        return f"{calibrate}` lets searches state a recall" if is_wanted else ""
    steps = [promise.note] if promise.note else []
    if not promise.met:
        less = "" if _is_late(answer) else ", or ask for less --recall"
        steps.append(
            f"`matryoshka calibrate {name} --show` tells what each plan takes and is sure of: "
            f"allow more --max-ms{less}"
        )
    elif options.filters and not promise.exact:
        steps.append(f"`matryoshka recall {name}` shows what live searches keep")
    elif promise.exact and promise.note:  # exact because nothing else was measured
        steps.append(f"{calibrate}` finds what is faster and keeps it")
    return "\n".join(steps)


def _is_late(answer: pb.SearchResponse) -> bool:
    """Say whether the recall is kept, and not --max-ms, which no plan is within."""
    promise = answer.promise
    is_missed = answer.HasField("promise") and not promise.met
    return is_missed and promise.recall >= promise.recall_target


def _attributes(hit: pb.Hit) -> dict[str, object]:
    return {
        key: getattr(value, value.WhichOneof("value") or "string_value")
        for key, value in sorted(hit.attributes.items())
    }


def _pairs(hit: pb.Hit) -> str:
    """Write attributes as `--filter` reads them."""
    return ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in _attributes(hit).items()
    )


def _fields(message: Message) -> dict[str, Any]:
    """Return all fields of a message, by their names in the protos."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _cell(text: str) -> Text:
    """Return the beginning of a text as it stands: what looks like markup or an emoji is none."""
    return Text(one_line(text, _SHOWN_CHARS))


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)
