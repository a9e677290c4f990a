"""The README's tree is the disk's tree, and the generated code is the protos' code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_MODULE_LINES = 400


def tracked() -> list[str]:
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_the_readme_names_every_module():
    """Each module under services/ stands in the README's tree, and nothing that is not there."""
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```\n(protos/.*?)```", readme, re.DOTALL)
    assert tree, "the README has no tree"
    named = set(re.findall(r"[\w/]+\.py\b", tree[1]))
    on_disk = {
        path.name
        for path in (ROOT / "services").rglob("*.py")
        if "pb" not in path.parts and path.name != "__init__.py"
    }
    assert on_disk - named == set(), "missing in the README's tree"
    assert named - on_disk == set(), "in the README's tree, but not on disk"


def test_generated_code_is_current(tmp_path):
    """`make protos` would change nothing."""
    names = ["encoder", "router", "trainer"]
    package = "services/shared/pb"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{package}=protos",
            f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}",
            *(f"{package}/{name}.proto" for name in names),
        ],
        cwd=ROOT,
        check=True,
    )  # fmt: skip
    for name in names:
        for suffix in ("_pb2.py", "_pb2_grpc.py"):
            made = (tmp_path / package / f"{name}{suffix}").read_text()
            assert made == (ROOT / package / f"{name}{suffix}").read_text(), f"{name}{suffix}"


def test_modules_stay_one_noun():
    """A module over 400 lines is more than one thing."""
    for path in (ROOT / "services").rglob("*.py"):
        if "pb" not in path.parts:
            assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES, path


def test_no_drawers():
    """No file is named for nothing in particular."""
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
    assert not [name for name in tracked() if Path(name).stem in drawers]


def test_nothing_secret_or_of_one_machine_is_tracked():
    """No absolute path of a machine in any tracked text."""
    pattern = re.compile(r"(^|[^\w.])/(home|root|Users)/\w")
    for name in tracked():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ""} and path.is_file():
            assert not pattern.search(path.read_text(errors="ignore")), name
