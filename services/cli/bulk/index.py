"""The command that indexes a corpus: find, check, create, send, and say what was done.

Reads top to bottom. What differs between the engines is who reads and sends the parts.
"""

import asyncio
import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from services.cli.bulk.bar import Bar, Totals, say
from services.cli.bulk.collection import contact, make
from services.cli.bulk.engine import Engine, Job
from services.cli.bulk.journal import Journal
from services.cli.bulk.local import LocalEngine
from services.cli.bulk.sources import Part, Problem, Source, find_sources, fingerprint
from services.cli.collection_list import describe as describe_size
from services.router.storage.store import check_name
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for."""

    job: Job
    paths: Sequence[Path]
    state: Path
    create: pb.CreateCollectionRequest | None = None
    """Make the collection if it is not there."""
    skip_bad: bool = False
    with_ray: bool = False
    ray_address: str | None = None
    """A Ray cluster; None: Ray is started on this machine for the run."""


class BadData(Exception):
    """Some rows are no documents; the message lists the first of them. Nothing was written."""


def index(options: Options) -> None:
    """Index; see `matryoshka index --help`.

    Raises:
        BadData: rows are no documents, and are not to be skipped.
        ServiceError: an option is wrong, or the router refused or was away for too long.
        OSError: a file cannot be read or written.
    """
    console, job = Console(), options.job
    _check_names(options)
    sources, left_out = find_sources(options.paths)
    if left_out:
        say(console, f"{left_out:,} files of other kinds are left out")
    num_points = asyncio.run(contact(job.router, job.collection, options.create))
    prints = {source.name: fingerprint(source, job.fields) for source in sources}
    with _progress(options) as journal:
        if num_points < journal.num_documents:
            # Emptied, or made anew: documents are known by their ids, so none is doubled.
            say(
                console,
                f"the collection has {num_points:,} points, and {options.state} tells of "
                f"{journal.num_documents:,}: all begins anew",
            )
            journal.forget()
        with contextlib.closing(_build_engine(options)) as engine:
            total = _check(options, engine, sources, prints, journal, console)
            if options.create and (made := asyncio.run(make(job.router, options.create))):
                sizes = ", ".join(map(describe_size, made.sizes))
                say(console, f"{made.name} is made, with the model {made.model} at {sizes}")
            parts = _plan(options, engine, sources, prints, journal, console)
            totals = Totals()
            if parts:
                with Bar(console, "encode and write", total) as bar:
                    bar.begin(journal.num_documents)
                    engine.send(parts, journal, totals, bar)
    _summarize(options, totals, console)


def _check_names(options: Options) -> None:
    check_name(options.job.collection, "the collection's name")
    if not options.state.parent.is_dir():
        raise InvalidRequest(f"--state: there is no folder {options.state.parent}")


@contextlib.contextmanager
def _progress(options: Options) -> Iterator[Journal]:
    """Open the progress file; a new one goes again if it never comes to sending."""
    is_new = not options.state.exists()
    journal = Journal.open(options.state, options.job.collection, options.job.router.key_digest)
    try:
        yield journal
    except BaseException:
        if is_new and not journal.has_begun:
            options.state.unlink(missing_ok=True)
        raise


def _build_engine(options: Options) -> Engine:
    if not options.with_ray:
        return LocalEngine(options.job)
    # Not at the top: ray is installed with the extra of its name only.
    from services.cli.bulk.ray_engine import RayEngine

    return RayEngine(options.job, options.ray_address)


def _check(
    options: Options,
    engine: Engine,
    sources: Sequence[Source],
    prints: dict[str, str],
    journal: Journal,
    console: Console,
) -> int | None:
    """Read everything before anything is written, unless bad rows are skipped as they come.

    Returns:
        How many documents there are; None: nobody has counted.
    """
    if options.skip_bad:
        return None
    digest = hashlib.sha256(f"{sorted(prints.items())}".encode()).hexdigest()[:32]
    if (known := journal.checked(digest)) is not None:
        return known
    with Bar(console, "check", None) as bar:
        found = engine.check(engine.cut(sources), bar)
    if found.bad:
        raise BadData(describe(found.problems, found.bad) + "\nnothing was written")
    wanted = {attribute.field for attribute in options.job.fields.attributes}
    if found.documents and (never := sorted(wanted - found.attributes)):
        names = ", ".join(map(repr, never))
        raise BadData(f"--attribute: no document has a field named {names}; nothing was written")
    journal.note_checked(digest, found.documents)
    return found.documents


def describe(problems: Sequence[Problem], num: int) -> str:
    """List problems, and count those that are not listed."""
    rows = "1 row is no document" if num == 1 else f"{num:,} rows are no documents"
    lines = [f"{rows}:", *(f"  {problem.where} {problem.reason}" for problem in problems)]
    if num > len(problems):
        lines.append(f"  and {num - len(problems):,} more")
    return "\n".join(lines)


def _plan(
    options: Options,
    engine: Engine,
    sources: Sequence[Source],
    prints: dict[str, str],
    journal: Journal,
    console: Console,
) -> list[Part]:
    """Return the parts that are still to be sent, from where they were left."""
    now = options.job.fields.describe()
    reread: Counter[str] = Counter()
    """Files by the options by which they were read before."""
    fresh = [source for source in sources if not journal.parts(source.name, prints[source.name])]
    for source, cut in itertools.groupby(engine.cut(fresh), key=lambda part: part.source):
        parts = list(cut)
        if journal.knows(source.name):
            before = journal.options(source.name)
            if before is None or before == now:
                say(console, f"{source.name} has changed: it is read from the beginning")
            else:
                reread[before] += 1
        marks = [part.begin for part in parts]
        journal.begin(source.name, prints[source.name], marks, parts[-1].end, now)
    for before, count in reread.items():
        files = "1 file was" if count == 1 else f"{count:,} files were"
        say(
            console,
            f"{files} read with {before or 'no options for fields'} before, and now with "
            f"{now or 'none'}: read from the beginning",
        )
    if journal.num_documents:
        say(console, f"{journal.num_documents:,} documents are acknowledged already")
    return [
        Part(source, number, part.mark, part.end)
        for source in sources
        for number, part in enumerate(journal.parts(source.name, prints[source.name]))
        if not part.is_done
    ]


def _summarize(options: Options, totals: Totals, console: Console) -> None:
    if totals.skipped:
        say(console, describe(totals.problems, totals.skipped))
    num_points = asyncio.run(contact(options.job.router, options.job.collection, None))
    say(
        console,
        f"{totals.documents:,} documents in {totals.seconds:.1f} s"
        f"{_rate(totals.documents, totals.seconds)}, and {totals.settle_s:.1f} s for the index; "
        f"{totals.truncated:,} truncated, {totals.skipped:,} skipped; "
        f"{options.job.collection} has {num_points:,}",
    )


def _rate(documents: int, seconds: float) -> str:
    return f", {documents / seconds:,.0f} a second" if seconds > 0 and documents else ""
