"""Loads a checked model folder with sentence-transformers, and refuses one that is not whole.

transformers fills weights that a checkpoint lacks with random numbers, and passes over those that
it has no place for, each with a line in the log. Such a model answers all the same, so here it is
an error.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
)
from transformers.utils import logging as transformers_logging

from services.shared.errors import InvalidRequest
from services.shared.processor import processor_folder

# A head of BERT's kin over the first token, which no pooling here reads; many leave it out.
_UNREAD = re.compile(r"^pooler\.")
_NUMBER = re.compile(r"\.\d+\.")
_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}


class WholeTransformer(Transformer):
    """The library's Transformer, but a checkpoint that does not fill it is an error."""

    def __init__(self, model_name_or_path: str, **kwargs: Any) -> None:  # noqa: ANN401
        with processor_folder(Path(model_name_or_path)) as processor:
            if processor:
                kwargs["tokenizer_name_or_path"] = str(processor)
            super().__init__(model_name_or_path, **kwargs)

    def _load_model(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the library's)
        # Asked so, transformers returns what it found beside the network.
        loaded: Any = super()._load_model(*args, **kwargs, output_loading_info=True)
        network, found = loaded
        missing = [name for name in found["missing_keys"] if not _UNREAD.search(name)]
        if missing:
            raise InvalidRequest(
                f"its weights lack {_listed(missing)}; a model with weights missing would answer "
                "at random, fetch or export it again"
            )
        # More layers than the config counts are not loaded: the model would end in its middle.
        known = {_NUMBER.sub(".*.", name) for name in network.state_dict()}
        spare = [n for n in found["unexpected_keys"] if _NUMBER.sub(".*.", n) in known]
        if spare:
            raise InvalidRequest(
                f"its weights have {_listed(spare)}, for which config.json leaves no room; "
                "config.json must describe the model that was saved"
            )
        return network


# Class names to classes: what a folder names is looked up here and never imported.
_CLASSES: dict[str, type[torch.nn.Module]] = {
    "Transformer": WholeTransformer,
    "Pooling": Pooling,
    "Normalize": Normalize,
    "Dense": Dense,
    "LayerNorm": LayerNorm,
    "Dropout": Dropout,
    "StaticEmbedding": StaticEmbedding,
    "Router": Router,
}


class _ByName(Mapping[str, type[torch.nn.Module]]):
    """The classes under any path that ends in their name: folders come in several spellings."""

    def __getitem__(self, path: str) -> type[torch.nn.Module]:
        return _CLASSES[path.rpartition(".")[2]]

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


def load_modules(folder: Path, device: str) -> SentenceTransformer:
    """Load a folder that `check_folder` has passed.

    Returns:
        The model in evaluation mode, float32, uncut: a size that the folder sets by default is
        for callers of the library, ours say which sizes they want.

    Raises:
        InvalidRequest: files are missing or do not fit each other.
    """
    with _refusing(folder):
        # Private in the library, which is pinned: its public way imports what a folder names.
        model = SentenceTransformer._load_with_module_classes(
            str(folder), _ByName(), device=device, **_SAFE, model_kwargs=dict(_WEIGHTS)
        ).eval()
    model.truncate_dim = None
    return model


def load_cross_encoder(folder: Path, device: str) -> CrossEncoder:
    """Load a folder that `check_cross_encoder` has passed.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        InvalidRequest: as `load_modules`.
    """
    with _refusing(folder):
        if (folder / "modules.json").exists():
            model: CrossEncoder = CrossEncoder._load_with_module_classes(
                str(folder), _ByName(), device=device, **_SAFE, model_kwargs=dict(_WEIGHTS)
            )
        else:
            # As the library does by itself where there are no modules, but whole.
            transformer = WholeTransformer(
                str(folder),
                transformer_task="sequence-classification",
                model_kwargs=_SAFE | _WEIGHTS,
                processor_kwargs=dict(_SAFE),
                config_kwargs=dict(_SAFE),
            )
            model = CrossEncoder(modules=[transformer], device=device, **_SAFE)
    model.eval()
    return model


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn the libraries' errors into one sentence."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{folder.name} could not be loaded: {error.message}") from error
    except (
        OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, AttributeError,
        SafetensorError,
    ) as error:  # fmt: skip
        raise InvalidRequest(f"{folder.name} could not be loaded: {_sentence(error)}") from error


def check_widths(modules: Sequence[Any]) -> int:
    """Check that each module takes as many numbers as the one before gives.

    Returns:
        The full width, D.

    Raises:
        InvalidRequest: two modules do not fit.
    """
    width = 0
    for module in modules:
        wanted = _wanted(module)
        if width and wanted and wanted != width:
            raise InvalidRequest(
                f"{type(module).__name__} takes {wanted} numbers, the module before it gives "
                f"{width}; the folder's modules do not belong together"
            )
        gives = getattr(module, "get_embedding_dimension", None)
        width = int((gives and gives()) or width)
    return width


def _wanted(module: Any) -> int:  # noqa: ANN401 (any module)
    for name in ("in_features", "embedding_dimension", "dimension"):
        if isinstance(value := getattr(module, name, None), int):
            return value
    return 0


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _sentence(error: Exception) -> str:
    """The first line of a library's error, which may go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
