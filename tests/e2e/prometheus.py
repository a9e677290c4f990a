"""A real Prometheus, Debian's, that scrapes processes of this machine, asked over its HTTP API."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

_UNPACKED = Path(__file__).parents[2] / ".prometheus" / "usr" / "bin" / "prometheus"
# No one else's: sockets that call out take their ports at 127.0.0.1.
_HOST = "127.0.0.9"
_WAIT_S = 30.0


class Prometheus:
    """Asks a running one."""

    def __init__(self, client: httpx.Client, num_targets: int) -> None:
        self._client, self._num_targets = client, num_targets

    def ask(self, path: str, **params: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=params).raise_for_status().json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def series(self) -> set[frozenset[tuple[str, str]]]:
        """Return all labels of each series of ours; its name is one of them."""
        found = self.ask("series", **{"match[]": '{__name__=~"matryoshka_.*"}'})
        return {frozenset(labels.items()) for labels in found}

    def scrape(self) -> None:
        """Wait until every process has been scraped once more."""
        before = self._scraped()
        deadline = time.monotonic() + _WAIT_S
        while len(self._scraped().items() - before.items()) < self._num_targets:
            assert time.monotonic() < deadline, self.ask("targets")
            time.sleep(0.1)

    def _scraped(self) -> dict[str, str]:
        """When each was scraped last, by its URL; those that were not yet, or are down, are left
        out."""
        targets = self.ask("targets")["activeTargets"]
        return {one["scrapeUrl"]: one["lastScrape"] for one in targets if one["health"] == "up"}


@contextlib.contextmanager
def scraping(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    """Start one, and end it.

    Args:
        folder: for its own files.
        targets: base URLs of the processes.
    """
    found = str(_UNPACKED) if _UNPACKED.exists() else shutil.which("prometheus")
    if found is None:
        pytest.skip("Prometheus is not there: `make prometheus` unpacks Debian's")
    hosts = [url.removeprefix("http://") for url in targets]
    # JSON is YAML.
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [{"job_name": "matryoshka", "static_configs": [{"targets": hosts}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.create_server((_HOST, 0)) as free:
        at = f"{_HOST}:{free.getsockname()[1]}"
    command = [
        found, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={at}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{at}", timeout=10) as client:
            deadline = time.monotonic() + _WAIT_S
            while not _is_ready(client):
                told = (folder / "prometheus.log").read_text()
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.05)
            yield Prometheus(client, len(targets))
    finally:
        process.kill()
        process.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
