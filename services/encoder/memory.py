"""How much memory the models may take, and how much one will, before its weights are read.

In: a model folder. Out: bytes, from the headers of its safetensors files. Knows nothing of torch.
"""

import json
import math
import os
from pathlib import Path

from services.shared.errors import InvalidRequest, WrongState

# Models are loaded in float32, whatever their files hold, and compared with a narrower copy
# before one of the two is dropped.
_LOADED_BYTES = 4
# Of the machine's or the container's memory: the rest is for one more copy of the largest model
# while it is measured, for batches, caches and the other services.
_SHARE = 0.5
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_MAX_HEADER_BYTES = 100 * 2**20


def default_max_model_bytes() -> int:
    """Return a sane share of the memory that this process can have."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return int(min(limits) * _SHARE)


def weight_bytes(folder: Path) -> int:
    """Return what the weights in a folder will take once loaded, from their files' headers.

    Raises:
        InvalidRequest: a file is no safetensors file.
    """
    return sum(_count_numbers(path) * _LOADED_BYTES for path in folder.rglob("*.safetensors"))


def check_fits(model_id: str, wanted: int, held: int, max_model_bytes: int) -> None:
    """Refuse a model that would pass the bound.

    Raises:
        WrongState: with all the figures and what to do.
    """
    if held + wanted > max_model_bytes:
        raise WrongState(
            f"{model_id!r} takes {_gib(wanted)}, the models already loaded take {_gib(held)}, and "
            f"max_model_bytes allows {_gib(max_model_bytes)}; unload a model or raise that bound"
        )


def _count_numbers(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > _MAX_HEADER_BYTES:
                raise ValueError("too long a header")
            header = json.loads(file.read(length))
            return sum(
                math.prod(entry["shape"])
                for name, entry in header.items()
                if name != "__metadata__"
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(f"{path.name} is not a safetensors file") from error


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
