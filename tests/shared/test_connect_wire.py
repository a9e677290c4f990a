"""Whatever comes in place of a message is a message or a sentence, and nothing else."""

import gzip
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.connect_wire import (
    envelope,
    open_envelope,
    read_message,
    unzip,
    write_message,
)
from services.shared.errors import InvalidRequest, TooLarge
from services.shared.pb import router_pb2 as pb


@given(st.binary(max_size=100), st.booleans())
def test_an_envelope_gives_back_what_was_put_in(message, may_zip):
    """And says that it is not compressed."""
    assert open_envelope(envelope(0, message), may_zip) == (message, False)


prefixes = st.builds(struct.Struct(">BI").pack, st.integers(0, 255), st.integers(0, 20))


@given(st.binary(max_size=20) | st.tuples(prefixes, st.binary(max_size=20)).map(b"".join),
       st.booleans())  # fmt: skip
def test_any_bytes_are_one_whole_envelope_or_refused(body, may_zip):
    """Flags, length and message account for every byte."""
    try:
        message, is_zipped = open_envelope(body, may_zip)
    except InvalidRequest:
        whole = len(body) >= 5 and len(body) - 5 == int.from_bytes(body[1:5], "big")
        assert not whole or body[0] not in ((0, 1) if may_zip else (0,))
    else:
        assert envelope(int(is_zipped), message) == body
        assert may_zip or not is_zipped


names = st.sampled_from(["collection", "text", "limit", "filter", "plan", "vector", "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def as_json(message):
    # Fields that JSON has no name for are not told, and not a number is equal to itself.
    return json.loads(write_message(message, True))


@given(st.binary(max_size=30) | values.map(lambda value: json.dumps(value).encode()),
       st.booleans())  # fmt: skip
def test_any_bytes_are_a_message_or_refused(content, is_json):
    """In JSON and in protobuf; what was read can be written, and read again."""
    try:
        message = read_message(pb.SearchRequest, content, is_json)
    except InvalidRequest as error:
        sentence = error.message
    else:
        for form in (True, False):
            again = read_message(pb.SearchRequest, write_message(message, form), form)
            assert as_json(again) == as_json(message)
        return
    assert sentence.startswith("the message must be SearchRequest")
    assert "\n" not in sentence


def test_gzip_is_read_up_to_a_bound():
    """A bomb is refused before it is unpacked; half a file, and one with more behind it, too."""
    content = bytes(1000)
    zipped = gzip.compress(content)
    assert unzip(zipped, 1000) == content
    with pytest.raises(TooLarge, match="at most 999 bytes"):
        unzip(zipped, 999)
    for wrong in (zipped[:-1], zipped + b"more", b"plain"):
        with pytest.raises(InvalidRequest, match="gzip"):
            unzip(wrong, 1000)
