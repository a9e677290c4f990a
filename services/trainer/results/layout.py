"""The Sentence Transformers files of a model folder: which modules, how wide, which spelling.

Folders come in two spellings (before and after sentence-transformers 5.4). Both are read. What is
written loads in both: releases before 5.4, and other servers, know only the older keys.
"""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from services.shared.errors import InvalidRequest

# The module path that every release of sentence-transformers resolves.
_PACKAGE = "sentence_transformers.models"
_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# What the newer spelling says of every model of texts; left out, it means the same.
_TEXT_DEFAULTS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_DENSE_DEFAULTS = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX = "hyperparameters.onnx"
# A file of protobuf cannot be longer, and the weights are in it.
_MAX_BYTES = 2**31


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the modules in their order as class name and folder."""
    modules = read_json(folder / "modules.json")
    return [(str(m["type"]).rpartition(".")[2], folder / str(m["path"])) for m in modules]


def write_modules(folder: Path, modules: list[tuple[str, Path]]) -> None:
    """Write the modules in their order, in the spelling that every reader knows."""
    listed = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if path == folder else str(path.relative_to(folder)),
            "type": f"{_PACKAGE}.{name}",
        }
        for number, (name, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)


def full_width(folder: Path) -> int:
    """Return how many numbers the model's vectors have, without loading it.

    Raises:
        InvalidRequest: no module says.
    """
    for name, path in reversed(read_modules(folder)):
        if name == "Dense":
            return int(read_json(path / "config.json")["out_features"])
        if name == "Pooling":
            config = read_json(path / "config.json")
            width = config.get("embedding_dimension", config.get("word_embedding_dimension", 0))
            return int(width) * len(pooling_modes(config))
        if name == "StaticEmbedding":
            with safe_open(path / "model.safetensors", framework="numpy") as weights:
                return int(weights.get_slice(next(iter(weights.keys()))).get_shape()[1])
    raise InvalidRequest(
        "the base model's width is unknown: modules.json names no Pooling, Dense or "
        "StaticEmbedding",
        "base_model",
    )


def takes_pictures(folder: Path) -> bool:
    """Say whether the model takes pictures, without loading it; as `tower.Tower` does."""
    ways = _ways(folder)
    return any(ways.get(kind) == "forward" for kind in ("image", "image+text"))


def has_network_for_each(folder: Path) -> bool:
    """Say whether texts and pictures are read by networks of their own, as CLIP's kind does."""
    ways = _ways(folder)
    return ways.get("text", "forward") != "forward" or ways.get("image", "forward") != "forward"


def _ways(folder: Path) -> dict[str, str]:
    """Return by which method a transformer's network reads each kind of input."""
    name, path = read_modules(folder)[0]
    config = path / "sentence_bert_config.json"
    if name != "Transformer" or not config.is_file():
        return {}
    listed = read_json(config).get("modality_config") or {}
    return {kind: str(way.get("method")) for kind, way in listed.items()}


def network_weights(folder: Path) -> list[str]:
    """Return the names of a transformer's weights, without loading it; of other models none."""
    name, path = read_modules(folder)[0]
    names: list[str] = []
    for file in sorted(path.glob("*.safetensors")) if name == "Transformer" else ():
        with safe_open(file, framework="numpy") as weights:
            names += weights.keys()
    return names


def check_exportable(base: Path) -> None:
    """Refuse what cannot become ONNX, told from files alone.

    Raises:
        InvalidRequest: packages are absent, or the model is no transformer, reads more than texts,
            or is too large.
    """
    if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise InvalidRequest(
            f"{_ONNX} must be left out, or matryoshka-suite[onnx] be installed with the trainer: "
            f"it lacks {', '.join(absent)}",
            _ONNX,
        )
    name, path = read_modules(base)[0]
    if name != "Transformer":
        raise InvalidRequest(f"{_ONNX} must be left out: base_model is no transformer", _ONNX)
    if takes_pictures(base):
        raise InvalidRequest(f"{_ONNX} must be left out: base_model takes pictures too", _ONNX)
    if _num_bytes(path) >= _MAX_BYTES:
        raise InvalidRequest(
            f"{_ONNX} must be left out: base_model has more than 2 GiB of weights in float32, and "
            "one ONNX file cannot hold them",
            _ONNX,
        )


def _num_bytes(module: Path) -> int:
    """Return the bytes of a module's weights in float32, without loading them."""
    total = 0
    for path in module.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            names = weights.keys()
            total += sum(4 * math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def pooling_modes(config: dict[str, Any]) -> list[str]:
    """Return a pooling's modes from either spelling."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    return [name for name, flag in _POOLING_FLAGS.items() if config.get(flag)]


def spell_for_all(folder: Path, max_tokens: int) -> None:
    """Write the folder's configs in keys that every reader knows, and in no others.

    Older readers refuse a key that they do not know; newer ones read the older keys too. So a newer
    key stays only where older readers want it as well, or where it says what they cannot do.

    Args:
        folder: a copy of ours, in either spelling.
        max_tokens: the longest text of the model; the newer spelling does not keep it.
    """
    for name, path in read_modules(folder):
        if name == "Pooling":
            _edit(path / "config.json", _pooling)
        elif name == "Dense":
            _edit(path / "config.json", lambda config: _without(config, _DENSE_DEFAULTS))
        elif name == "Transformer":
            target = path / "sentence_bert_config.json"
            config = read_json(target) if target.exists() else {"do_lower_case": False}
            if all(config.get(key, value) == value for key, value in _TEXT_DEFAULTS.items()):
                config = _without(config, _TEXT_DEFAULTS)
            longest = config.get("max_seq_length") or max_tokens
            write_json(target, config | {"max_seq_length": longest})


def _pooling(config: dict[str, Any]) -> dict[str, Any]:
    modes = pooling_modes(config)
    width = config.pop("embedding_dimension", None)
    config.setdefault("word_embedding_dimension", width)
    config |= {flag: mode in modes for mode, flag in _POOLING_FLAGS.items()}
    if len(modes) == 1:
        config["pooling_mode"] = modes[0]
    else:
        # Older readers take one name only; the flags say it to all.
        config.pop("pooling_mode", None)
    return config


def _without(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says no more than the default does."""
    return {
        key: value for key, value in config.items() if key not in defaults or defaults[key] != value
    }


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    write_json(path, change(read_json(path)))


def read_json(path: Path) -> Any:  # noqa: ANN401 (JSON)
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
