"""The folder that a training of a text model starts from, where that is not the base's own.

In: the base. Out: a model folder in the job's folder, whole or not there at all.

Shapes: N texts, D full width, T the others'.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from services.shared.errors import ServiceError
from services.shared.model import TextModel
from services.shared.vectors import Array
from services.trainer.results import export
from services.trainer.training.checkpoint import publish
from services.trainer.training.layers import Layer


def make_table(base: TextModel, folder: Path, seed: int) -> None:
    """Write a static model of random numbers: the base's tokenizer and width.

    Args:
        base: lends its tokenizer.
        folder: nothing is done if it is there.
        seed: of the numbers.

    Raises:
        ServiceError: the base's tokenizer is not of the fast kind.
    """
    if folder.exists():
        return
    listed = base.tower("none").tokenizer
    fast = listed if isinstance(listed, Tokenizer) else getattr(listed, "backend_tokenizer", None)
    if fast is None:
        raise ServiceError("the base model's tokenizer has no fast form, which a table needs")
    tokenizer = Tokenizer.from_str(fast.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(tokenizer.get_vocab_size(), base.full, generator=random)
    table: torch.nn.Module = StaticEmbedding(tokenizer, embedding_weights=weights)
    modules = [table, Normalize()]
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    SentenceTransformer(modules=modules, device="cpu").save(str(temporary), create_model_card=False)
    publish(temporary, folder)


def make_turned(base: TextModel, folder: Path, learn: Callable[[], Layer]) -> None:
    """Write the base with a dense head behind it.

    Args:
        base: the model.
        folder: nothing is done if it is there.
        learn: returns the head.
    """
    if folder.exists():
        return
    layer = learn()
    temporary = folder.with_name(f".{folder.name}.writing")
    export.copy_base(base.folder, temporary)
    export.add_head(temporary, [layer], base.pre_op)
    publish(temporary, folder)


def fit(vectors_ND: Array, targets_NT: Array) -> Layer:
    """Return the head that brings vectors as near to others as a matrix can, a little ridged."""
    vectors = vectors_ND.astype(np.float64)
    products_DD = vectors.T @ vectors
    ridge = 1e-6 * np.trace(products_DD) / len(products_DD)
    products_DD += ridge * np.eye(len(products_DD))
    solved: Array = np.linalg.solve(products_DD, vectors.T @ targets_NT).T.astype(np.float32)
    return Layer(solved)
