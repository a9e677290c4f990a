"""One engine in a process and an environment of its own, driven by lines of JSON.

    python -m bench.peers.worker MODULE VARIANT MODEL SCRATCH SAMPLE MAX_TOKENS

`choose` converts the model and finds the fastest settings; `load` loads with those, in a fresh
process whose memory tells the truth; `encode` answers the seconds that it took. Answers go to
stdout; all that libraries print goes to stderr.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.engine import Encode, Given, fastest


def peak_bytes() -> int:
    """Return the most memory that was resident since `forget_peak`; 0 where it is not known."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


def forget_peak() -> None:
    """Loading needs more memory than encoding: count from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("peak memory includes loading", file=sys.stderr)


class Worker:
    """Answers requests with what the peer's module gives."""

    def __init__(self, module_name: str, variant: str, given: Given) -> None:
        self._module = importlib.import_module(f"bench.peers.{module_name}")
        self._variant = variant
        self._given = given
        self._encode: Encode | None = None

    def choose(self) -> dict[str, object]:
        self._given.scratch.mkdir(parents=True, exist_ok=True)
        self._module.prepare(self._variant, self._given)
        ways = self._module.ways(self._variant, self._given)
        choice, seconds = fastest(ways, self._given.sample)
        return {"choice": choice, "seconds": seconds}

    def load(self, choice: str) -> dict[str, object]:
        way = self._module.ways(self._variant, self._given)[choice]
        self._encode = way.build()
        self._encode(self._given.sample)  # warm-up
        forget_peak()
        return {
            "settings": getattr(self._encode, "settings", choice),
            "arithmetic": getattr(self._encode, "arithmetic", way.arithmetic),
            "versions": self._module.versions(self._variant),
        }

    def encode(self, texts: str, vectors: str) -> dict[str, object]:
        if self._encode is None:
            raise RuntimeError("load comes first")
        read = json.loads(Path(texts).read_text())
        start = time.perf_counter()
        vectors_BD = self._encode(read)
        seconds = time.perf_counter() - start
        if vectors:
            np.save(vectors, np.asarray(vectors_BD, dtype=np.float32))
        return {"seconds": seconds, "peak_bytes": peak_bytes()}


def die_with_parent() -> None:
    """Ask Linux to end this process with the bench: while it is stopped it cannot see an end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    die_with_parent()
    module_name, variant, model, scratch, sample, max_tokens = sys.argv[1:]
    # Libraries print to stdout as they please; the answers keep a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    texts = json.loads(Path(sample).read_text())
    given = Given(Path(model), Path(scratch), texts, int(max_tokens))
    worker: Worker | None = None
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            worker = worker or Worker(module_name, variant, given)
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Some engines keep threads that never end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main()
