"""The command that lists a router's collections, and what each is sure of."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.peer import Metadata, connect, metadata
from services.cli.table import show
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.server import channel_options

_MAX_MESSAGE_BYTES = 64 * 2**20
Stub: TypeAlias = "pb_grpc.RouterServiceAsyncStub"  # in the stubs only
_AT_ONCE = 8
"""Calibrations that are asked for at the same time."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    address: str
    """host:port of the router's gRPC."""
    api_key: str | None
    is_json: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A collection, and what was measured of it."""

    collection: pb.Collection
    calibration: pb.Calibration | None
    may_know: bool = True
    """Whether the key lets its holder see calibrations."""

    @property
    def promised(self) -> float:
        """Recall that the plan of the collection's own target is sure of."""
        assert self.calibration
        recall = self.calibration.plans[self.calibration.chosen].recalls[""]
        is_memory = self.calibration.objective == pb.OBJECTIVE_MEMORY
        return recall.promised_by_memory if is_memory else recall.promised_by_latency


def list_collections(options: Options) -> None:
    """Show the collections, as a table or as JSON.

    Raises:
        grpc.aio.AioRpcError: the router refused, or cannot be reached.
    """
    rows = asyncio.run(_ask(options))
    if options.is_json:
        print(json.dumps({"collections": [to_json(row) for row in rows]}))
    else:
        show_rows(rows)


async def _ask(options: Options) -> list[Row]:
    limits = channel_options(_MAX_MESSAGE_BYTES)
    async with connect(options.address, options=limits) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        key = metadata(options.api_key)
        listed = await router.ListCollections(pb.ListCollectionsRequest(), metadata=key)
        return await look_up(router, listed.collections, key)


async def look_up(router: Stub, collections: Sequence[pb.Collection], key: Metadata) -> list[Row]:
    """Return the collections with what was measured of each, in their order."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one_of_several(collection: pb.Collection) -> Row | None:
        async with room:
            try:
                return await _look_up(router, collection, key)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return None
                raise

    rows = await asyncio.gather(*map(one_of_several, collections))
    # A key may be for few calls at once: what it was refused is asked for again, one by one.
    return [
        row or await _look_up(router, collection, key)
        for row, collection in zip(rows, collections, strict=True)
    ]


async def _look_up(router: Stub, collection: pb.Collection, key: Metadata) -> Row:
    request = pb.GetCalibrationRequest(collection=collection.name)
    try:
        answer = await router.GetCalibration(request, metadata=key)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return Row(collection, None)
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:  # a tenant's, or one to write with
            return Row(collection, None, may_know=False)
        raise
    return Row(collection, answer.calibration)


def to_json(row: Row) -> dict[str, object]:
    """Return a collection for machines; a calibration that is not there, or not shown, is null."""
    one, measured = row.collection, row.calibration
    return {
        "name": one.name,
        "aliases": list(one.aliases),
        "model": one.model,
        "space_id": one.space_id,
        "num_points": one.num_points,
        "sizes": [describe(size) for size in one.sizes],
        "is_calibrated": measured is not None if row.may_know else None,
        "calibration": measured
        and {
            "recall_target": measured.recall_target,
            "recall": row.promised,
            "limit": measured.limit,
            "num_points": measured.num_points,
            "created_at": measured.created_at,
        },
        "change": _change(one),
    }


def describe(size: pb.Size) -> str:
    """Write a size as `--dims` reads it, and whether it is nested: "64 nested:turbo4"."""
    name = f"{size.dim} nested" if size.nested else str(size.dim)
    if not size.quantization:
        return name
    codes = pb.Quantization.Name(size.quantization).removeprefix("QUANTIZATION_")
    return f"{name}:{codes.lower()}"


def show_rows(rows: Sequence[Row]) -> None:
    """Print a table; below it what to do where there is none, or a change."""
    if not rows:
        _say("there is no collection yet: `matryoshka index NAME FILES --create` makes one")
        return
    table = Table()
    table.add_column("collection", no_wrap=True)
    has_aliases = any(row.collection.aliases for row in rows)
    if has_aliases:
        table.add_column("aliases", overflow="fold")
    table.add_column("points", justify="right")
    table.add_column("model", overflow="fold")
    table.add_column("sizes", overflow="fold")
    table.add_column("promised recall")
    for row in rows:
        one = row.collection
        aliases = [escape(", ".join(one.aliases))] if has_aliases else []
        sizes = ", ".join(map(describe, one.sizes))
        table.add_row(
            one.name, *aliases, f"{one.num_points:,}", escape(one.model), sizes, _recall(row)
        )
    show(table)
    for row in rows:
        if change := _change(row.collection):
            _say(f"{row.collection.name}: {change}")


def _recall(row: Row) -> str:
    if row.calibration is None:
        return "not calibrated" if row.may_know else "not shown to this key"
    measured = row.calibration
    return f"{row.promised:.3f} (target {measured.recall_target:g})"


def _change(collection: pb.Collection) -> str | None:
    if not collection.HasField("change"):
        return None
    change = collection.change
    if change.error:
        return f"{change.kind} ended: {change.error}"
    far = f" {change.done:,} of {change.total:,}" if change.total else ""
    return f"{change.kind} is under way: {change.step}{far}"


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)
