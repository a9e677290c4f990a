"""What reads a corpus and sends it: this process, or Ray's on many machines.

Both take the same steps on the same parts and note them in the same progress file, so that one
may go on where the other stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.cli.bulk.bar import Bar, Totals
from services.cli.bulk.check import Found
from services.cli.bulk.documents import Fields
from services.cli.bulk.journal import Journal
from services.cli.bulk.sender import Router
from services.cli.bulk.sources import Part, Source


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
    streams: int = 4
    """Engine ray: parts that are sent at once, each in a stream of its own."""
    part_bytes: int = 4 * 2**20
    """Engine ray: bytes of JSON lines in a part, which is what a run that goes on sends again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done with every part."""

    router: Router
    collection: str
    fields: Fields
    sending: Sending = field(default_factory=Sending)


class Engine(Protocol):
    """Reads and sends parts."""

    def cut(self, sources: Sequence[Source]) -> list[Part]:
        """Cut files into parts that can be read by themselves."""

    def check(self, parts: Sequence[Part], bar: Bar) -> Found:
        """Read all rows, and tell what is wrong with them; ids that come twice, too."""

    def send(self, parts: Sequence[Part], journal: Journal, totals: Totals, bar: Bar) -> None:
        """Send parts from where they begin, noting what is acknowledged."""

    def close(self) -> None:
        """Let go of whatever was started."""
