"""Starts the three services as processes of their own, and ends them whatever happens."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_READY = re.compile(r"^\w+ is ready at (http://\S+) \(gRPC at (\S+)\)$", re.MULTILINE)
_START_TIMEOUT_S = 120


class ServiceDied(Exception):
    """A service ended or did not get ready; the message holds the end of its log."""


@dataclass(slots=True)
class ServiceProcess:
    """One running service."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log_path: Path
    http: str = ""
    grpc: str = ""

    def wait_ready(self) -> None:
        """Wait until it says that it is ready, and where.

        Raises:
            ServiceDied: it ended, or took longer than two minutes.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self.popen.poll() is None:
            if match := _READY.search(self.log_path.read_text(errors="replace")):
                self.http, self.grpc = match[1], match[2]
                return
            time.sleep(0.1)
        tail = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])
        raise ServiceDied(f"the {self.name} did not get ready; the end of {self.log_path}:\n{tail}")

    def stop(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


def _start(name: str, folder: Path, environment: dict[str, str]) -> ServiceProcess:
    log_path = folder / f"{name}.log"
    arguments = ["--http-port", "0", "--grpc-port", "0", "--data", str(folder / "data" / name)]
    with log_path.open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", "services.cli.main", "serve", name, *arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=os.environ | environment,
            # Ctrl-C on a terminal reaches the demo alone, which then ends its services in order.
            start_new_session=True,
        )
    return ServiceProcess(name, popen, log_path)


@contextlib.contextmanager
def three_services(folder: Path) -> Iterator[dict[str, ServiceProcess]]:
    """Run encoder, router and trainer with logs and data under `folder`, until the block ends.

    Yields:
        The processes by name, all ready.
    """
    with contextlib.ExitStack() as running:

        def start(name: str, **environment: str) -> ServiceProcess:
            process = _start(name, folder, environment)
            running.callback(process.stop)
            return process

        encoder = start("encoder")
        encoder.wait_ready()
        router = start("router", MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder.grpc)
        router.wait_ready()
        trainer = start(
            "trainer",
            MATRYOSHKA_TRAINER_ENCODER_ADDRESS=encoder.grpc,
            MATRYOSHKA_TRAINER_ROUTER_ADDRESS=router.grpc,
        )
        trainer.wait_ready()
        yield {process.name: process for process in (encoder, router, trainer)}
