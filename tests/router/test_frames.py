"""Frames as they come out of a pipe: in pieces of any length."""

import pytest

from services.router.storage.frames import decode, encode, take

FRAMES = [{"result": "open"}, {"result": [0.5, [["key", 0.25, None]]]}, {"result": b"\0" * 300}]


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 64, 10_000])
def test_frames_are_taken_whole_and_in_order(step: int) -> None:
    """Wherever the bytes are cut, the same frames come out, and nothing is left."""
    sent = b"".join(map(encode, FRAMES))
    received, taken = bytearray(), []
    for start in range(0, len(sent), step):
        received += sent[start : start + step]
        while (frame := take(received)) is not None:
            taken.append(frame)
    assert taken == FRAMES
    assert not received


def test_a_frame_reads_as_it_was_written() -> None:
    """What one side encodes the other decodes, after the length."""
    assert decode(encode(FRAMES[1])[4:]) == FRAMES[1]
