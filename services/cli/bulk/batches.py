"""Documents gathered into batches for the router, across the ends of files.

Each batch says how far it brings which part, so that its acknowledgement can be noted at once.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from services.cli.bulk.documents import Document, Fields
from services.cli.bulk.readers import Mark
from services.cli.bulk.sources import Part, Problem, read_part
from services.router.attributes import Value
from services.shared.pb import router_pb2 as pb


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a batch brings a part."""

    part: Part
    mark: Mark
    documents: int = 0
    skipped: int = 0
    """Rows that are no documents."""
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """One message to the router."""

    request: pb.UpsertRequest
    first: str
    """File and line of the first document."""
    advances: tuple[Advance, ...]
    is_last: bool = False
    """Whether it is the stream's last."""


@dataclass(slots=True)
class _Open:
    """A batch that is being filled."""

    points: list[pb.Point] = field(default_factory=list)
    num_bytes: int = 0
    first: str = ""
    advances: dict[tuple[str, int], Advance] = field(default_factory=dict)

    def advance(self, part: Part, mark: Mark, *, documents: int = 0, skipped: int = 0) -> None:
        key = (part.source.name, part.number)
        now = self.advances.get(key, Advance(part, mark))
        self.advances[key] = replace(
            now, mark=mark, documents=now.documents + documents, skipped=now.skipped + skipped
        )

    def end(self, part: Part, mark: Mark) -> None:
        self.advance(part, mark)
        key = (part.source.name, part.number)
        self.advances[key] = replace(self.advances[key], is_done=True)


class Batches:
    """Batches of some parts' documents, in order; iterate once.

    Args:
        collection: name or alias.
        parts: each is read from its `begin`.
        fields: what is taken from a row.
        max_documents: documents of a batch.
        max_bytes: bytes of a batch; one document may be longer, and is then alone in it.
        on_problem: called with each row that is no document, which is left out.
    """

    def __init__(
        self,
        collection: str,
        parts: Iterable[Part],
        fields: Fields,
        max_documents: int,
        max_bytes: int,
        on_problem: Callable[[Problem], None] = lambda _: None,
    ) -> None:
        self._collection = collection
        self._parts = parts
        self._fields = fields
        self._max_documents = max_documents
        self._max_bytes = max_bytes
        self._on_problem = on_problem
        self._open = _Open()
        self.rest: tuple[Advance, ...] = ()
        """After the end, if there was no batch: parts that hold no document, and are done."""

    def __iter__(self) -> Iterator[Batch]:
        held: Batch | None = None
        for part in self._parts:
            mark = part.begin
            for read in read_part(part, self._fields):
                mark = read.after
                if isinstance(read, Problem):
                    self._on_problem(read)
                    self._open.advance(part, mark, skipped=1)
                    continue
                point = to_point(read.document)
                size = point.ByteSize()
                if self._is_full(size):
                    if held:
                        yield held
                    held = self._close()
                self._add(point, size, read.where)
                self._open.advance(part, mark, documents=1)
            self._open.end(part, mark)
        if self._open.points:
            if held:
                yield held
            yield replace(self._close(), is_last=True)
        elif held:
            advances = (*held.advances, *self._open.advances.values())
            yield replace(held, advances=advances, is_last=True)
        else:
            self.rest = tuple(self._open.advances.values())

    def _is_full(self, size: int) -> bool:
        points = self._open.points
        return bool(points) and (
            len(points) >= self._max_documents or self._open.num_bytes + size > self._max_bytes
        )

    def _add(self, point: pb.Point, size: int, where: str) -> None:
        self._open.first = self._open.first or where
        self._open.points.append(point)
        self._open.num_bytes += size

    def _close(self) -> Batch:
        closed, self._open = self._open, _Open()
        request = pb.UpsertRequest(collection=self._collection, points=closed.points)
        return Batch(request, closed.first, tuple(closed.advances.values()))


def to_point(document: Document) -> pb.Point:
    """Return a document as the router takes it."""
    attributes = {key: to_value(value) for key, value in document.attributes.items()}
    return pb.Point(id=document.id, text=document.text, attributes=attributes)


def to_value(value: Value) -> pb.AttributeValue:
    """Return an attribute's value as the router takes it."""
    if isinstance(value, bool):  # before int: a bool is one in Python
        return pb.AttributeValue(bool_value=value)
    if isinstance(value, int):
        return pb.AttributeValue(int_value=value)
    if isinstance(value, float):
        return pb.AttributeValue(double_value=value)
    return pb.AttributeValue(string_value=value)
