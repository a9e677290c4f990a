"""An encoder whose model has a card: sizes, measured quality, byte ranges."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.cli.corpus import read_corpus
from services.shared.folder import DEFAULT_MODEL
from tests.conftest import Process, serve

CARDED_DIMS = [64, 100, 384]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real texts, the same on every run; the last twenty are in no sample."""
    return [" ".join(document.body.split()) for document in read_corpus(None, 170)]


@pytest.fixture(scope="session")
def carded_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """The default model with a card, as a user makes it."""
    folder = tmp_path_factory.mktemp("carded")
    (folder / "texts.txt").write_text("\n".join(texts[:150]))
    command = [sys.executable, "-m", "services.cli.main", "card", DEFAULT_MODEL]
    sizes = ",".join(map(str, CARDED_DIMS))
    options = [str(folder / "texts.txt"), "--dims", sizes, "--output", str(folder / "model")]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=120)
    return folder / "model"


@pytest.fixture(scope="session")
def card(carded_folder: Path) -> dict:
    return json.loads((carded_folder / "matryoshka.json").read_text())


@pytest.fixture(scope="session")
def carded_process(
    tmp_path_factory: pytest.TempPathFactory, carded_folder: Path
) -> Iterator[Process]:
    """A real encoder that serves it."""
    process = serve(
        tmp_path_factory.mktemp("encoder"), "serve", "encoder",
        MATRYOSHKA_ENCODER_MODEL=str(carded_folder),
    )  # fmt: skip
    yield process
    assert process.stop() == 0


@pytest.fixture
def carded(carded_process: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=carded_process.http, timeout=30) as client:
        yield client
