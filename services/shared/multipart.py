"""A form with one file in it, as `multipart/form-data`: read as it arrives, never held whole.

In: the pieces of a body. Out: the form's short fields, and the file, which went piece by piece to
whoever keeps it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.shared.blobs import Blob
from services.shared.errors import InvalidRequest

if TYPE_CHECKING:  # it is not there otherwise
    from python_multipart.multipart import MultipartCallbacks

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 8192

Keep = Callable[[AsyncIterator[bytes]], Awaitable[Blob]]


@dataclass(frozen=True, slots=True)
class _Head:
    """A part begins."""

    name: str
    filename: str | None
    """None: it is a field."""


class _End:
    """A part ends."""


_Event = _Head | _End | bytes


@dataclass(slots=True)
class Form:
    """What was sent."""

    fields: dict[str, str] = field(default_factory=dict)
    file_field: str = ""
    filename: str = ""
    blob: Blob | None = None
    """None: no file was in the form."""


async def read_form(
    pieces: AsyncIterator[bytes], content_type: str, keep: Keep, form: Form
) -> None:
    """Read a form into `form`, handing its file to `keep`.

    What was kept stands in `form` also when the rest of the form is wrong, so that the caller can
    let go of it.

    Raises:
        InvalidRequest: the body is not such a form, or has more than one file.
        TooLarge: from `keep`.
    """
    events = _events(pieces, content_type)
    async for event in events:
        assert isinstance(event, _Head)
        if event.filename is None:
            if len(form.fields) == _MAX_FIELDS:
                raise InvalidRequest(f"the form may have at most {_MAX_FIELDS} fields")
            form.fields[event.name] = await _read_field(_data(events), event.name)
        elif form.blob is not None:
            raise InvalidRequest("send one file in a form", event.name[:64])
        else:
            form.file_field, form.filename = event.name, event.filename
            form.blob = await keep(_data(events))


async def _data(events: AsyncIterator[_Event]) -> AsyncIterator[bytes]:
    """Yield the bytes of the part that has begun."""
    async for event in events:
        if isinstance(event, _End):
            return
        assert isinstance(event, bytes)
        yield event


async def _read_field(data: AsyncIterator[bytes], name: str) -> str:
    read = b""
    async for piece in data:
        read += piece
        if len(read) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"a field may have at most {_MAX_FIELD_BYTES} bytes", name[:64])
    return read.decode(errors="replace")


async def _events(pieces: AsyncIterator[bytes], content_type: str) -> AsyncIterator[_Event]:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("send the file as multipart/form-data, with a boundary")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for piece in pieces:
            parser.write(piece)
            for event in parts.take():
                yield event
    except FormParserError as error:
        raise InvalidRequest("the body must be well-formed multipart/form-data") from error
    if not parts.is_whole:
        raise InvalidRequest("the body ended before its form did; send it again")


class _Parts:
    """Turns the parser's callbacks into events."""

    def __init__(self) -> None:
        self.is_whole = False
        self._events: list[_Event] = []
        self._header = b""
        self._value = b""
        self._disposition = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._read_header,
            "on_header_value": self._read_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._read_data,
            "on_part_end": self._end,
            "on_end": self._end_form,
        }

    def take(self) -> list[_Event]:
        taken, self._events = self._events, []
        return taken

    def _begin(self) -> None:
        self._disposition = b""

    def _read_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormParserError("a part without a name")
        filename = options.get(b"filename")
        self._events.append(
            _Head(
                options[b"name"].decode(errors="replace"),
                None if filename is None else filename.decode(errors="replace"),
            )
        )

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(bytes(data[start:end]))

    def _end(self) -> None:
        self._events.append(_End())

    def _end_form(self) -> None:
        self.is_whole = True
