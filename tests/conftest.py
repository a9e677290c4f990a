"""What every test shares: real services in this process or in their own, ended afterwards."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import hypothesis
import pytest

# A busy machine is slow, not wrong: no example is judged by the clock.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

# Set before any library reads them: no test may reach a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_configure(config: pytest.Config) -> None:
    """Put the default model together in a folder of the run's own; workers inherit the variable."""
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(prefix="matryoshka-cache-")
        config.add_cleanup(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name


_READY = re.compile(r"^(\w+) is ready at (https?://\S+) \(gRPC at (\S+)\)$", re.MULTILINE)
_START_TIMEOUT_S = 90


@dataclass
class Process:
    """A `matryoshka` command that is serving."""

    arguments: list[str]
    log_path: Path
    environment: dict[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] = field(init=False)
    http: str = field(init=False)
    grpc: str = field(init=False)

    def start(self) -> "Process":
        with self.log_path.open("ab") as log:
            begin = log.tell()
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "services.cli.main", *self.arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | self.environment,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            text = self.log_path.read_bytes()[begin:].decode()
            if match := _READY.search(text):
                self.http, self.grpc = match[2], match[3]
                return self
            if self.popen.poll() is not None:
                break
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"{self.arguments} did not get ready:\n{self.log_path.read_text()}")

    def stop(self) -> int:
        """End it as an operator would; return its exit code."""
        self.popen.terminate()
        try:
            return self.popen.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise

    def kill(self) -> None:
        """End it as the kernel would."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


def serve(tmp_path: Path, *arguments: str, **environment: str) -> Process:
    """Start a `matryoshka` command on free ports with its data under `tmp_path`."""
    tmp_path.mkdir(exist_ok=True)
    name = "-".join(part for part in arguments if part.isalpha())
    command = [arguments[0], "--grpc-port", "0", "--data", str(tmp_path / name), *arguments[1:]]
    command[1:1] = ["--port", "0"] if arguments[0] == "up" else ["--http-port", "0"]
    return Process(command, tmp_path / f"{name}.log", environment).start()


@pytest.fixture(scope="session", autouse=True)
def kept_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoders of one run share what they measure at their start: the first does the work."""
    base = tmp_path_factory.getbasetemp()
    # Of several workers each has a folder below the run's.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "engines"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATRYOSHKA_ENCODER_ENGINES_DIR", str(folder))
        yield


@pytest.fixture(scope="session")
def encoder_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A real encoder with the default model, for all tests that only read from it."""
    process = serve(tmp_path_factory.mktemp("encoder"), "serve", "encoder")
    yield process
    assert process.stop() == 0


@pytest.fixture
async def encoder_channel(encoder_process: Process) -> "contextlib.AsyncIterator":
    async with grpc.aio.insecure_channel(encoder_process.grpc) as channel:
        yield channel


@pytest.fixture
def http_client(encoder_process: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=encoder_process.http, timeout=30) as client:
        yield client
