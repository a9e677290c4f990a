"""How many tokens the texts have, and how much arithmetic the model needs for them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens and floating-point operations of a list of texts, after any cut.

    Args:
        flops: of the encoder's layers: 2 N + 4 L d S for each token of a text of S tokens, N
            weights in all layers, L layers of width d. Padding is not counted: it is waste.
    """

    texts: int
    tokens: int
    median: int
    longest: int
    flops: float


def count(model: Path, texts: list[str], max_tokens: int) -> Counted:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    lengths = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])
    config = json.loads((model / "config.json").read_text())
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    weights = layers * (4 * width**2 + 2 * width * config["intermediate_size"])
    flops = float((lengths * (2 * weights + 4 * layers * width * lengths)).sum())
    return Counted(
        len(texts), int(lengths.sum()), int(np.median(lengths)), int(lengths.max()), flops
    )
