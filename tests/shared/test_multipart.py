"""A form is read the same however its bytes arrive, and what is none is refused."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.blobs import Blob
from services.shared.errors import InvalidRequest
from services.shared.multipart import Form, read_form

KIND = 'multipart/form-data; boundary="b"'


def read(body: bytes, cuts: list[int], kind: str = KIND) -> tuple[Form, bytes]:
    """Read a body that arrives in pieces; return the form and the file's bytes."""
    kept = b""

    async def pieces():
        edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
        for begin, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007 (clearer)
            yield body[begin:end]

    async def keep(data) -> Blob:
        nonlocal kept
        async for piece in data:
            kept += piece
        return Blob("file-1", len(kept))

    form = Form()
    asyncio.run(read_form(pieces(), kind, keep, form))
    return form, kept


def write(data: bytes, filename: str, fields: dict[str, str]) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    return b"".join([*parts[:1], head.encode(), data, b"\r\n", *parts[1:], b"--b--\r\n"])


@given(
    st.binary(max_size=200).filter(lambda data: b"\r\n--b" not in data),
    st.dictionaries(st.sampled_from("pqr"), st.text("abü ", max_size=9), max_size=3),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_where_a_body_is_cut_makes_no_difference(data, fields, cuts):
    """Boundaries, heads and bytes may be torn apart anywhere."""
    form, kept = read(write(data, "größe.txt", fields), cuts)
    assert kept == data
    assert form.fields == fields
    assert (form.file_field, form.filename) == ("file", "größe.txt")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_a_form_or_refused(body, cuts):
    """Nothing else is raised."""
    for content in (body, b"--b\r\n" + body, write(b"x", "a", {})[:-4] + body):
        with contextlib.suppress(InvalidRequest):
            read(content, cuts)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "multipart/form-data", "multipart/mixed; boundary=b"]
)
def test_another_kind_of_body_is_refused(kind):
    """With what is wanted."""
    with pytest.raises(InvalidRequest, match="multipart/form-data, with a boundary"):
        read(write(b"x", "a", {}), [], kind)
