"""Engines kept on disk: what a network's measurement chose on this machine, and its int8 weights.

Measuring takes seconds and rounding weights takes longer; a restart does neither again. What was
kept for another machine, another version or another model is not found.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

log = logging.getLogger(__name__)

# To be raised when an engine changes what it computes or how it is kept.
_VERSION = 2


@dataclass(frozen=True, slots=True)
class Trial:
    """One engine as it was measured on this machine.

    Args:
        engine: for example "packed bfloat16".
        min_cosine: the smallest to float32, over sample texts that nothing was fitted to; of
            float32 itself, to sentence-transformers, over the probe texts. Of a cross-encoder what
            `PairTower.likeness` says.
        tokens_per_second: best of some runs.
    """

    engine: str
    min_cosine: float
    tokens_per_second: float


class Engines:
    """The kept engines of one network.

    Args:
        folder: where they are kept; made when the first is.
        network: a transformers model in float32. What is kept is found by its weights, so models
            that share a network, as an adaptor's does with its base, share its engines too.
    """

    def __init__(self, folder: Path, network: torch.nn.Module) -> None:
        machine = f"{_VERSION} {torch.__version__} {torch.get_num_threads()} {_processor()}"
        digest = hashlib.sha256(machine.encode())
        for key, tensor in sorted(network.state_dict().items()):
            digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
        name = digest.hexdigest()[:32]
        self._choice = folder / f"{name}.json"
        self._weights = folder / f"{name}.safetensors"

    def read_trials(self) -> list[Trial]:
        """What was measured, in that order; empty if nothing is kept."""
        try:
            return [Trial(**trial) for trial in json.loads(self._choice.read_text())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            log.warning("the kept measurement cannot be read and is made again: %s", error)
            return []

    def write_trials(self, trials: list[Trial]) -> None:
        content = json.dumps([asdict(trial) for trial in trials], indent=2)
        self._write(self._choice, lambda path: path.write_text(content))

    def read_weights(self) -> dict[str, torch.Tensor]:
        """Int8 weights by name; empty if none are kept."""
        try:
            weights: dict[str, torch.Tensor] = load_file(self._weights)
        except FileNotFoundError:
            return {}
        except Exception as error:  # safetensors has a class of its own for a broken file
            log.warning("the kept int8 weights cannot be read and are made again: %s", error)
            return {}
        return weights

    def write_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self._write(self._weights, lambda path: save_file(weights, path))

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Replace a file in one step; a full or read-only disk only costs the next start time."""
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.replace(path)
        except OSError as error:
            log.warning("%s cannot be kept: %s", path.name, error)
            with contextlib.suppress(OSError):
                temporary.unlink()


def _processor() -> str:
    """Name the processor, as exactly as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return " ".join(sorted({line for line in lines if line.startswith(wanted)}))
