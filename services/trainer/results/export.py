"""The finished model as a folder: what plain sentence-transformers loads, and our card.

In: the base model's folder and what training changed. Out: a folder that is complete or not
there. A head becomes Dense modules behind the base's own modules, then a Normalize.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from services.shared import card as cards
from services.shared.card import Card, Quality
from services.shared.errors import ServiceError
from services.shared.folder import space_id
from services.shared.model import Role, TextModel
from services.shared.safety import check_folder
from services.shared.vectors import Array, PreOp, normalize
from services.trainer.data.pictures import Item
from services.trainer.results.gate import caution
from services.trainer.results.layout import (
    read_json,
    read_modules,
    spell_for_all,
    write_json,
    write_modules,
)
from services.trainer.results.measure import measure_byte_ranges
from services.trainer.results.onnx_model import FILENAME, write_onnx
from services.trainer.results.report import markdown_table
from services.trainer.training.checkpoint import publish
from services.trainer.training.encode import encode
from services.trainer.training.layers import Layer

_SUFFIXES = {".safetensors", ".json", ".txt", ".codes", ".model", ".jinja"}
# The base's card, and where the base lists its own training data: not true of the new model.
_LEFT_OUT = {cards.FILENAME, "data_config.json"}
# The vectors that were evaluated may come from bfloat16; a wrong module order is far below.
_MIN_COSINE = 0.998


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a trained model comes from, for its card."""

    model_id: str
    base_model: str
    data_digest: str
    dims: tuple[int, ...]
    """Trained sizes, ascending, the full one last."""
    prompts: dict[str, str]
    base_space_id: str | None = None
    """Of the base as it is served, where the new model is the base, its prompts and a head."""


def copy_base(base: Path, folder: Path) -> None:
    """Copy what makes the model; not its card, its README or other servers' weight formats."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    kept = {folder_ for _, folder_ in read_modules(base)} | {base}
    for path in sorted(base.rglob("*")):
        if path.suffix in _SUFFIXES and path.name not in _LEFT_OUT and path.parent in kept:
            target = folder / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            # Contents only: the base's files may be read-only, or links into a cache.
            shutil.copyfile(path, target)


def add_head(folder: Path, layers: Sequence[Layer], pre_op: PreOp) -> None:
    """Put a head behind the folder's modules: a Dense for each of its layers.

    Args:
        folder: a copy of the base.
        layers: of the head, at least one.
        pre_op: what the base does before a cut; it becomes a module, as the head comes after it.
    """
    modules = read_modules(folder)
    full = layers[0].weight_OI.shape[1]
    if pre_op == "layer_norm":
        path = folder / f"{len(modules)}_LayerNorm"
        path.mkdir()
        write_json(path / "config.json", {"dimension": full})
        ones = {"norm.weight": torch.ones(full), "norm.bias": torch.zeros(full)}
        save_file(ones, path / "model.safetensors")
        modules.append(("LayerNorm", path))
    for layer in layers:
        path = folder / f"{len(modules)}_Dense"
        _write_dense(path, layer)
        modules.append(("Dense", path))
    path = folder / f"{len(modules)}_Normalize"
    path.mkdir()
    modules.append(("Normalize", path))
    write_modules(folder, modules)


def _write_dense(path: Path, layer: Layer) -> None:
    path.mkdir()
    out_features, in_features = layer.weight_OI.shape
    activation = "activation.ReLU" if layer.is_rectified else "linear.Identity"
    write_json(
        path / "config.json",
        {
            "in_features": in_features,
            "out_features": out_features,
            "bias": False,
            "activation_function": f"torch.nn.modules.{activation}",
        },
    )
    weights = {"linear.weight": torch.from_numpy(np.ascontiguousarray(layer.weight_OI))}
    save_file(weights, path / "model.safetensors")


def replace_weights(folder: Path, model: TextModel) -> None:
    """Write all weights of a trained model over those of the folder's copy of its base."""
    modules = read_modules(folder)
    write_modules(folder, modules)
    for (name, path), module in zip(modules, model.transformer, strict=True):
        if not any(True for _ in module.parameters()):
            continue
        for old in path.glob("*.safetensors*"):
            old.unlink()
        saved = path / ".saved"
        if name == "Transformer":
            # Under the names that the architecture's own loader knows; its configs stay.
            module.auto_model.save_pretrained(saved)
        else:
            saved.mkdir()
            module.save(str(saved), safe_serialization=True)
        for new in saved.glob("*.safetensors*"):
            new.rename(path / new.name)
        shutil.rmtree(saved)


def finish(
    folder: Path,
    target: Path,
    origin: Origin,
    quality: Quality,
    pre_op: PreOp,
    max_tokens: int,
    probe: tuple[Sequence[Item], Array],
    vector_sets: Sequence[Array] = (),
    role: Role = "document",
    with_onnx: bool = False,
) -> Card:
    """Complete a folder with configs, card and README, check it, and move it to its place.

    Args:
        folder: modules and weights are final.
        target: its place; replaced if it is there.
        origin: for the card.
        quality: for the card and the README.
        pre_op: of the finished model.
        max_tokens: longest text.
        probe: documents and the vectors that the evaluation used for them.
        vector_sets: full vectors of queries and of documents, for the card's byte ranges.
        role: of the probe's documents.
        with_onnx: whether the model is to be there as ONNX too.

    Raises:
        ServiceError: the folder, loaded again, does not make the vectors that were evaluated.
    """
    write_modules(folder, read_modules(folder))
    spell_for_all(folder, max_tokens)
    _declare(folder, origin.dims)
    measured = [scores.dim for scores in quality.after]
    card = Card(
        id=origin.model_id,
        dims=origin.dims,
        pre_op=pre_op,
        prompts=origin.prompts,
        base_model=origin.base_model,
        data_digest=origin.data_digest,
        space_id=space_id(folder, pre_op, origin.prompts),
        base_space_id=origin.base_space_id,
        quality=quality,
        int8_ranges=measure_byte_ranges(vector_sets, measured) if vector_sets else (),
    )
    cards.write_card(folder, card)
    (folder / "README.md").write_text(_readme(card, quality), encoding="utf-8")
    check_folder(folder)
    _check_vectors(folder, *probe, role)
    if with_onnx:
        texts = [item for item in probe[0] if isinstance(item, str)]
        write_onnx(folder, folder / FILENAME, texts)
    if target.exists():
        shutil.rmtree(target)
    publish(folder, target)
    return card


def _declare(folder: Path, dims: tuple[int, ...]) -> None:
    """Tell other servers which sizes may be asked for, in the keys that they read."""
    name, path = read_modules(folder)[0]
    if name == "Transformer":
        config = read_json(path / "config.json")
        config |= {"is_matryoshka": True, "matryoshka_dimensions": list(dims)}
        write_json(path / "config.json", config)
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.exists() else {}
    # A saved cut would make every reader cut.
    config.pop("truncate_dim", None)
    write_json(path, config | {"similarity_fn_name": "cosine"})


def _check_vectors(folder: Path, items: Sequence[Item], expected_BD: Array, role: Role) -> None:
    model = TextModel(folder, precision="float32")
    found_BD = normalize(encode(model, items, role))
    cosine = float((found_BD * normalize(expected_BD)).sum(axis=1).min())
    if not cosine >= _MIN_COSINE:
        raise ServiceError(
            f"the finished model's vectors are not those that were evaluated (cosine {cosine:.5f})"
        )


def _readme(card: Card, quality: Quality) -> str:
    sizes = ", ".join(map(str, card.dims))
    note = caution(quality.num_queries, quality.after[0].COUNTED)
    warning = f"**Note:** {note}.\n\n" if note else ""
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, matryoshka]
---
# {card.id}

`{card.base_model}`, trained so that its vectors can be cut to {sizes} numbers. Cut, then scale
back to unit length:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", truncate_dim={card.dims[0]})
vectors = model.encode(["a text"], normalize_embeddings=True)
```

Quality on {quality.data}: {quality.counts},
before and after training.

{warning}{markdown_table(quality)}"""
