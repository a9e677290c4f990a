"""Our encoder as a service: a real server process, and the generator that loads it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_READY = re.compile(r"^encoder is ready at (http://\S+) \(gRPC at (\S+)\)$", re.MULTILINE)
_START_TIMEOUT_S = 180
_LOAD_TIMEOUT_S = 600
# Rounds repeat the same texts: answers from the cache would measure nothing.
_SETTINGS = {"MATRYOSHKA_ENCODER_CACHE_BYTES": "0"}


class ServedFailed(Exception):
    """The server or the generator ended; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the generator does; see `bench.load`."""

    wire: str
    address: str
    model: str
    texts: str
    texts_per_request: int
    clients: int
    rate: float = 0.0
    vectors: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the generator saw."""

    seconds: float
    texts_per_s: float
    p50_ms: float
    p99_ms: float


class Server:
    """An encoder in a process of its own, on free ports, with its data in a fresh folder."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self._folder = tempfile.TemporaryDirectory(prefix="bench-encoder-")
        self._log = Path(self._folder.name) / "encoder.log"
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [
                    sys.executable, "-m", "services.cli.main", "serve", "encoder",
                    "--http-port", "0", "--grpc-port", "0",
                    "--data", str(Path(self._folder.name) / "data"),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"MATRYOSHKA_ENCODER_MODEL": str(self.model), **_SETTINGS},
            )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._popen.poll() is None:
            if match := _READY.search(self._log.read_text(errors="replace")):
                self.addresses = {"http": match[1], "grpc": match[2]}
                return self
            time.sleep(0.1)
        self.__exit__()
        raise ServedFailed(f"the encoder did not get ready: {self._tail()}")

    def __exit__(self, *_: object) -> None:
        if self._popen and self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()

    def load(
        self,
        wire: str,
        texts: Path,
        clients: int,
        texts_per_request: int = 1,
        rate: float = 0.0,
        vectors: Path | None = None,
    ) -> Loaded:
        """Load one wire with all texts of a file.

        Raises:
            ServedFailed: a request was refused, or one of the two processes ended.
        """
        plan = Plan(
            wire, self.addresses[wire], "default", str(texts), texts_per_request, clients, rate,
            str(vectors or ""),
        )  # fmt: skip
        path = Path(self._folder.name) / "plan.json"
        path.write_text(json.dumps(asdict(plan)))
        made = subprocess.run(
            [sys.executable, "-m", "bench.load", str(path)],
            cwd=ROOT, capture_output=True, text=True, timeout=_LOAD_TIMEOUT_S, check=False,
        )  # fmt: skip
        if made.returncode:
            raise ServedFailed(f"{made.stderr.strip()[-300:]} | server: {self._tail()}")
        return Loaded(**json.loads(made.stdout.splitlines()[-1]))

    def peak_bytes(self) -> int:
        """Return the most memory that the server has had resident; 0 where it is not known."""
        status = Path(f"/proc/{self._popen.pid if self._popen else 0}/status")
        if not status.exists():
            return 0
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "VmHWM" in line) * 1024

    def _tail(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").splitlines()[-3:])[-400:]
