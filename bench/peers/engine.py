"""What a peer is to the bench: texts in, vectors out, in one of several ways."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]
_TRIALS = 2


@dataclass(frozen=True)
class Way:
    """One way to run a peer; which one is fastest is found by trial.

    Args:
        build: loads what is needed; gives a function that makes float32 vectors of texts, one row
            each, in their order.
        arithmetic: of its matrix multiplications: float32, bfloat16 or int8.
    """

    build: Callable[[], Encode]
    arithmetic: str


@dataclass(frozen=True)
class Given:
    """What a peer builds itself from.

    Args:
        model: folder in the Sentence Transformers layout.
        scratch: folder for what it converts; kept between runs.
        sample: texts of all lengths, to choose and to calibrate on; not those that are measured.
        max_tokens: where texts are cut.
    """

    model: Path
    scratch: Path
    sample: list[str]
    max_tokens: int


def fastest(ways: dict[str, Way], sample: list[str]) -> tuple[str, float]:
    """Return the name of the way that encodes the sample in the least time, and that time."""
    seconds = {}
    # None is dropped before the process ends: OpenVINO (2026.4) can wait for ever when a compiled
    # model goes while one of its threads is on its way back to Python.
    tried = []
    for name, way in ways.items():
        encode = way.build()
        tried.append(encode)
        encode(sample)
        seconds[name] = min(_timed(encode, sample) for _ in range(_TRIALS))
    best = min(seconds, key=lambda name: seconds[name])
    return best, seconds[best]


def _timed(encode: Encode, sample: list[str]) -> float:
    start = time.perf_counter()
    encode(sample)
    return time.perf_counter() - start


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of packages of this environment."""
    return {package: metadata.version(package) for package in packages}
