"""Processes that are measured: a peer's environment, its worker, and the texts that it is given.

Rounds take turns between the workers. A worker whose turn it is not is stopped (SIGSTOP), so that
no thread of it spins on a core that another one is being measured on.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
PEERS = ROOT / "bench" / "peers"
_ANSWER_TIMEOUT_S = 600
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}


class PeerFailed(Exception):
    """A peer cannot be installed, or ended, or answered with an error; says which."""


def python_of(environment: str) -> Path:
    """Return the environment's interpreter, installing what its requirements file pins first.

    Args:
        environment: a file in bench/peers/ without its suffix, or "" for our own.

    Raises:
        PeerFailed: it cannot be installed.
    """
    if not environment:
        return Path(sys.executable)
    requirements = PEERS / f"{environment}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    folder = BUILD / environment
    stamp = folder / ".installed"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != digest:
        print(f"installing {requirements.name} into {folder.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise PeerFailed(f"not installed: {_last_line(made.stderr)}")
        stamp.write_text(digest)
    return python


@dataclass
class Worker:
    """One engine's process.

    Args:
        name: of the engine, for its log and its folder.
        environment: see `python_of`.
        module: in bench/peers/.
        variant: which of the module's engines.
        policies: how OpenMP's threads may wait for each other, each tried: asleep ("PASSIVE") is
            faster beside other work, spinning for a while (the default, "") on idle cores.
    """

    name: str
    environment: str
    module: str
    variant: str
    model: Path
    sample: Path
    max_tokens: int
    policies: tuple[str, ...] = ("",)
    settings: str = ""
    arithmetic: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    _popen: "subprocess.Popen[str] | None" = None

    def start(self) -> None:
        """Convert and choose in one process, then load in a second one and stop it.

        Raises:
            PeerFailed: one of these did not work.
        """
        trials = []
        for policy in self.policies:
            self._spawn(policy)
            answer = self._ask(do="choose")
            trials.append((answer["seconds"], answer["choice"], policy))
            self.end()
        _, choice, policy = min(trials)
        self._spawn(policy)
        answer = self._ask(do="load", choice=choice)
        self.settings, self.arithmetic = answer["settings"], answer["arithmetic"]
        self.settings += f", OpenMP waits {policy.lower()}" if policy else ""
        self.versions = answer["versions"]
        self._signal(signal.SIGSTOP)

    def encode(self, texts: Path, vectors: Path | None = None) -> float:
        """Encode the texts of a file and return the seconds that it took.

        Raises:
            PeerFailed: it did not work.
        """
        self._signal(signal.SIGCONT)
        answer = self._ask(do="encode", texts=str(texts), vectors=str(vectors or ""))
        self._signal(signal.SIGSTOP)
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])
        return float(answer["seconds"])

    def end(self) -> None:
        if self._popen is None:
            return
        self._signal(signal.SIGCONT)
        self._popen.terminate()
        try:
            self._popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen = None

    @property
    def _log(self) -> Path:
        return BUILD / "logs" / f"{self.environment or 'ours'}-{self.variant or 'engine'}.log"

    def _spawn(self, policy: str) -> None:
        # What is calibrated on one sample is not used with another.
        digest = hashlib.sha256(self.sample.read_bytes()).hexdigest()[:8]
        scratch = BUILD / "made" / f"{self.environment or 'ours'}-{self.variant}-{digest}"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [
                    python_of(self.environment), "-m", "bench.peers.worker",
                    self.module, self.variant, self.model, scratch, self.sample,
                    str(self.max_tokens),
                ],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | _OFFLINE | ({"OMP_WAIT_POLICY": policy} if policy else {}),
            )  # fmt: skip

    def _ask(self, **request: str) -> dict[str, Any]:
        popen = self._popen
        if popen is None or popen.stdin is None or popen.stdout is None:
            raise PeerFailed("it is not running")
        with contextlib.suppress(BrokenPipeError):
            popen.stdin.write(json.dumps(request) + "\n")
            popen.stdin.flush()
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while not select.select([popen.stdout], [], [], 1)[0]:
            if time.monotonic() > deadline:
                raise PeerFailed(f"no answer to {request['do']!r} in {_ANSWER_TIMEOUT_S} s")
        line = popen.stdout.readline()
        if not line:
            raise PeerFailed(f"it ended: {_last_line(self._log.read_text(errors='replace'))}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(_first_sentence(answer["error"]))
        return answer

    def _signal(self, number: int) -> None:
        if self._popen and self._popen.poll() is None:
            self._popen.send_signal(number)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def _first_sentence(text: str) -> str:
    return " ".join(text.split())[:200]
