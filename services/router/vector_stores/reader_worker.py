"""The process that reads documents: frames in on standard input, frames out on output.

    python -m services.router.vector_stores.reader_worker MEMORY_BYTES

A request names a file and says how to cut it. Answers are frames of `chunks`, then one with `done`
or with `error`: [code, message]. What a parser prints goes nowhere: it may hold a user's text.
The process ends when its input does, and whoever asks may kill it at any time.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from services.router.storage.frames import LENGTH, Frame, decode, encode
from services.router.vector_stores.chunks import Chunking, cut, token_ends
from services.router.vector_stores.documents import InvalidFile, UnsupportedFile, read_parts

# Chunks of one answer; a chunk may have 4096 tokens.
_CHUNKS_PER_FRAME = 64


def main(arguments: list[str]) -> None:
    """Answer requests until there are no more."""
    max_bytes = int(arguments[0])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    while (request := _receive(sys.stdin.buffer)) is not None:
        # Should the router die meanwhile, nobody else ends what goes on for ever.
        signal.setitimer(signal.ITIMER_VIRTUAL, request["max_s"])
        for answer in read(request):
            answers.write(encode(answer))
            answers.flush()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def read(request: Frame) -> Iterator[Frame]:
    """Yield the answers to one request."""
    try:
        parts = read_parts(Path(request["path"]), request["filename"], request["max_pages"])
        if request["chunking"] is None:
            for part in parts:
                yield {"chunks": [part]}
        else:
            yield from _chunks("\f".join(parts), Chunking(*request["chunking"]), request)
        yield {"done": True}
    except UnsupportedFile as error:
        yield {"error": ["unsupported_file", str(error)]}
    except InvalidFile as error:
        yield {"error": ["invalid_file", str(error)]}
    except MemoryError:
        yield {"error": ["invalid_file", "the file takes more memory to read than is allowed"]}


def _chunks(text: str, chunking: Chunking, request: dict[str, Any]) -> Iterator[Frame]:
    ends = token_ends(text)
    if len(ends) > request["max_tokens"]:
        raise InvalidFile(
            f"the file has about {len(ends)} tokens; at most {request['max_tokens']} are accepted"
        )
    chunks: list[str] = []
    for chunk in cut(text, ends, chunking):
        if chunk.strip():
            chunks.append(chunk)
        if len(chunks) == _CHUNKS_PER_FRAME:
            yield {"chunks": chunks}
            chunks = []
    if chunks:
        yield {"chunks": chunks}


def _receive(requests: BinaryIO) -> Frame | None:
    length = requests.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    (num_bytes,) = LENGTH.unpack(length)
    return decode(requests.read(num_bytes))


if __name__ == "__main__":
    main(sys.argv[1:])
