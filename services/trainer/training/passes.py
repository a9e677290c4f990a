"""Texts and pictures through a model in training: packed, and in parts where they are many.

What a forward pass keeps for its gradients grows with its tokens. A batch of more tokens than
`tokens_at_once` goes in parts: each without keeping anything, then the loss of the whole batch and
its gradient by the vectors, and then each part again with its share of that gradient, from the same
random state, so that dropout is the same. Memory is that of one part, however large the batch; the
price is a second forward pass.

Source: Gao et al. 2021, arXiv:2101.06983 (GradCache); checkpointing by part is the same.
Shapes: B texts, D full width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from services.shared.flops import Cost
from services.shared.model import TextModel
from services.shared.packing import Tokens, split_by_tokens

Arithmetic = Literal["float32", "bfloat16"]


class Passes:
    """The forward pass of a model in training.

    Args:
        model: of one tower, in float32: its weights and their gradients stay so.
        tokens_at_once: most tokens whose activations are kept at the same time; a single longer
            text still goes whole.
        arithmetic: of products and attention; sums, norms and the loss are in float32 anyway.
    """

    def __init__(
        self, model: TextModel, tokens_at_once: int, arithmetic: Arithmetic = "float32"
    ) -> None:
        self._model = model
        self._tokens_at_once = tokens_at_once
        self.arithmetic = arithmetic
        tower = model.tower("none")
        self.is_static, self.device = tower.is_static, model.device
        self._cost = Cost.of(tower.network)
        self.num_tokens = 0
        self.num_flops = 0.0
        """Operations that one forward pass over all texts so far needed."""

    def __call__(self, texts: Sequence[Tokens]) -> torch.Tensor:
        """Return vectors_BD after the pre-op, float32, with gradients, rows as `texts`."""
        self.num_tokens += sum(map(len, texts))
        self.num_flops += sum(self._cost.flops(len(tokens)) for tokens in texts)
        parts = self._split(texts)
        vectors = [self._run_later(part) if len(parts) > 1 else self._run(part) for part in
                   ([texts[row] for row in rows] for rows in parts)]  # fmt: skip
        order = torch.tensor([row for rows in parts for row in rows])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        vectors_BD = torch.cat(vectors)[back.to(self._model.device)]
        if self._model.pre_op == "layer_norm":
            vectors_BD = functional.layer_norm(vectors_BD, vectors_BD.shape[1:])
        return vectors_BD

    def _split(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Return the rows of each part, sorted by length as the model wants them."""
        if sum(len(tokens) for tokens in texts) <= self._tokens_at_once:
            return [sorted(range(len(texts)), key=lambda row: len(texts[row]))]
        return split_by_tokens(texts, self._tokens_at_once)

    def _run(self, part: Sequence[Tokens]) -> torch.Tensor:
        device = torch.device(self._model.device).type
        is_half = self.arithmetic == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            return self._model.forward(part).float()

    def _run_later(self, part: Sequence[Tokens]) -> torch.Tensor:
        """Run without keeping anything; the backward pass runs again."""
        # The random state is kept of the devices of arguments, and tokens are on none.
        place = torch.empty(0, device=self._model.device)
        vectors_BD: torch.Tensor = checkpoint(
            lambda _: self._run(part), place, use_reentrant=False, preserve_rng_state=True
        )
        return vectors_BD


def best_arithmetic(device: str) -> Arithmetic:
    """Return bfloat16 where the machine multiplies it itself, else float32.

    Measured with all-MiniLM-L6-v2 on medquad, on one thread of a CPU with AVX512-BF16: a step of 8
    pairs of up to 256 tokens takes 1.0 s of CPU instead of 1.65 s, the optimizer's 0.12 included.
    960 pairs of up to 96 tokens in 60 steps, one seed, nDCG@10 of 400 queries at
    16/32/64/128/256/384: .788/.861/.883/.893/.901/.901, and in float32 with dropout of attention
    weights .785/.861/.881/.894/.904/.902.
    """
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_it else "float32"
