"""A text model: what is loaded, which tower reads what, and the way from tokens to full vectors.

The encoder serves it and the trainer trains it, so both make the same vectors. Loading is
sentence-transformers' work, and it is the oracle too: at load, the chosen forward pass must give
its vectors on probe texts, or the model is refused.

Shapes: B texts, D full width.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.shared.card import Card, read_card
from services.shared.choice import Choice, Precision, choose
from services.shared.engines import Engines, Trial
from services.shared.errors import InvalidRequest
from services.shared.folder import space_id
from services.shared.images import ImageTokens, embed_image, read_image
from services.shared.loading import check_widths, load_modules
from services.shared.oracle import ask
from services.shared.packing import Tokens, split_by_tokens
from services.shared.safety import check_folder

# Under these names for everyone: a caller speaks of a model, not of its towers.
from services.shared.tower import Role as Role
from services.shared.tower import Side as Side
from services.shared.tower import Tower, TowerTokens
from services.shared.vectors import Array, PreOp, apply_pre_op

# Names that model folders use for the prompt of a role, the first one found wins.
_PROMPT_NAMES = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}
# Enough that batches hold texts of like lengths, few enough that little waits for the first.
_CHUNK_TEXTS = 1024
# Architectures whose recipe wants an operation before the cut that no file of the folder states.
# nomic-embed-text-v1.5 and its kin end in the pooling and leave layer norm and length to the
# caller; a model of that architecture that ends in Normalize (v1) is meant to be taken as it is.
_PRE_OPS: dict[str, PreOp] = {"nomic_bert": "layer_norm"}


class TextModel:
    """A loaded model.

    Args:
        folder: in the Sentence Transformers layout.
        precision: "auto" measures and chooses.
        device: a torch device; None takes an accelerator if there is one.
        engines: folder that keeps what was measured and rounded, for the next start; None measures
            at each start and tries no int8.

    Raises:
        InvalidRequest: the folder cannot be loaded safely, or not faithfully.
    """

    def __init__(
        self,
        folder: Path,
        precision: Precision = "auto",
        device: str | None = None,
        engines: Path | None = None,
    ) -> None:
        check_folder(folder)
        self.folder = folder
        self.card: Card | None = read_card(folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Typed loosely: sentence-transformers builds its modules from the folder's files.
        self.transformer: Any = load_modules(folder, self.device)
        self.towers: dict[Role, Tower] = _towers(self.transformer, self.device)
        self.needs_role = "none" not in self.towers
        self.takes_images = all(tower.takes_images for tower in self.towers.values())
        self.full = self._full_width()
        self._config_dims = _config_dims(self.towers.values(), self.full)
        self.pre_op: PreOp = self.card.pre_op if self.card else self._known_pre_op()
        self.prompts = _role_prompts(self.transformer, self.card)
        self._check_prompts()
        self.space_id = space_id(folder, self.pre_op, self.prompts)
        self._check_card()
        # All oracles first: towers may share a network, which choosing changes.
        probes = {
            tower: ask(self.transformer, tower, self._roles_of(tower), self.needs_role)
            for tower in dict.fromkeys(self.towers.values())
        }
        self._choices: dict[Tower, Choice] = {
            tower: choose(tower, probe, precision, _engines(tower, engines))
            for tower, probe in probes.items()
        }
        chosen = {role: self._choices[tower].engine for role, tower in self.towers.items()}
        self.engine = (
            ", ".join(f"{role} {engine}" for role, engine in sorted(chosen.items()))
            if len(set(chosen.values())) > 1
            else next(iter(chosen.values()))
        )

    def tower(self, role: Role) -> Tower:
        """Find the tower that reads a role's texts.

        Raises:
            InvalidRequest: the model has two towers and no role is given.
        """
        try:
            return self.towers[role]
        except KeyError:
            raise InvalidRequest(
                "this model reads queries and documents with two different towers; set "
                "input_type to 'query' or 'document'",
                "input_type",
            ) from None

    def tokenize(self, texts: Sequence[str], role: Role = "none") -> list[Tokens]:
        """Turn texts into token ids with special tokens and the role's prompt, never cut.

        Raises:
            InvalidRequest: as `tower`.
        """
        tokens = self.tower(role).tokenize(texts, self.prompts.get(role, ""))
        return [self._mark(ids, role) for ids in tokens]

    def wrap(self, tokens: Sequence[int], role: Role = "none") -> Tokens:
        """Put special tokens around a caller's own token ids.

        Raises:
            InvalidRequest: an id is outside the vocabulary, or as `tower`.
        """
        return self._mark(self.tower(role).wrap(tokens), role)

    @property
    def max_tokens(self) -> int:
        """What any role may send; each tower has its own bound. Set it to have texts cut earlier.

        It is no part of the space id: vectors of long texts differ.
        """
        return min(tower.max_tokens for tower in self.towers.values())

    @max_tokens.setter
    def max_tokens(self, at_most: int) -> None:
        for tower in self.towers.values():
            tower.max_tokens = min(tower.max_tokens, at_most)

    def cut_tokens(self, tokens: Tokens, side: Side = "end") -> Tokens:
        """Drop tokens at one side of the text so that its tower's `max_tokens` are left."""
        tower = self._tower_of(tokens)
        if len(tokens) <= tower.max_tokens:
            return tokens
        cut = tower.cut_tokens(tokens, side)
        return TowerTokens(cut, tokens.role) if isinstance(tokens, TowerTokens) else cut

    def read_image(self, data: bytes, role: Role = "none") -> ImageTokens:
        """Turn a PNG, JPEG or WebP file into what the forward pass takes.

        Raises:
            InvalidRequest: the model reads texts only, or the picture cannot be read, or as
                `tower`.
        """
        if not self.takes_images:
            raise InvalidRequest("this model reads texts only; send 'input' as text", "images")
        return read_image(self.tower(role), data, self.prompts.get(role, ""), role)

    @torch.inference_mode()
    def encode(self, batch: Sequence[Tokens]) -> Array:
        """Run the forward pass for one batch that fits in memory, of texts and images.

        Returns:
            vectors_BD: float32, after the pre-op, not cut and not normalised beyond what the
            model itself does; rows follow `batch`.
        """
        vectors_BD = np.empty((len(batch), self.full), dtype=np.float32)
        rows_of: dict[Tower, list[int]] = {}
        for row, tokens in enumerate(batch):
            tower = self._tower_of(tokens)
            if isinstance(tokens, ImageTokens):
                vectors_BD[row] = embed_image(tower, tokens).cpu().numpy()
            else:
                rows_of.setdefault(tower, []).append(row)
        for tower, rows in rows_of.items():
            rows.sort(key=lambda row: len(batch[row]))
            run = self._choices[tower].way
            vectors_BD[rows] = run([batch[row] for row in rows]).cpu().numpy()
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

        def read(start: int) -> list[Tokens]:
            chunk = texts[start : start + _CHUNK_TEXTS]
            return [self.cut_tokens(ids) for ids in self.tokenize(chunk, role)]

        vectors_BD = np.empty((len(texts), self.full), dtype=np.float32)
        starts = range(0, len(texts), _CHUNK_TEXTS)
        done = 0
        # Some texts are tokenised while those before them are run.
        with ThreadPoolExecutor(1, "tokenize") as thread:
            for start, tokens in zip(starts, thread.map(read, starts), strict=True):
                for rows in split_by_tokens(tokens, batch_tokens):
                    chunk_BD = self.encode([tokens[row] for row in rows])
                    vectors_BD[[start + row for row in rows]] = chunk_BD
                    done += len(rows)
                    on_progress(done)
        return vectors_BD

    def forward(self, batch: Sequence[Tokens]) -> torch.Tensor:
        """Run a model of one tower with gradients, if they are on, over inputs sorted by length.

        Returns:
            vectors_BD: float32 on the model's device, before the pre-op.

        Raises:
            InvalidRequest: the model has two towers.
        """
        tower = self.tower("none")
        texts = [tokens for tokens in batch if not isinstance(tokens, ImageTokens)]
        if len(texts) == len(batch):
            return self._choices[tower].way(texts)
        read = iter(self._choices[tower].way(texts) if texts else ())
        return torch.stack(
            [embed_image(tower, t) if isinstance(t, ImageTokens) else next(read) for t in batch]
        )

    @property
    def trials(self) -> list[tuple[Role, Trial]]:
        """What was measured before the engine was chosen, by role; empty without a choice."""
        return [
            (role, trial)
            for role, tower in self.towers.items()
            for trial in self._choices[tower].trials
            if self.needs_role or role == "none"
        ]

    @property
    def declared_dims(self) -> tuple[int, ...]:
        """Sizes that the model promises, ascending, full last; empty if it promises none."""
        return self.card.dims if self.card else self._config_dims

    @property
    def base_space_id(self) -> str | None:
        """The space of the model that this one differs from by its head only, if it is known."""
        return self.card.base_space_id if self.card else None

    def _tower_of(self, tokens: Tokens) -> Tower:
        return self.tower(tokens.role if isinstance(tokens, TowerTokens | ImageTokens) else "none")

    def _mark(self, tokens: Tokens, role: Role) -> Tokens:
        """Let tokens say which tower reads them, where there is more than one."""
        return TowerTokens(tokens, role) if self.needs_role else tokens

    def _roles_of(self, tower: Tower) -> list[tuple[Role, str]]:
        """The roles of a tower with their prompts; those without a difference once."""
        asked: dict[str, Role] = {}
        for role, own in self.towers.items():
            if own is tower:
                asked.setdefault(self.prompts.get(role, ""), role)
        return [(role, prompt) for prompt, role in asked.items()]

    def _full_width(self) -> int:
        widths = {check_widths(tower.modules) for tower in self.towers.values()}
        if len(widths) != 1 or not min(widths):
            raise InvalidRequest(
                f"{self.folder.name} makes vectors of {' and '.join(map(str, sorted(widths)))} "
                "numbers; queries and documents must have the same"
            )
        return widths.pop()

    def _known_pre_op(self) -> PreOp:
        network = self.towers["document"].network
        kind = getattr(getattr(network, "config", None), "model_type", "")
        ends_in = type(list(self.transformer)[-1]).__name__
        return "none" if ends_in == "Normalize" else _PRE_OPS.get(kind, "none")

    def _check_prompts(self) -> None:
        for tower in self.towers.values():
            leaves_out = any(getattr(m, "include_prompt", True) is False for m in tower.modules)
            if leaves_out and any(self.prompts.values()):
                raise InvalidRequest(
                    f"{self.folder.name} pools without the prompt's tokens (include_prompt is "
                    "false), which cannot be served; only models that pool all tokens can"
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


def _towers(transformer: Any, device: str) -> dict[Role, Tower]:  # noqa: ANN401 (see above)
    """Return a model's towers by the roles that they read."""
    first, *heads = list(transformer)
    if type(first).__name__ == "Router":
        routes = first.sub_modules
        return {
            role: Tower([*routes[role], *heads], device)
            for role in ("query", "document")
        }  # fmt: skip
    tower = Tower([first, *heads], device)
    return {"none": tower, "query": tower, "document": tower}


def _role_prompts(transformer: Any, card: Card | None) -> dict[str, str]:  # noqa: ANN401
    if card:
        return {role: prompt for role, prompt in card.prompts.items() if prompt}
    known = {name: text or "" for name, text in (transformer.prompts or {}).items()}
    found = {
        role: next((known[name] for name in names if known.get(name)), "")
        for role, names in _PROMPT_NAMES.items()
    }
    # What the folder wants for a text without a role.
    found["none"] = known.get(transformer.default_prompt_name or "", "")
    return {role: prompt for role, prompt in found.items() if prompt}


def _config_dims(towers: Iterable[Tower], full: int) -> tuple[int, ...]:
    """Return the sizes that the networks' own configurations promise, full last; or none."""
    configs = [getattr(tower.network, "config", None) for tower in towers]
    declared = [getattr(config, "matryoshka_dimensions", None) or () for config in configs]
    # What both towers promise; a size that one cannot be cut to is of no use in a search.
    promised = set.intersection(*({int(dim) for dim in dims} for dims in declared))
    dims = {dim for dim in promised if dim <= full}
    return tuple(sorted({*dims, full})) if dims else ()


def _engines(tower: Tower, folder: Path | None) -> Engines | None:
    return Engines(folder, tower.network) if folder and not tower.is_static else None
