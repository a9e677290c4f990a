"""The ways to run a tower's forward pass: packed, padded, or as bags of static embeddings.

In: token ids of texts, sorted by length. Out: their full vectors, with gradients if they are on,
before the pre-op; of pairs, one number each. Each way is built from a tower and knows nothing of
the others; `choice.py` decides between them. A new way is a class like these.

Shapes: B texts, T tokens of all texts together, D full width, L tokens of one text.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from services.shared.errors import InvalidRequest
from services.shared.packing import PACKED, PairTokens, Tokens, register, type_ids
from services.shared.tower import Tower

_POOLINGS = {"mean", "cls", "lasttoken"}


class Way(Protocol):
    """One way to run a tower's forward pass."""

    name: str
    """The first word of the engine's name, for example "packed"."""

    def __call__(self, batch: Sequence[Tokens]) -> torch.Tensor:
        """Return vectors_BD, float32 on the model's device, rows as `batch`."""
        ...


class Packed:
    """All texts in one row of tokens; attention stays inside each text.

    Building it switches the tower's network to packed attention; `close` switches it back.

    Raises:
        InvalidRequest: the tower's pooling or architecture cannot be packed.
    """

    name = "packed"

    def __init__(self, tower: Tower) -> None:
        if tower.is_static or tower.takes_images:
            raise InvalidRequest("packing is for text transformers")
        if tower.pooling not in _POOLINGS:
            raise InvalidRequest(f"packing knows the poolings {', '.join(sorted(_POOLINGS))}")
        self.pooling: str = tower.pooling
        self._tower = tower
        self._first_position = tower.first_position
        self._before = tower.network.config._attn_implementation
        register()
        tower.network.set_attn_implementation(PACKED)

    def close(self) -> None:
        self._tower.network.set_attn_implementation(self._before)

    def __call__(self, batch: Sequence[Tokens]) -> torch.Tensor:
        device = self._tower.device
        lengths = [len(tokens) for tokens in batch]
        groups = [(length, len(list(same))) for length, same in groupby(lengths)]
        flat = torch.tensor([token for tokens in batch for token in tokens], device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        types = type_ids(batch)
        hidden_TD = self._tower.network(
            input_ids=flat[None],
            position_ids=positions[None] + self._first_position,
            attention_mask=None,
            text_groups=groups,
            **({"token_type_ids": torch.tensor([types], device=device)} if types else {}),
        ).last_hidden_state[0]
        # Split, not sliced: the gradient of each slice would be as large as the whole.
        parts = hidden_TD.split([length * count for length, count in groups])
        pooled = [
            _pool(part.view(count, length, -1), self.pooling).float()
            for part, (length, count) in zip(parts, groups, strict=True)
        ]
        features = {"sentence_embedding": torch.cat(pooled)}
        for module in self._tower.heads:
            features = module(features)
        return features["sentence_embedding"].float()


class Padded:
    """sentence-transformers' own way: every text as long as the longest."""

    name = "padded"

    def __init__(self, tower: Tower) -> None:
        self._tower = tower

    def __call__(self, batch: Sequence[Tokens]) -> torch.Tensor:
        tower = self._tower
        columns: dict[str, list[Any]] = {"input_ids": list(batch)}
        if type_ids(batch):
            columns["token_type_ids"] = [t.types for t in batch if isinstance(t, PairTokens)]
        features = dict(tower.tokenizer.pad(columns, return_tensors="pt").to(tower.device))
        for module in tower.modules:
            features = module(features)
        vectors_BD: torch.Tensor = features[tower.answer].float()
        return vectors_BD


class Static:
    """Embedding bags: no attention, so tokens need no order and no padding."""

    name = "static"

    def __init__(self, tower: Tower) -> None:
        self._tower = tower

    def __call__(self, batch: Sequence[Tokens]) -> torch.Tensor:
        device = self._tower.device
        starts = np.cumsum([0, *(len(tokens) for tokens in batch)])[:-1]
        flat = [token for tokens in batch for token in tokens]
        features = {
            # The type is said, as no token at all would give a tensor of floats.
            "input_ids": torch.tensor(flat, dtype=torch.long, device=device),
            "offsets": torch.tensor(starts, device=device),
        }
        for module in self._tower.modules:
            features = module(features)
        vectors_BD: torch.Tensor = features["sentence_embedding"].float()
        return vectors_BD


def _pool(hidden_BLD: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return hidden_BLD[:, 0]
    if pooling == "lasttoken":
        return hidden_BLD[:, -1]
    return hidden_BLD.float().mean(dim=1)
