"""The files of a folder of data: saved by Hugging Face's `datasets`, or shards as they are.

What `save_to_disk` wrote is told by its `state.json`; several splits by `dataset_dict.json`. Any
other folder is read as data files, in it or in a folder `data` below it, all of one format. Scripts
are never run, and no name leads out of the folder.

Source: datasets 5.2, `arrow_dataset.py` and `dataset_dict.py` (save_to_disk), `data_files.py`
(the names of splits).
"""

import json
import re
from pathlib import Path, PurePath
from typing import Any

from services.shared.errors import InvalidRequest
from services.trainer.data.dataset import SourceFile
from services.trainer.data.rows import SUFFIXES

_MAX_STATE_BYTES = 2**20
_MAX_FILES = 10_000
# Where each request's field looks, the best name first.
_SPLITS = {"training_file": ("train",), "validation_file": ("validation", "test")}
_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def list_folder(folder: Path, param: str) -> list[SourceFile]:
    """Return a folder's data files, in their order.

    Args:
        folder: resolved: no link in it leads elsewhere.
        param: the request's field; where there are several splits it tells which is meant.

    Raises:
        InvalidRequest: there is no data in it that can be read; says what would be accepted.
    """
    if (folder / "dataset_dict.json").is_file():
        folder = _split_folder(folder, param)
    saved = _saved_files(folder, param)
    names = saved if saved is not None else _shards(folder, param)
    files = []
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(folder) or not path.is_file():
            raise InvalidRequest(
                f"{param}: the folder names a data file that is not in it, or is no plain file",
                param,
            )
        files.append(SourceFile(path, name, folder))
    return files


def _split_folder(folder: Path, param: str) -> Path:
    splits = _read_json(folder / "dataset_dict.json", param).get("splits")
    known = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    wanted = _SPLITS.get(param, ("train",))
    for name in wanted:
        path = folder / name
        if name in known and path.is_dir() and path.resolve().is_relative_to(folder):
            return path.resolve()
    raise InvalidRequest(
        f"{param}: the saved data set has no split named {' or '.join(wanted)}; give the path of "
        "the split's own folder",
        param,
    )


def _saved_files(folder: Path, param: str) -> list[str] | None:
    """Return the files of what `save_to_disk` wrote; None: it did not."""
    if not (folder / "state.json").is_file():
        return None
    state = _read_json(folder / "state.json", param)
    entries = state.get("_data_files")
    names = []
    for entry in entries if isinstance(entries, list) else []:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".arrow"):
            raise InvalidRequest(
                f"{param}: state.json must name .arrow files in its own folder", param
            )
        names.append(name)
    if not names or state.get("_indices_files") or state.get("_indices_data_files"):
        raise InvalidRequest(
            f"{param}: state.json must name the data's files, and no indices into them; save the "
            "data set anew with save_to_disk",
            param,
        )
    return names


def _shards(folder: Path, param: str) -> list[str]:
    """Return data files of the wanted split; of a folder without names of splits, all."""
    below = [folder, *([folder / "data"] if (folder / "data").is_dir() else [])]
    names = sorted(
        str(path.relative_to(folder))
        for parent in below
        for path in parent.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    by_split = {split: [n for n in names if _is_split(n, split)] for split in _SPELLINGS}
    if any(by_split.values()):
        wanted = _SPLITS.get(param, ("train",))
        names = next((by_split[split] for split in wanted if by_split[split]), [])
    if not 1 <= len(names) <= _MAX_FILES or len({PurePath(name).suffix for name in names}) > 1:
        raise InvalidRequest(
            f"{param}: a folder must hold what save_to_disk wrote, or 1 to {_MAX_FILES} files of "
            f"one format ({', '.join(SUFFIXES)}), in it or in data/; names such as "
            "train-00000.parquet and validation-00000.parquet tell splits apart",
            param,
        )
    return names


def _is_split(name: str, split: str) -> bool:
    spellings = "|".join(_SPELLINGS[split])
    return bool(re.search(rf"(^|[-._ ])({spellings})([-._ \d]|$)", PurePath(name).stem.lower()))


def _read_json(path: Path, param: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_STATE_BYTES:
            raise ValueError
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{param}: {path.name} must be the JSON object that save_to_disk writes", param
        ) from error
    return values
