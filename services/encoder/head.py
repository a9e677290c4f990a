"""The head: the one matrix by which a model differs from its base.

In: a loaded model whose card names its base's space. Out: the matrix that turns full vectors of
the base, as they are served, into the model's own. Stored vectors can follow a new head without
their texts.

Shapes: D full width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from services.encoder.loaded import LoadedEmbedder
from services.shared.errors import WrongState
from services.shared.model import TextModel
from services.shared.vectors import Array

# Of each number of weight @ weight.T. A rotation in float32 is a thousand times closer to the
# identity, a dense head that was trained at all is far from it.
_ORTHOGONAL_WITHIN = 1e-3


@dataclass(frozen=True, slots=True)
class Head:
    """What turns full vectors of one space into those of another.

    Args:
        space_id: of the model.
        base_space_id: of the vectors that it takes.
        weight_DD: float32, applied as `normalize(vectors @ weight.T)`.
        is_orthogonal: it keeps every full-size score.
    """

    space_id: str
    base_space_id: str
    weight_DD: Array
    is_orthogonal: bool


def read_head(model: LoadedEmbedder) -> Head:
    """Read a model's head, as it is served; a second's work for a wide one.

    Raises:
        WrongState: the model is no head over a known base.
    """
    text_model = model.text_model
    base_space_id = text_model.base_space_id
    if base_space_id is None:
        raise WrongState(
            f"model {model.id!r} is no head over a known base; models that the trainer's adaptor "
            "makes are, and have base_space_id in their card"
        )
    weight_DD = _last_matrix(text_model)
    if weight_DD is None:
        raise WrongState(
            f"model {model.id!r} has base_space_id in its card, but does not end in a head: "
            "a square Dense without bias and activation, then Normalize"
        )
    difference_DD = weight_DD @ weight_DD.T - np.eye(len(weight_DD), dtype=np.float32)
    is_orthogonal = bool(np.abs(difference_DD).max() <= _ORTHOGONAL_WITHIN)
    return Head(text_model.space_id, base_space_id, weight_DD, is_orthogonal)


def _last_matrix(text_model: TextModel) -> Array | None:
    """Return the weight of a head as the trainer writes it, Dense and Normalize; None if other.

    From the loaded modules, not from the folder, which may have gone since. Whatever arithmetic
    was chosen for the network, heads stay in float32.
    """
    modules: list[Any] = list(text_model.transformer)
    names = [type(module).__name__ for module in modules[-2:]]
    if names != ["Dense", "Normalize"] or text_model.pre_op != "none":
        return None
    dense = modules[-2]
    is_linear = type(dense.activation_function).__name__ == "Identity"
    if not is_linear or dense.linear.bias is not None or dense.use_residual:
        return None
    weight: Array = dense.linear.weight.detach().cpu().numpy()
    return weight if weight.shape == (text_model.full, text_model.full) else None
