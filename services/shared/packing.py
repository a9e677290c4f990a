"""Packing: texts of any lengths in one row of tokens, with no padding between them.

Where a text ends is told to the attention by the lengths of the texts, so the architecture's own
code runs unchanged: transformers calls the function registered here for every layer. Texts come
sorted by length, so those of equal length lie side by side and share one attention call.

Shapes: T tokens of all texts together, H heads, L tokens of one text, B texts, D numbers a head.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

Tokens = list[int]


class PairTokens(Tokens):
    """Token ids of a query and a document as one text.

    Args:
        types: for each token which of the two it is of, as the model was taught; empty for a model
            that does not ask.
    """

    def __init__(self, tokens: Sequence[int], types: Sequence[int]) -> None:
        super().__init__(tokens)
        self.types = types


def type_ids(batch: Sequence[Tokens]) -> list[int]:
    """Return the types of all tokens of a batch in one row; empty where there are none."""
    return [kind for tokens in batch if isinstance(tokens, PairTokens) for kind in tokens.types]


PACKED = "matryoshka_packed"
# What transformers may hand to an attention beside the usual, to change its scores.
_CHANGES_SCORES = {"softcap", "s_aux", "position_bias", "attention_bias", "head_mask"}


def register() -> None:
    """Make the attention known to transformers, without a mask: boundaries come with the call."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, lambda *_, **__: None)


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    attention_mask: object,
    text_groups: list[tuple[int, int]],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each text; texts of equal length lie side by side and share one call.

    Attention weights are never dropped out: in training that would take CPUs a quarter to a third
    of a step, most of it for random numbers, and takes torch's fast attention away. Dropout
    elsewhere in the network stays. `dropout` is there because transformers hands it over.

    Raises:
        ValueError: the architecture wants something that changes scores and is not done here.
    """
    wanted = sorted(k for k in others.keys() & _CHANGES_SCORES if others[k] is not None)
    if wanted:
        raise ValueError(f"packed attention does not do {', '.join(wanted)}")
    outputs = []
    is_causal = bool(getattr(module, "is_causal", False))
    dtype = query_1HTD.dtype
    if torch.is_autocast_enabled("cpu") and query_1HTD.device.type == "cpu":
        # Its gradients on CPUs take three times as long in bfloat16 as in float32.
        query_1HTD, key_1HTD, value_1HTD = (x.float() for x in (query_1HTD, key_1HTD, value_1HTD))
    # Split, not sliced: the gradient of each slice would be as large as the whole.
    sizes = [length * count for length, count in text_groups]
    parts = (torch.split(x[0], sizes, dim=1) for x in (query_1HTD, key_1HTD, value_1HTD))
    for (length, count), *group in zip(text_groups, *parts, strict=True):
        query, key, value = (
            x_HTD.reshape(x_HTD.shape[0], count, length, -1).transpose(0, 1) for x_HTD in group
        )
        mask_LL = _near(length, sliding_window, is_causal, query.device)
        with torch.autocast(query.device.type, enabled=False):
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask_LL, scale=scaling,
                is_causal=is_causal and mask_LL is None, enable_gqa=key.shape[1] != query.shape[1],
            )  # fmt: skip
        outputs.append(attended.transpose(1, 2).reshape(length * count, *attended.shape[1::2]))
    return torch.cat(outputs)[None].to(dtype), None


def _near(
    length: int, window: int | None, is_causal: bool, device: torch.device
) -> torch.Tensor | None:
    """Which tokens each token sees where a layer has a window: those less than it away.

    transformers hands layers their window in this sense, whatever it counts in configs.
    """
    if window is None or length <= window:
        return None
    places_L = torch.arange(length, device=device)
    before_LL = places_L[:, None] - places_L[None, :]
    if is_causal:
        return (before_LL >= 0) & (before_LL < window)
    return before_LL.abs() < window


def split_by_tokens(texts: Sequence[Tokens], batch_tokens: int) -> list[list[int]]:
    """Group texts of similar length into batches of at most `batch_tokens` tokens.

    The budget counts the longest text times the number of texts, so it bounds padded batches
    too. One text over the budget still gets a batch of its own.

    Returns:
        Rows of `texts` in each batch; every row once.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        longest = max(longest, len(texts[row]))
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = len(texts[row])
        batches[-1].append(row)
    return batches
