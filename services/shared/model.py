"""A text model: tokens in, full vectors out, without padding where the architecture allows it.

The encoder serves it and the trainer trains it, so both make the same vectors. Loading is
sentence-transformers' work, and it is the oracle too: at load, this module's forward pass must
give its vectors on probe texts, or the model is refused. What is fastest on this machine
(float32 or bfloat16) is measured at load, within a bound on fidelity, never assumed.

Shapes: B texts, T tokens of all texts together, D full width, H heads, L tokens of one text.
"""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional
from transformers.utils import logging as transformers_logging

from services.shared import packing
from services.shared.card import Card, read_card
from services.shared.errors import InvalidRequest
from services.shared.folder import check_folder, space_id
from services.shared.packing import PACKED, Tokens, split_by_tokens
from services.shared.vectors import Array, PreOp, apply_pre_op

log = logging.getLogger(__name__)

Role = Literal["none", "query", "document"]
Side = Literal["end", "start"]
Precision = Literal["auto", "float32", "bfloat16"]

# Against sentence-transformers in float32, on the probe texts. Rounding alone stays above both;
# a wrong pooling, mask or position falls far below.
_MIN_COSINE_FLOAT32 = 0.9999
_MIN_COSINE_BFLOAT16 = 0.999
_PACKED_POOLINGS = {"mean", "cls", "lasttoken"}
# Names that model folders use for the prompt of a role, the first one found wins.
_PROMPT_NAMES = {"query": ("query", "search_query"), "document": ("document", "passage", "corpus")}
_PROBE_COPIES = 10
_PROBE_RUNS = 5
_PROBES = [
    "a",
    "What keeps a prefix of a vector useful?",
    "Nested vectors are trained so that their first numbers rank well by themselves.",
    " ".join(["Longer documents exercise positions, pooling and attention boundaries."] * 6),
]


class TextModel:
    """A loaded model.

    Args:
        folder: in the Sentence Transformers layout.
        precision: "auto" measures and chooses.
        device: a torch device; None takes an accelerator if there is one.

    Raises:
        InvalidRequest: the folder cannot be loaded safely, or not faithfully.
    """

    def __init__(
        self, folder: Path, precision: Precision = "auto", device: str | None = None
    ) -> None:
        check_folder(folder)
        self.folder = folder
        self.card: Card | None = read_card(folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Typed loosely: sentence-transformers builds its modules from the folder's files.
        self.transformer: Any = _load(folder, self.device)
        self.pre_op: PreOp = self.card.pre_op if self.card else "none"
        self.prompts = _role_prompts(self.transformer, self.card)
        self.space_id = space_id(folder, self.pre_op, self.prompts)
        self.full = int(self.transformer.get_embedding_dimension() or 0)
        self._check_card()
        self._prefix, self._suffix = self._special_tokens()
        self.max_tokens = int(self.transformer.max_seq_length or 1_000_000)
        self._run: Callable[[Sequence[Tokens]], torch.Tensor] = self._padded
        self.engine = self._choose(precision)

    def tokenize(self, texts: Sequence[str], role: Role = "none") -> list[Tokens]:
        """Turn texts into token ids with special tokens and the role's prompt, never cut."""
        prompt = self.prompts.get(role, "")
        if not self._is_static:
            # Not verbose: over-long texts are our callers' to refuse or to cut, not to warn of.
            encoding = self.transformer.tokenizer([prompt + text for text in texts], verbose=False)
            return list(encoding["input_ids"])
        encodings = self.transformer.tokenizer.encode_batch(
            [prompt + text for text in texts], add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def wrap(self, tokens: Sequence[int]) -> Tokens:
        """Put special tokens around a caller's own token ids.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        tokenizer = self.transformer.tokenizer
        size = tokenizer.get_vocab_size() if self._is_static else len(tokenizer)
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

    @torch.inference_mode()
    def encode(self, batch: Sequence[Tokens]) -> Array:
        """Run the forward pass for one batch that fits in memory.

        Returns:
            vectors_BD: float32, after the pre-op, not cut and not normalised beyond what the
            model itself does; rows follow `batch`.
        """
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        vectors_BD = np.empty((len(batch), self.full), dtype=np.float32)
        vectors_BD[order] = self.forward([batch[i] for i in order]).cpu().numpy()
        return apply_pre_op(vectors_BD, self.pre_op)

    def encode_texts(
        self,
        texts: Sequence[str],
        role: Role = "none",
        batch_tokens: int = 4096,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Array:
        """Encode any number of texts, over-long ones cut, in batches of `batch_tokens` tokens.

        Returns:
            vectors_BD: as `encode`.
        """
        tokens = [self.cut_tokens(ids) for ids in self.tokenize(texts, role)]
        vectors_BD = np.empty((len(tokens), self.full), dtype=np.float32)
        done = 0
        for rows in split_by_tokens(tokens, batch_tokens):
            vectors_BD[rows] = self.encode([tokens[i] for i in rows])
            done += len(rows)
            on_progress(done)
        return vectors_BD

    def forward(self, batch: Sequence[Tokens]) -> torch.Tensor:
        """Run the model with gradients, if they are on, over texts sorted by length.

        Returns:
            vectors_BD: float32 on the model's device, before the pre-op.
        """
        return self._run(batch)

    # The three forward passes.

    def _packed(self, batch: Sequence[Tokens]) -> torch.Tensor:
        """All texts in one row of tokens; attention stays inside each text."""
        lengths = [len(tokens) for tokens in batch]
        groups = [(length, len(list(same))) for length, same in groupby(lengths)]
        flat = torch.tensor([token for tokens in batch for token in tokens], device=self.device)
        positions = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        hidden_TD = (
            self.transformer[0]
            .auto_model(
                input_ids=flat[None],
                position_ids=positions[None] + self._first_position,
                attention_mask=None,
                text_groups=groups,
            )
            .last_hidden_state[0]
        )
        pooled, start = [], 0
        for length, count in groups:
            hidden_BLD = hidden_TD[start : start + length * count].view(count, length, -1)
            pooled.append(_pool(hidden_BLD, self._pooling).float())
            start += length * count
        features = {"sentence_embedding": torch.cat(pooled)}
        for module in list(self.transformer)[2:]:
            features = module(features)
        return features["sentence_embedding"].float()

    def _padded(self, batch: Sequence[Tokens]) -> torch.Tensor:
        """sentence-transformers' own way: every text as long as the longest."""
        encoding = self.transformer.tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt")
        features = self.transformer(dict(encoding.to(self.device)))
        vectors_BD: torch.Tensor = features["sentence_embedding"].float()
        return vectors_BD

    def _static(self, batch: Sequence[Tokens]) -> torch.Tensor:
        """Embedding bags: no attention, so tokens need no order and no padding."""
        starts = np.cumsum([0, *(len(tokens) for tokens in batch)])[:-1]
        features = self.transformer(
            {
                "input_ids": torch.tensor([t for ids in batch for t in ids], device=self.device),
                "offsets": torch.tensor(starts, device=self.device),
            }
        )
        vectors_BD: torch.Tensor = features["sentence_embedding"].float()
        return vectors_BD

    # Choosing between them, once, at load.

    def _choose(self, precision: Precision) -> str:
        oracle_BD = torch.from_numpy(
            self.transformer.encode(_PROBES, normalize_embeddings=False, show_progress_bar=False)
        )
        if self._is_static:
            self._run = self._static
            self._check_fidelity(oracle_BD, _MIN_COSINE_FLOAT32)
            return "static float32"
        way = "packed" if self._try_packed(oracle_BD) else "padded"
        if way == "padded":
            self._run = self._padded
            self._check_fidelity(oracle_BD, _MIN_COSINE_FLOAT32)
        if precision == "float32" or (precision == "auto" and not self._bfloat16_wins(oracle_BD)):
            return f"{way} float32"
        self._to_bfloat16()
        return f"{way} bfloat16"

    def _try_packed(self, oracle_BD: torch.Tensor) -> bool:
        modules = list(self.transformer)
        pooling = getattr(modules[1], "pooling_mode", None) if len(modules) > 1 else None
        if isinstance(pooling, list | tuple):
            pooling = pooling[0] if len(pooling) == 1 else None
        if pooling not in _PACKED_POOLINGS:
            return False
        network = modules[0].auto_model
        before = network.config._attn_implementation
        self._pooling = str(pooling)
        self._first_position = _first_position(network)
        try:
            network.set_attn_implementation(PACKED)
            self._run = self._packed
            self._check_fidelity(oracle_BD, _MIN_COSINE_FLOAT32)
        except (InvalidRequest, TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
            log.info("packing does not fit this architecture, padding instead: %s", error)
            network.set_attn_implementation(before)
            return False
        return True

    def _bfloat16_wins(self, oracle_BD: torch.Tensor) -> bool:
        """Measure both on the probe texts; bfloat16 must be faithful and faster."""
        slow_s = self._time_probes()
        self._to_bfloat16()
        try:
            self._check_fidelity(oracle_BD, _MIN_COSINE_BFLOAT16)
            wins = self._time_probes() < slow_s
        except InvalidRequest:
            wins = False
        if not wins:
            exact: Any = _load(self.folder, self.device)
            self.transformer[0].auto_model.float().load_state_dict(exact[0].auto_model.state_dict())
        return wins

    def _to_bfloat16(self) -> None:
        # Pooling and heads stay in float32: they cost nothing and keep rotations exact.
        self.transformer[0].auto_model.to(torch.bfloat16)

    @torch.inference_mode()
    def _time_probes(self) -> float:
        """Return the best of some runs over a batch that is large enough to be typical, s."""
        probes = sorted((self.cut_tokens(tokens) for tokens in self.tokenize(_PROBES)), key=len)
        batch = [tokens for tokens in probes for _ in range(_PROBE_COPIES)]
        # On a CPU its own time is what counts: another process beside it would blur the clock.
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        seconds = []
        for _ in range(_PROBE_RUNS):
            start = clock()
            self._run(batch).cpu()
            seconds.append(clock() - start)
        return min(seconds)

    @torch.inference_mode()
    def _check_fidelity(self, oracle_BD: torch.Tensor, min_cosine: float) -> None:
        # "none" is what the oracle was asked with, so a default prompt would show here.
        batch = [self.cut_tokens(tokens) for tokens in self.tokenize(_PROBES)]
        cosine = functional.cosine_similarity(self._run(batch).cpu(), oracle_BD, dim=1).min()
        if not cosine >= min_cosine:
            raise InvalidRequest(
                f"cosine to sentence-transformers is {float(cosine):.6f}, at least {min_cosine} "
                "is needed; this model cannot be served faithfully"
            )

    def _check_card(self) -> None:
        if not self.card:
            return
        if self.card.dims[-1] != self.full:
            raise InvalidRequest(
                f"the card's widest size is {self.card.dims[-1]}, the model's is {self.full}"
            )
        if self.card.space_id != self.space_id:
            raise InvalidRequest(
                f"the folder's files do not match its card: space_id {self.space_id}, the card "
                f"says {self.card.space_id}; they were changed after training"
            )

    @property
    def declared_dims(self) -> tuple[int, ...]:
        """Sizes that the model promises, ascending, full last; empty if it promises none."""
        if self.card:
            return self.card.dims
        config = getattr(getattr(self.transformer[0], "auto_model", None), "config", None)
        dims = getattr(config, "matryoshka_dimensions", None) or ()
        return tuple(sorted({*map(int, dims), self.full})) if dims else ()

    @property
    def _is_static(self) -> bool:
        return type(self.transformer[0]).__name__ == "StaticEmbedding"

    def _special_tokens(self) -> tuple[Tokens, Tokens]:
        """Find what the tokenizer puts before and after each text."""
        if self._is_static:
            return [], []
        empty = list(self.transformer.tokenizer("")["input_ids"])
        word = list(self.transformer.tokenizer("a")["input_ids"])
        num_before = next(
            (i for i, (a, b) in enumerate(zip(empty, word, strict=False)) if a != b), len(empty)
        )
        return empty[:num_before], empty[num_before:]


def _load(folder: Path, device: str) -> SentenceTransformer:
    packing.register()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise InvalidRequest(f"{folder.name} could not be loaded: {error}") from error


def _role_prompts(transformer: SentenceTransformer, card: Card | None) -> dict[str, str]:
    if card:
        return {role: prompt for role, prompt in card.prompts.items() if prompt}
    known = {name: text or "" for name, text in (transformer.prompts or {}).items()}
    found = {
        role: next((known[name] for name in names if known.get(name)), "")
        for role, names in _PROMPT_NAMES.items()
    }
    return {role: prompt for role, prompt in found.items() if prompt}


def _first_position(network: Any) -> int:  # noqa: ANN401 (any architecture)
    """RoBERTa and its kin count positions from the padding token's id plus one."""
    table = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _pool(hidden_BLD: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return hidden_BLD[:, 0]
    if pooling == "lasttoken":
        return hidden_BLD[:, -1]
    return hidden_BLD.float().mean(dim=1)
