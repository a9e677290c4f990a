"""A real PostgreSQL of Debian's package, in a folder of its own, reached by a socket in it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path:
    found = [*Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not found:
        pytest.skip("PostgreSQL is not installed: `make postgres` installs it")
    return max(found, key=lambda path: int(path.parts[-3])).parent


@contextmanager
def running() -> Iterator[str]:
    """Run it until the block ends; give its URL, as SQLAlchemy names it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install '.[postgres]'")
    programs = _programs()
    # Sockets' paths are short, and the folder must be its user's.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    # It refuses to run as root.
    is_root = os.geteuid() == 0
    if is_root:
        shutil.chown(folder, "postgres", "postgres")
    user = ["runuser", "-u", "postgres", "--"] if is_root else []
    data = folder / "data"
    started = None
    try:
        subprocess.run(
            [*user, programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True, capture_output=True, cwd=folder,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            started = subprocess.Popen(
                [*user, programs / "postgres", "-D", data, "-k", folder, "-c",
                 "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"],
                stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        ready = [programs / "pg_isready", "-q", "-h", folder]
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            assert started.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        if started is not None:
            stop = [*user, programs / "pg_ctl", "stop", "-D", data, "-m", "immediate"]
            subprocess.run(stop, check=True, capture_output=True, cwd=folder)
            started.wait(30)
        shutil.rmtree(folder)
