"""Whether a model folder is safe to load, and loads as what it was saved as; told from its files.

In: a folder in the Sentence Transformers layout. Out: nothing, or one sentence that says what is
wrong with which file. Loads no weights and imports no library of models. What holds for the files
of any folder is `check_files`; a cross-encoder's own rules are in `cross_encoder_folder.py`.

Nothing is trusted: weights only as whole safetensors, modules and activations only from the closed
tables below, no remote code, no path or link out of the folder.
Source: CVE-2025-32434, CVE-2026-24747 (pickled weights), CVE-2026-4372 (`_attn_implementation_
internal`), CVE-2026-5241 (nested configs), CVE-2026-22807 (`auto_map`), sentence-transformers
#3683 and #3801 (module paths).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.shared.errors import InvalidRequest

ROUTER = "Router"
TOWERS = {"query", "document"}

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".pt2", ".joblib"}
_MODULES = {
    "Transformer",
    "Pooling",
    "Normalize",
    "Dense",
    "LayerNorm",
    "Dropout",
    "StaticEmbedding",
    ROUTER,
}
ACTIVATIONS = {
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
# Architectures that transformers has taken over from remote code: it runs its own, so the
# `auto_map` that their repositories still carry is never followed.
_NATIVE = {"nomic_bert"}
# What their old configs say in other words; transformers passes over these keys and takes its own
# value, so they must agree. {old key: (transformers' key, transformers' default)}
_NOMIC_BERT: Mapping[str, tuple[str, object]] = {
    "n_embd": ("hidden_size", 768),
    "n_layer": ("num_hidden_layers", 12),
    "n_head": ("num_attention_heads", 12),
    "n_inner": ("intermediate_size", 3072),
    "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
    "rotary_emb_base": ("rope_theta", 1000.0),
    "rotary_emb_fraction": ("partial_rotary_factor", 1.0),
    "prenorm": ("", False),
    "qkv_proj_bias": ("", False),
    "mlp_fc1_bias": ("", False),
    "mlp_fc2_bias": ("", False),
    "use_rms_norm": ("", False),
    "parallel_block": ("", False),
    "activation_function": ("", "swiglu"),
}
# What a Transformer module's own file may set; the rest names other files or changes how texts of
# a role are cut, which only multi-vector models do.
_TRANSFORMER_KEYS = {
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config",
    "module_output_name", "processing_kwargs", "unpad_inputs",
    *(f"{kind}_{suffix}" for kind in ("model", "config") for suffix in ("args", "kwargs")),
    "tokenizer_args", "processor_kwargs",
}  # fmt: skip
# Of the arguments to a library's loader, those that change no code path.
_LOADER_KEYS = {"dtype", "torch_dtype", "model_max_length", "padding_side", "trust_remote_code"}
_CONFIGS = {"config", "tokenizer_config"}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound


def check_folder(folder: Path) -> None:
    """Refuse a folder of an embedding model that is incomplete or could run code.

    Raises:
        InvalidRequest: one sentence that says what is wrong with which file.
    """
    _check_kind(folder)
    check_files(folder, "feature-extraction")
    for number, (kind, target) in enumerate(read_modules(folder)):
        if kind == ROUTER and number:
            raise InvalidRequest("modules.json must have the Router first")
        if kind == ROUTER:
            _check_router(folder, target)


def check_files(folder: Path, task: str) -> None:
    """Refuse files that could run code, or would load as something else.

    Args:
        folder: of any kind of model.
        task: of its Transformer modules, as sentence-transformers calls it.

    Raises:
        InvalidRequest: as `check_folder`.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in _PICKLE_SUFFIXES:
            raise InvalidRequest(
                f"{name} may hold pickled code; only .safetensors weights are loaded"
            )
        if path.is_symlink():
            _check_link(folder, path)
        if path.name == "adapter_config.json":
            raise InvalidRequest(f"{name} names a base model elsewhere; merge the adapter into it")
        if path.suffix == ".safetensors":
            _check_weights(path, str(name))
        if path.suffix == ".json" and (path.stem in _CONFIGS or "processor" in path.stem):
            _check_config(folder, path)
        if path.name.startswith("sentence_") and path.name.endswith("_config.json"):
            _check_transformer(folder, path, task)


def has_two_towers(folder: Path) -> bool:
    """Whether queries and documents are read by different towers; for a checked folder."""
    return any(name == ROUTER for name, _ in read_modules(folder))


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the modules that `modules.json` lists, as class name and folder.

    Raises:
        InvalidRequest: one of them is not in the closed table, or lies outside the folder.
    """
    listed = read_json(folder, folder / "modules.json", list)
    modules = []
    for module in listed:
        kind, path = (
            (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        )
        if not isinstance(kind, str) or not isinstance(path, str):
            raise InvalidRequest("modules.json must list objects with a 'type' and a 'path'")
        modules.append(_check_module(folder, folder, "modules.json", kind, path))
    if not modules:
        raise InvalidRequest("modules.json must list at least one module")
    return modules


def _check_module(
    folder: Path, parent: Path, listed_in: str, kind: str, path: str
) -> tuple[str, Path]:
    package, _, name = kind.rpartition(".")
    if package.split(".")[0] != "sentence_transformers" or name not in _MODULES:
        raise InvalidRequest(
            f"{listed_in} names {kind!r}; modules that can be served: {', '.join(sorted(_MODULES))}"
        )
    target = parent / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise InvalidRequest(f"{listed_in} points outside the model folder: {path!r}")
    if name == "Dense":
        config = read_json(folder, target / "config.json", dict)
        activation = str(config.get("activation_function"))
        if activation not in ACTIVATIONS:
            raise InvalidRequest(
                f"{path}/config.json names the activation {activation!r}; allowed: "
                f"{', '.join(sorted(ACTIVATIONS))}"
            )
    return name, target


def _check_router(folder: Path, router: Path) -> None:
    """Two towers, for queries and for documents, of modules from the closed table."""
    # Saved before sentence-transformers 5.0 as Asym, under the other name.
    path = router / "router_config.json"
    config = read_json(folder, path if path.exists() else router / "config.json", dict)
    types, structure = config.get("types"), config.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict):
        raise InvalidRequest(f"{path.name} must have 'types' and 'structure'")
    if set(structure) != TOWERS or (config.get("parameters") or {}).get("route_mappings"):
        raise InvalidRequest(
            f"{path.name} must route to 'query' and 'document' and nothing else, "
            f"it routes to {', '.join(sorted(structure))}"
        )
    for module_id, kind in types.items():
        name, _ = _check_module(folder, router, path.name, str(kind), module_id)
        if name == ROUTER:
            raise InvalidRequest(f"{path.name} nests a Router; towers are plain modules")
    for listed in structure.values():
        if not isinstance(listed, list) or not listed or not set(listed) <= set(types):
            raise InvalidRequest(f"{path.name} must give each tower modules out of its 'types'")


def _check_config(folder: Path, path: Path) -> None:
    name = path.relative_to(folder)
    outer = read_json(folder, path, dict)
    for config in _nested(outer):
        kind = config.get("model_type")
        for key, reason in _REFUSED_CONFIG_KEYS.items():
            if config.get(key) and not (key == "auto_map" and kind in _NATIVE):
                raise InvalidRequest(f"{name} sets {key!r}: {reason}; this model cannot be served")
        if kind != "nomic_bert":
            continue
        if config.get("num_experts"):
            raise InvalidRequest(
                f"{name} sets 'num_experts': transformers would load its mixture of experts "
                "wrongly; this model cannot be served"
            )
        values = config | (config.get("rope_parameters") or {})
        for key, (native, default) in _NOMIC_BERT.items():
            if config.get(key) is not None and config[key] != values.get(native, default):
                raise InvalidRequest(
                    f"{name} sets {key!r} to {config[key]!r}, which transformers' own "
                    f"architecture does not do; it must be {values.get(native, default)!r}"
                )


def _nested(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _nested(value)


def _check_transformer(folder: Path, path: Path, task: str) -> None:
    """The file of a Transformer module: closed keys, and no arguments that choose code."""
    name = path.relative_to(folder)
    config = read_json(folder, path, dict)
    for key in sorted(set(config) - _TRANSFORMER_KEYS):
        if config[key] is not None:
            raise InvalidRequest(f"{name} sets {key!r}, which cannot be served")
    if config.get("transformer_task", task) != task:
        raise InvalidRequest(f"{name} must have the 'transformer_task' {task}")
    for key, value in config.items():
        if not key.endswith(("_args", "_kwargs")) or key == "processing_kwargs":
            continue
        wrong = sorted(set(value) - _LOADER_KEYS) if isinstance(value, dict) else [str(value)]
        if wrong:
            raise InvalidRequest(
                f"{name} gives {key} {', '.join(wrong)}; allowed: {', '.join(sorted(_LOADER_KEYS))}"
            )


def _check_kind(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    if path.exists():
        kind = read_json(folder, path, dict).get("model_type", "SentenceTransformer")
        if kind != "SentenceTransformer":
            raise InvalidRequest(
                f"{path.name} names a {kind}; only a SentenceTransformer makes one vector a text"
            )


def _check_link(folder: Path, path: Path) -> None:
    """Links stay in the folder, or lead to the blobs of the hub's cache that it is a part of.

    That cache is models--org--name/{blobs,snapshots/<revision>}; a snapshot's files are links.
    """
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(root) for root in allowed):
        raise InvalidRequest(f"{path.relative_to(folder)} is a link out of the model folder")


def _check_weights(path: Path, name: str) -> None:
    """A safetensors file is whole: its header says how many bytes follow it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if 8 + header_bytes + max(ends, default=0) != size:
            raise ValueError
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise InvalidRequest(
            f"{name} is not a whole safetensors file; fetch or copy it again"
        ) from None


def read_json(folder: Path, path: Path, kind: type) -> Any:  # noqa: ANN401 (JSON)
    """Read a file of a model folder.

    Raises:
        InvalidRequest: it is missing, no JSON, or of another kind.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequest(
            f"{folder} is not a Sentence Transformers folder: it has no {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path.relative_to(folder)} is not valid JSON") from error
    if not isinstance(value, kind):
        raise InvalidRequest(f"{path.relative_to(folder)} must hold a JSON {kind.__name__}")
    return value
