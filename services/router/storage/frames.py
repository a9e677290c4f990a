"""Frames between the router and an Edge worker: a length, then one msgpack map.

Little-endian uint32 length, then the map. Vectors cross as bytes. Requests carry `op`; answers
come in the order of the requests and carry `result`, or `error`: [class name, message].
"""

import struct
from typing import Any

import msgpack

LENGTH = struct.Struct("<I")

Frame = dict[str, Any]


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame."""
    body: bytes = msgpack.packb(frame)
    return LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray) -> Frame:
    """Read a frame's map, after its length."""
    frame: Frame = msgpack.unpackb(body)  # bounds itself by the body's length
    return frame


def take(received: bytearray) -> Frame | None:
    """Take the first frame off what has come so far; None: it is not all there yet."""
    if len(received) < LENGTH.size:
        return None
    end = LENGTH.size + LENGTH.unpack_from(received)[0]
    if len(received) < end:
        return None
    frame = decode(received[LENGTH.size : end])
    del received[:end]
    return frame
