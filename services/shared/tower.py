"""A tower: the tokenizer, the limits and the modules that turn texts of a role into vectors.

Most models have one tower for every role; a two-tower model has one for queries and another for
documents, each with its own tokenizer, longest text and forward pass, into one space. Built from
loaded sentence-transformers modules; how the forward pass runs is decided by `choice.py`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from services.shared.calibration import sample_texts
from services.shared.errors import InvalidRequest
from services.shared.packing import Tokens

Role = Literal["none", "query", "document"]
Side = Literal["end", "start"]

# What is promised where a model states no bound; no request may have as many tokens.
_UNBOUNDED_TOKENS = 1_000_000


class TowerTokens(Tokens):
    """Token ids that know which tower of a two-tower model reads them."""

    def __init__(self, tokens: Sequence[int], role: Role) -> None:
        super().__init__(tokens)
        self.role: Role = role


class Tower:
    """One tower.

    `answer` names what the last module leaves in the features.

    Args:
        modules: of sentence-transformers, in order: a transformer with its pooling, or a table of
            static embeddings, then heads.
        device: a torch device, where the modules are.
    """

    answer = "sentence_embedding"

    def __init__(self, modules: Sequence[Any], device: str) -> None:
        # Typed loosely: sentence-transformers builds its modules from the folder's files.
        self.modules: list[Any] = list(modules)
        self.device = device
        self.tokenizer: Any = self.modules[0].tokenizer
        self.is_static = type(self.modules[0]).__name__ == "StaticEmbedding"
        modalities = getattr(self.modules[0], "modality_config", {})
        # Such a model reads every text through its chat template.
        self._is_chat = "message" in modalities
        # Pictures are read as tokens among others; a network of their own, as CLIP has, is not.
        self.takes_images = any(
            modalities.get(kind, {}).get("method") == "forward"
            for kind in ("image", ("image", "text"))
        )
        self._backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        self.max_tokens = self._find_max_tokens()
        self._prefix, self._suffix = self._special_tokens()

    @property
    def network(self) -> Any:  # noqa: ANN401 (any architecture)
        """The transformers model; None for static embeddings."""
        return getattr(self.modules[0], "auto_model", None)

    @property
    def pooling(self) -> str | None:
        """How tokens' vectors become the text's; None where no module says so, or several ways."""
        modes = getattr(self.modules[1], "pooling_mode", None) if len(self.modules) > 1 else None
        if isinstance(modes, list | tuple):
            modes = modes[0] if len(modes) == 1 else None
        return modes if isinstance(modes, str) else None

    @property
    def heads(self) -> list[Any]:
        """What follows the pooling, in order: each takes features and returns them."""
        return self.modules[2:]

    @property
    def first_position(self) -> int:
        """Where positions start: RoBERTa and its kin count from the padding token's id plus one."""
        padding: int | None = getattr(self._position_table, "padding_idx", None)
        return 0 if padding is None else padding + 1

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Turn texts into token ids with special tokens and the prompt, never cut."""
        if self.is_static:
            encodings = self.tokenizer.encode_batch_fast(
                [prompt + text for text in texts], add_special_tokens=False
            )
            return [encoding.ids for encoding in encodings]
        if self._is_chat:
            return [self._render(text, prompt) for text in texts]
        if self._backend is not None:
            # Without transformers' wrapper, which takes half as long again.
            backend = self._uncut()
            encodings = backend.encode_batch_fast([prompt + text for text in texts])
            return [encoding.ids for encoding in encodings]
        # Not verbose: over-long texts are our callers' to refuse or to cut, not to warn of.
        encoding = self.tokenizer([prompt + text for text in texts], verbose=False)
        return list(encoding["input_ids"])

    def sample(self, count: int, seed: int) -> list[Tokens]:
        """Read texts to measure with, cut to what the tower takes; the same seed, the same ones."""
        return [self.cut_tokens(ids) for ids in self.tokenize(sample_texts(count, seed))]

    def likeness(self, answers_BD: torch.Tensor, exact_BD: torch.Tensor) -> float:
        """Return how near answers are to the exact ones, at most 1: the smallest cosine."""
        return float(functional.cosine_similarity(answers_BD, exact_BD, dim=1).min())

    def wrap(self, tokens: Sequence[int]) -> Tokens:
        """Put special tokens around a caller's own token ids.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        size = self.tokenizer.get_vocab_size() if self.is_static else len(self.tokenizer)
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token ids must be between 0 and {size - 1}, got {wrong}", "input"
            )
        return [*self._prefix, *tokens, *self._suffix]

    def cut_tokens(self, tokens: Tokens, side: Side = "end") -> Tokens:
        """Drop tokens at one side of the text so that `max_tokens` are left, special ones kept."""
        if len(tokens) <= self.max_tokens:
            return tokens
        if side == "end":
            return tokens[: self.max_tokens - len(self._suffix)] + self._suffix
        return self._prefix + tokens[len(tokens) - self.max_tokens + len(self._prefix) :]

    def _render(self, text: str, prompt: str) -> Tokens:
        """One text in the model's chat template, where a prompt is the system's message."""
        features = self.modules[0].preprocess(
            [text],
            prompt=prompt or None,
            processing_kwargs={"text": {"truncation": False, "verbose": False}},
        )
        ids: Tokens = features["input_ids"][0].tolist()
        return ids

    def _uncut(self) -> Any:  # noqa: ANN401 (a library's tokenizer)
        """The fast tokenizer; whoever else uses it may have told it to cut or to pad."""
        if self._backend.truncation or self._backend.padding:
            self._backend.no_truncation()
            self._backend.no_padding()
        return self._backend

    def _special_tokens(self) -> tuple[Tokens, Tokens]:
        """Find what the tokenizer puts before and after each text."""
        if self.is_static:
            return [], []
        empty, word = self.tokenize(["", "a"])
        num_before = next(
            (i for i, (a, b) in enumerate(zip(empty, word, strict=False)) if a != b), len(empty)
        )
        return empty[:num_before], empty[num_before:]

    def _find_max_tokens(self) -> int:
        """The tokenizer's bound, and never more than there are positions."""
        bound = min(self.modules[0].max_seq_length or _UNBOUNDED_TOKENS, _UNBOUNDED_TOKENS)
        table = self._position_table
        if isinstance(table, torch.nn.Embedding):
            # Configs of RoBERTa's kin count the offset in: 514 rows are 512 positions.
            bound = min(bound, table.num_embeddings - self.first_position)
        return int(bound)

    @property
    def _position_table(self) -> Any:  # noqa: ANN401 (any architecture)
        return getattr(getattr(self.network, "embeddings", None), "position_embeddings", None)
