"""Checkpoints: the state of a run as safetensors, whole or not there at all.

A checkpoint is a folder `step-<number>` with `state.safetensors` and `manifest.json`. It is
written under a temporary name, synced and renamed; one whose digest does not match its manifest
is passed over for the one before. Never pickle.
"""

import hashlib
import json
import os
import shutil
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


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_TEMPORARY}{checkpoint.step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.state.items()}
    save_file(tensors, temporary / _STATE)
    manifest = {"step": checkpoint.step, "sha256": {_STATE: file_sha256(temporary / _STATE)}}
    (temporary / _MANIFEST).write_text(json.dumps(manifest))
    target = folder / f"step-{checkpoint.step:08d}"
    if target.exists():  # after a resume from an older one
        shutil.rmtree(target)
    publish(temporary, target)
    for old in _newest_first(folder)[_KEPT:]:
        shutil.rmtree(old)


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
