"""Checkpoints: the state of a run as safetensors, whole or not there at all.

A checkpoint is a folder `step-<number>` with `state.safetensors` and `manifest.json`. It is
written under a temporary name, synced and renamed; one whose digest does not match its manifest
is passed over for the one before. Never pickle.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_KEPT = 2  # the newest, and one to fall back to
_STATE = "state.safetensors"
_MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` steps."""

    step: int
    state: State


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk."""

    step: int
    created_at: float
    """Unix time."""
    num_bytes: int
    seconds: float
    """That it took to write and sync; 0.0: it was written by an earlier version."""


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the newest two.

    Raises:
        OSError, SafetensorError: it cannot be written, the disk may be full; nothing is left of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_TEMPORARY}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f"{_TEMPORARY}{checkpoint.step}"
    try:
        _write(temporary, checkpoint)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    target = folder / f"step-{checkpoint.step:08d}"
    if target.exists():  # after a resume from an older one
        shutil.rmtree(target)
    publish(temporary, target)
    for old in _newest_first(folder)[_KEPT:]:
        shutil.rmtree(old)


def _write(temporary: Path, checkpoint: Checkpoint) -> None:
    begin = time.monotonic()
    temporary.mkdir()
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.state.items()}
    save_file(tensors, temporary / _STATE)
    _sync(temporary / _STATE)
    manifest = {
        "step": checkpoint.step,
        "sha256": {_STATE: file_sha256(temporary / _STATE)},
        "seconds": time.monotonic() - begin,
    }
    (temporary / _MANIFEST).write_text(json.dumps(manifest))


def saved(folder: Path) -> list[Saved]:
    """Return the checkpoints that are there, the newest first; their digests are not checked."""
    found = []
    for path in _newest_first(folder):
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            state = (path / _STATE).stat()
            seconds = float(manifest.get("seconds", 0.0))
            found.append(Saved(int(manifest["step"]), state.st_mtime, state.st_size, seconds))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # just removed, or not whole
    return found


class Seen:
    """Finds the checkpoints that were written since the last look.

    Args:
        folder: of the checkpoints; those that are there now are known.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = {one.created_at for one in saved(folder)}

    def new(self) -> list[Saved]:
        """Return those that were not there before; one that came and went is never seen."""
        found = [one for one in saved(self._folder) if one.created_at not in self._known]
        self._known |= {one.created_at for one in found}
        return found


def load_newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None if there is none."""
    for path in _newest_first(folder):
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            if manifest["sha256"] == {_STATE: file_sha256(path / _STATE)}:
                return Checkpoint(int(manifest["step"]), load_file(path / _STATE))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def publish(temporary: Path, target: Path) -> None:
    """Move a finished folder to its name so that it survives a crash whole, or is not there."""
    for path in temporary.rglob("*"):
        _sync(path)
    _sync(temporary)
    temporary.rename(target)
    _sync(target.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is there whole, or not at all."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(data)
    _sync(temporary)
    temporary.rename(path)
    _sync(path.parent)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
