"""Our own engine, called directly: what the service runs, without its wires."""

from collections.abc import Sequence
from typing import Any

from bench.peers.engine import Given, Way, installed
from services.shared.model import TextModel


class _Engine:
    """Chooses its own settings at load, and says which."""

    def __init__(self, given: Given) -> None:
        self._model = TextModel(given.model, engines=given.scratch / "engines")
        self._model.max_tokens = min(self._model.max_tokens, given.max_tokens)
        self.settings = self._model.engine
        kinds = ("int8", "bfloat16", "float32")
        self.arithmetic = next((kind for kind in kinds if kind in self.settings), "float32")

    def __call__(self, texts: Sequence[str]) -> Any:  # noqa: ANN401 (an array)
        return self._model.encode_texts(texts)


def prepare(variant: str, given: Given) -> None:
    """Nothing is converted."""


def ways(variant: str, given: Given) -> dict[str, Way]:
    return {"its own choice": Way(lambda: _Engine(given), "float32")}


def versions(variant: str) -> dict[str, str]:
    return installed("torch", "transformers", "tokenizers")
