"""The command that indexes a corpus: find, check, create, send, and say what was done.

Reads top to bottom. What differs between the engines is who reads and sends the parts.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from services.cli.bulk.bar import Bar, Totals, say
from services.cli.bulk.batches import Batches
from services.cli.bulk.check import Found, check_parts, find_doubles
from services.cli.bulk.documents import Fields
from services.cli.bulk.journal import Journal
from services.cli.bulk.readers import Mark
from services.cli.bulk.sender import Acknowledged, Router, Sender
from services.cli.bulk.sources import (
    Part,
    Problem,
    Source,
    cut_points,
    find_sources,
    fingerprint,
)
from services.router.sizes import BITS
from services.shared.errors import InvalidRequest, peer_errors
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How documents are sent."""

    batch_documents: int = 256
    batch_bytes: int = 2**20
    """Of text and attributes; the encoder takes 2,000,000 characters in a call."""
    window: int = 16
    """Batches on their way at once in a stream."""
    max_wait_s: float = 600.0
    """Longest without an acknowledgement while the router is away or has too much to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for."""

    router: Router
    collection: str
    paths: Sequence[Path]
    fields: Fields
    state: Path
    create: pb.CreateCollectionRequest | None = None
    """Make the collection if it is not there."""
    skip_bad: bool = False
    sending: Sending = field(default_factory=Sending)


class BadData(Exception):
    """Some rows are no documents; the message lists the first of them. Nothing was written."""


def creation(collection: str, model: str, dims: str) -> pb.CreateCollectionRequest:
    """Return what makes the collection; InvalidRequest: see `parse_sizes`."""
    return pb.CreateCollectionRequest(name=collection, model=model, sizes=parse_sizes(dims))


def parse_sizes(text: str) -> list[pb.Size]:
    """Read sizes such as `64,128:int8,384`.

    Raises:
        InvalidRequest: says what is accepted.
    """
    sizes = []
    for item in filter(None, text.split(",")):
        dim, _, codes = item.strip().partition(":")
        if not dim.isdecimal() or (codes or "none") not in BITS:
            raise InvalidRequest(
                f"--dims must be sizes such as 64,128:int8, got {item.strip()!r}; codes are "
                f"{', '.join(BITS)}"
            )
        name = "UNSPECIFIED" if codes in ("", "none") else codes.upper()
        sizes.append(
            pb.Size(dim=int(dim), quantization=pb.Quantization.Value(f"QUANTIZATION_{name}"))
        )
    return sizes


def index(options: Options) -> None:
    """Index; see `matryoshka index --help`.

    Raises:
        BadData: rows are no documents, and are not to be skipped.
        ServiceError: an option is wrong, or the router refused or was away for too long.
        OSError: a file cannot be read or written.
    """
    asyncio.run(_index(options, Console()))


async def _index(options: Options, console: Console) -> None:
    sources, left_out = find_sources(options.paths)
    if left_out:
        say(console, f"{left_out:,} files of other kinds are left out")
    num_points = await _contact(options)
    prints = {source.name: fingerprint(source, options.fields) for source in sources}
    journal = Journal.open(options.state, options.collection)
    found = await asyncio.to_thread(_check, options, sources, prints, journal, console)
    if num_points == 0 and journal.num_documents:
        say(console, f"the collection is empty: {options.state} is begun anew")
        journal.forget()
    await _create(options)
    parts = _plan(sources, prints, journal, console)
    totals = Totals()
    if parts:
        with Bar(console, "encode and write", found.documents if found else None) as bar:
            bar.begin(journal.num_documents)
            await _send(options, parts, journal, totals, bar)
    await _summarize(options, totals, console)


async def _contact(options: Options) -> int | None:
    """Return how many points the collection has; None: it is not there, and is to be created."""
    async with options.router.connect() as channel:
        router: Any = pb_grpc.RouterServiceStub(channel)
        request = pb.GetCollectionRequest(name=options.collection)
        try:
            answer = await router.GetCollection(request, metadata=options.router.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                if options.create:
                    return 0
                raise InvalidRequest(
                    f"there is no collection {options.collection!r}; --create makes it"
                ) from None
            with peer_errors(f"router at {options.router.address}"):
                raise
    wanted = sorted(size.dim for size in options.create.sizes) if options.create else []
    sizes = [size.dim for size in answer.collection.sizes]
    if not set(wanted) <= set(sizes):
        raise InvalidRequest(
            f"the collection {options.collection!r} is there already, with the sizes "
            f"{', '.join(map(str, sizes))}; leave --create out, or name another collection"
        )
    return int(answer.collection.num_points)


async def _create(options: Options) -> None:
    if options.create is None:
        return
    async with options.router.connect() as channel:
        router: Any = pb_grpc.RouterServiceStub(channel)
        try:
            await router.CreateCollection(options.create, metadata=options.router.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                with peer_errors(f"router at {options.router.address}"):
                    raise


def _check(
    options: Options,
    sources: Sequence[Source],
    prints: dict[str, str],
    journal: Journal,
    console: Console,
) -> Found | None:
    """Read everything before anything is written; None: bad rows are skipped as they come."""
    digest = hashlib.sha256(f"{sorted(prints.items())}".encode()).hexdigest()[:32]
    known = journal.checked(digest)
    if options.skip_bad:
        return None
    if known is not None:
        return Found(documents=known)
    parts = [Part(s, 0, Mark(), cut_points(s, 0)[-1]) for s in sources]
    with Bar(console, "check", None) as bar:
        found = check_parts(parts, options.fields, bar.show)
        find_doubles(parts, options.fields, found)
    if found.bad:
        raise BadData(describe(found.problems, found.bad) + "\nnothing was written")
    journal.note_checked(digest, found.documents)
    return found


def describe(problems: Sequence[Problem], num: int) -> str:
    """List problems, and count those that are not listed."""
    rows = "1 row is no document" if num == 1 else f"{num:,} rows are no documents"
    lines = [f"{rows}:", *(f"  {problem.where} {problem.reason}" for problem in problems)]
    if num > len(problems):
        lines.append(f"  and {num - len(problems):,} more")
    return "\n".join(lines)


def _plan(
    sources: Sequence[Source],
    prints: dict[str, str],
    journal: Journal,
    console: Console,
) -> list[Part]:
    """Return the parts that are still to be sent, from where they were left."""
    left: list[Part] = []
    for source in sources:
        if not journal.parts(source.name, prints[source.name]):
            if journal.knows(source.name):
                say(console, f"{source.name} has changed: it is read from the beginning")
            journal.begin(source.name, prints[source.name], [Mark()], cut_points(source, 0)[-1])
        left += [
            Part(source, number, part.mark, part.end)
            for number, part in enumerate(journal.parts(source.name, prints[source.name]))
            if not part.is_done
        ]
    if journal.num_documents:
        say(console, f"{journal.num_documents:,} documents are acknowledged already")
    return left


async def _send(
    options: Options, parts: list[Part], journal: Journal, totals: Totals, bar: Bar
) -> None:
    """Read and send all parts here, in one stream."""
    started_s = time.monotonic()

    async def on_acknowledged(acknowledged: Acknowledged) -> None:
        await asyncio.to_thread(journal.advance, acknowledged.batch.advances)
        totals.note(acknowledged.batch.advances, acknowledged.truncated)
        bar.update(totals)

    sending = options.sending
    batches = Batches(
        options.collection, parts, options.fields, sending.batch_documents, sending.batch_bytes,
        totals.keep,
    )  # fmt: skip
    sender = Sender(
        options.router, sending.window, sending.max_wait_s, on_acknowledged, bar.waiting
    )
    await sender.send(iter(batches))
    journal.advance(batches.rest)
    totals.note(batches.rest, 0)
    totals.settle_s = sender.settle_s
    totals.seconds = time.monotonic() - started_s - totals.settle_s


async def _summarize(options: Options, totals: Totals, console: Console) -> None:
    if totals.skipped:
        say(console, describe(totals.problems, totals.skipped))
    num_points = await _contact(options)
    say(
        console,
        f"{totals.documents:,} documents in {totals.seconds:.1f} s"
        f"{_rate(totals.documents, totals.seconds)}, and {totals.settle_s:.1f} s for the index; "
        f"{totals.truncated:,} truncated, {totals.skipped:,} skipped; "
        f"{options.collection} has {num_points:,}",
    )


def _rate(documents: int, seconds: float) -> str:
    return f", {documents / seconds:,.0f} a second" if seconds > 0 and documents else ""
