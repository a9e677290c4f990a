"""Whether a model folder is a cross-encoder, and one that can be served; told from its files.

In: a folder of sentence-transformers' CrossEncoder, with or without modules, or a plain one of
transformers' sequence classification. Out: nothing, or one sentence that says what is wrong with
which file. What holds for the files of any model is `safety.py`'s.
"""

from pathlib import Path
from typing import Any

from services.shared.errors import InvalidRequest
from services.shared.safety import ACTIVATIONS, check_files, read_json

_TASK = "sequence-classification"
_CLASSIFIER = "ForSequenceClassification"
# Ends of the names of networks that answer in words. sentence-transformers makes rerankers of them
# by comparing the words for yes and no.
_GENERATORS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
# Where the three ways of saving name what makes a score of the network's number.
_ACTIVATION_KEYS = ("activation_fn", "sbert_ce_default_activation_function")


def is_cross_encoder(folder: Path) -> bool:
    """Say whether a folder holds a model that scores pairs, whether or not it can be served.

    With modules it says so itself; without, a network for classes, or one that answers in words,
    can be nothing else.

    Raises:
        InvalidRequest: a file that tells is broken.
    """
    if (folder / "modules.json").exists():
        said = _read(folder, "config_sentence_transformers.json").get("model_type")
        return bool(said == "CrossEncoder")
    return _architecture(folder).endswith((_CLASSIFIER, *_GENERATORS))


def check_cross_encoder(folder: Path) -> None:
    """Refuse a cross-encoder that could run code, or that is of a kind that is not served.

    Raises:
        InvalidRequest: one sentence that says what is wrong with which file.
    """
    architecture = _architecture(folder)
    modules = _modules(folder)
    if architecture.endswith(_GENERATORS) or any("LogitScore" in kind for kind, _ in modules):
        raise InvalidRequest(
            f"{folder.name} is a language model ({architecture or 'LogitScore'}): no embedding "
            "model without modules.json, and one that says yes or no is not served as a reranker; "
            f"cross-encoders with one label ({_CLASSIFIER}) are"
        )
    if not architecture.endswith(_CLASSIFIER):
        raise InvalidRequest(
            f"config.json names {architecture or 'no architecture'}; a cross-encoder's ends in "
            f"{_CLASSIFIER}"
        )
    if (folder / "modules.json").exists() and not _is_one_transformer(modules):
        raise InvalidRequest(
            f"modules.json lists {', '.join(kind for kind, _ in modules) or 'nothing'}; a "
            "cross-encoder that can be served is one Transformer of sentence_transformers, in the "
            "folder itself"
        )
    config = _read(folder, "config.json")
    own = config.get("sentence_transformers")
    for source in (config, own, _read(folder, "config_sentence_transformers.json")):
        _check_activation(source if isinstance(source, dict) else {})
    check_files(folder, _TASK)


def _check_activation(config: dict[str, Any]) -> None:
    """What the library would import and call must be in the closed table."""
    for key in _ACTIVATION_KEYS:
        named = config.get(key)
        if named is not None and str(named) not in ACTIVATIONS:
            raise InvalidRequest(
                f"the folder's config names the activation {str(named)[:80]!r}; allowed: "
                f"{', '.join(sorted(ACTIVATIONS))}"
            )


def _architecture(folder: Path) -> str:
    named = _read(folder, "config.json").get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    return first if isinstance(first, str) else ""


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the types and paths that modules.json lists, in order; none without it."""
    path = folder / "modules.json"
    listed = read_json(folder, path, list) if path.exists() else []
    if not all(isinstance(module, dict) for module in listed):
        raise InvalidRequest("modules.json must list objects with a 'type' and a 'path'")
    return [(str(module.get("type")), str(module.get("path"))) for module in listed]


def _is_one_transformer(modules: list[tuple[str, str]]) -> bool:
    kinds = [kind.split(".") for kind, path in modules if not path]
    ends = [(kind[0], kind[-1]) for kind in kinds]
    return len(modules) == 1 and ends == [("sentence_transformers", "Transformer")]


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return dict(read_json(folder, path, dict)) if path.exists() else {}
