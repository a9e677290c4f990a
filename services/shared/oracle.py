"""The oracle: what sentence-transformers makes of probe texts, in float32.

In: a loaded model and one of its towers. Out: the probe texts as tokens, and the library's own
vectors of them, which every way to run the forward pass must reproduce.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.shared.packing import Tokens
from services.shared.tower import Role, Tower

# Layers that see only near tokens are tested by a text twice as long as they see; a window beyond
# this would make that test too slow.
MAX_WINDOW = 1024

_PROBES = [
    "a",
    "What keeps a prefix of a vector useful?",
    "Nested vectors are trained so that their first numbers rank well by themselves.",
    " ".join(["Longer documents exercise positions, pooling and attention boundaries."] * 6),
]


@dataclass(frozen=True, slots=True)
class Probe:
    """What every way must reproduce.

    Args:
        batch: the probe texts as tokens, in each role.
        oracle_BD: sentence-transformers' vectors of them, in float32.
    """

    batch: list[Tokens]
    oracle_BD: torch.Tensor


def ask(
    transformer: Any,  # noqa: ANN401 (sentence-transformers builds it from the folder's files)
    tower: Tower,
    roles: Sequence[tuple[Role, str]],
    has_towers: bool,
) -> Probe:
    """Encode the probe texts with the library's own `encode`.

    Args:
        transformer: the model as the library loaded it, unchanged.
        tower: the one that reads these roles.
        roles: each with its prompt.
        has_towers: whether the library must be told the role.
    """
    texts = probe_texts(tower)
    batch: list[Tokens] = []
    oracle_BD = []
    for role, prompt in roles:
        batch += [tower.cut_tokens(ids) for ids in tower.tokenize(texts, prompt)]
        vectors_BD = transformer.encode(
            texts,
            # "none" is left to the library, so that a default prompt that we do not know of would
            # show; for a role even an empty prompt is said, which keeps a default away.
            prompt=None if role == "none" else prompt,
            normalize_embeddings=False,
            show_progress_bar=False,
            **({"task": role} if has_towers else {}),
        )
        oracle_BD.append(torch.from_numpy(vectors_BD))
    return Probe(batch, torch.cat(oracle_BD))


def probe_texts(tower: Tower) -> list[str]:
    """Return texts that exercise what a tower could do wrong; the last is longer than any window.

    The long text is of words in no order, as tokens that are all alike look the same through any
    window.
    """
    widest = window(tower)
    if not widest or widest > MAX_WINDOW:
        return _PROBES
    words = " ".join(_PROBES).split()
    return [*_PROBES, " ".join(random.Random(0).choices(words, k=2 * widest + 2))]


def window(tower: Tower) -> int:
    """The widest window of attention that is narrower than the longest text; 0 for none."""
    windows: list[int] = []
    if tower.network is not None:
        for module in tower.network.modules():
            window = getattr(module, "sliding_window", None)
            if isinstance(window, int) and window < tower.max_tokens:
                windows.append(window)
    return max(windows, default=0)
