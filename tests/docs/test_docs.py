"""Every command that the documents show is run, against a real `matryoshka up`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import serve

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    started = serve(tmp_path_factory.mktemp("docs"), "up")
    yield started
    started.stop()


def is_served_by_fixture(command):
    """`matryoshka up` and `serve` are running already; `make` targets install or take minutes."""
    return re.match(r"(\.venv/bin/)?matryoshka (up|serve)|make ", command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_works(document, process, tmp_path):
    """Blocks run in their order; ports are those of the running server."""
    names: dict[str, object] = {}
    for language, block in BLOCK.findall(document.read_text()):
        code = block.replace("http://127.0.0.1:8000", process.http)
        code = code.replace("127.0.0.1:9000", process.grpc)
        code = code.replace(".venv/bin/python", sys.executable)
        if language == "python":
            exec(compile(code, str(document), "exec"), names)  # the documents' own code
            continue
        for command in code.replace("\\\n", " ").splitlines():
            if command.startswith("make "):
                check_target(command)
            elif command and not is_served_by_fixture(command):
                command = command.replace(
                    ".venv/bin/matryoshka", f"{sys.executable} -m services.cli.main"
                )
                ended = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", command],
                    cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"


def check_target(command):
    """A `make` line names a target that exists; the targets themselves are run by CI."""
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
