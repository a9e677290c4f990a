"""The process around one Edge collection: frames in on standard input, frames out on output.

    python -m services.router.storage.edge_worker METADATA_JSON SHARD_FOLDER [MODE]

MODE is `create KIB`, which makes an empty shard and ends, or `build`, which serves at a low
priority: nobody waits for what it does. The rotation of nested sizes lies beside the shard. It
ends when its input does, so that no worker outlives its router, however that died. Requests
are done one by one, in order; Edge could not do two at once anyway.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from services.router.storage import edge_shard
from services.router.storage.edge_rotation import read_rotation
from services.router.storage.frames import LENGTH, Frame, decode, encode
from services.router.storage.metadata import from_metadata

# A worker that lost its router may still hold the log while it ends its last request.
_LOCK_WAIT_S = 10.0
_LOCK_POLL_S = 0.05
_LOCKED = "WouldBlock"
_BUILD_NICENESS = 10


def main(arguments: list[str]) -> None:
    """Create a shard, or open one and serve it until the input ends."""
    metadata, path, *mode = arguments
    collection = from_metadata(json.loads(metadata))
    if mode[:1] == ["create"]:
        edge_shard.create(path, collection.sizes, collection.text_index, int(mode[1]))
        return
    if mode == ["build"]:
        os.nice(_BUILD_NICENESS)
    # The engine may print; frames get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    rotation = read_rotation(Path(path).parent, collection.nesting)
    sizes, text_index = collection.sizes, collection.text_index
    shard = _open(lambda: edge_shard.Shard(path, sizes, rotation, text_index))
    serve(shard, sys.stdin.buffer, answers)


def _open(load: Callable[[], edge_shard.Shard]) -> edge_shard.Shard:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return load()
        except Exception as error:
            if _LOCKED not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_POLL_S)


def serve(shard: edge_shard.Shard, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more; the first frame out says that the shard is open."""
    operations: dict[str, Callable[..., Any]] = {
        "upsert": shard.upsert,
        "delete": shard.delete,
        "set_payload": shard.set_payload,
        "search": shard.search,
        "search_text": shard.search_text,
        "terms": shard.terms,
        "scroll": shard.scroll,
        "vectors": shard.vectors,
        "page": shard.page,
        "points": shard.points,
        "count": shard.count,
        "progress": shard.progress,
        "optimize": shard.optimize,
        "flush": shard.flush,
    }
    _send(answers, {"result": "open"})
    try:
        while request := _receive(requests):
            operation = operations[request.pop("op")]
            try:
                answer: Frame = {"result": operation(**request)}
            except Exception as error:  # whatever it is, the router decides what it means
                answer = {"error": [type(error).__name__, str(error)]}
            _send(answers, answer)
    except BrokenPipeError:
        pass  # the router is gone; so is the reason to answer
    finally:
        shard.close()


def _receive(requests: BinaryIO) -> Frame | None:
    """Read the next request; None when the router has closed the pipe, or died within a frame."""
    length = requests.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    body = requests.read(LENGTH.unpack(length)[0])
    return decode(body) if len(body) == LENGTH.unpack(length)[0] else None


def _send(answers: BinaryIO, frame: Frame) -> None:
    answers.write(encode(frame))
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
