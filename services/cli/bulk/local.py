"""The engine without any: parts are read and sent by this process, one after another."""

import asyncio
import time
from collections.abc import Sequence

from services.cli.bulk.bar import Bar, Totals
from services.cli.bulk.batches import Batches
from services.cli.bulk.check import Found, check_parts, find_doubles
from services.cli.bulk.engine import Job
from services.cli.bulk.journal import Journal
from services.cli.bulk.readers import Mark
from services.cli.bulk.sender import Acknowledged, Sender
from services.cli.bulk.sources import Part, Source, cut_points


class LocalEngine:
    """See `engine.Engine`."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def cut(self, sources: Sequence[Source]) -> list[Part]:
        return [Part(source, 0, Mark(), cut_points(source, 0)[-1]) for source in sources]

    def check(self, parts: Sequence[Part], bar: Bar) -> Found:
        found = check_parts(parts, self._job.fields, bar.show)
        find_doubles(parts, self._job.fields, found)
        return found

    def send(self, parts: Sequence[Part], journal: Journal, totals: Totals, bar: Bar) -> None:
        asyncio.run(self._send(parts, journal, totals, bar))

    async def _send(
        self, parts: Sequence[Part], journal: Journal, totals: Totals, bar: Bar
    ) -> None:
        started_s = time.monotonic()

        async def on_acknowledged(acknowledged: Acknowledged) -> None:
            await asyncio.to_thread(journal.advance, acknowledged.batch.advances)
            totals.note(acknowledged.batch.advances, acknowledged.truncated)
            bar.update(totals)

        job, sending = self._job, self._job.sending
        batches = Batches(
            job.collection, parts, job.fields, sending.batch_documents, sending.batch_bytes,
            totals.keep,
        )  # fmt: skip
        sender = Sender(
            job.router, sending.window, sending.max_wait_s, on_acknowledged, bar.waiting
        )
        await sender.send(iter(batches))
        journal.advance(batches.rest)
        totals.note(batches.rest, 0)
        totals.settle_s = sender.settle_s
        totals.seconds = time.monotonic() - started_s - totals.settle_s

    def close(self) -> None:
        pass
