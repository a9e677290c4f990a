"""Certificates for tests, made when they are needed by the `openssl` of the machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None,
    reason="needs the program openssl, which makes the certificates",
)


class Authority:
    """A CA whose files lie in a folder: `ca.pem`, and a pair for each name it is asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._make("ca", "-addext", "keyUsage=critical,keyCertSign")

    def issue(self, name: str, hosts: str = "IP:127.0.0.1,DNS:localhost") -> tuple[Path, Path]:
        """Make a certificate and its key; return where they are."""
        return self._make(
            name, "-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key"),
            "-addext", f"subjectAltName={hosts}", "-addext", "basicConstraints=CA:FALSE",
        )  # fmt: skip

    def _make(self, name: str, *more: str) -> tuple[Path, Path]:
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-keyout", str(key), "-out", str(cert), *more],
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip
        return cert, key


def install(files: dict[Path, Path]) -> None:
    """Put files in the places of others as an operator would, {place: file}: each whole."""
    for place, file in files.items():
        new = place.with_suffix(".new")
        shutil.copy(file, new)
        os.replace(new, place)
