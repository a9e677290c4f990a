"""A cross-encoder: a query and a document together in, one score out.

The encoder serves it for the last stage of a search. Loading is sentence-transformers' work, and
it is the oracle too: at load, tokens and scores of probe pairs must be those of its
`CrossEncoder`, or the model is refused. It runs in float32.

Shapes: B pairs.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from services.shared.cross_encoder_folder import check_cross_encoder
from services.shared.errors import InvalidRequest
from services.shared.folder import space_id
from services.shared.forward import Packed, Way
from services.shared.loading import load_cross_encoder
from services.shared.oracle import MAX_WINDOW, probe_texts, window
from services.shared.packing import PairTokens, Tokens, type_ids
from services.shared.pair_tower import PairTower
from services.shared.tower import Role, Tower
from services.shared.vectors import Array

log = logging.getLogger(__name__)

# Of a probe's number, as a share of how far the oracle's numbers of all probes lie apart, or of
# this much where they lie closer. Another order of sums stays far below; a wrong token, type or
# position is far above.
_MAX_DIFFERENCE = 1e-3
_MIN_SPREAD = 0.1


class CrossEncoder:
    """A loaded cross-encoder.

    Args:
        folder: as sentence-transformers' CrossEncoder reads it.
        device: a torch device; None takes an accelerator if there is one.

    Raises:
        InvalidRequest: the folder cannot be loaded safely, or not faithfully, or it gives more
            than one number.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        check_cross_encoder(folder)
        self.folder = folder
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Typed loosely: sentence-transformers builds its modules from the folder's files.
        self.transformer: Any = load_cross_encoder(folder, self.device)
        if self.transformer.num_labels != 1:
            raise InvalidRequest(
                f"{folder.name} has {self.transformer.num_labels} labels; a cross-encoder that can "
                "be served has one, the score"
            )
        self._tower = PairTower(self.transformer[0], self.device)
        self.towers: dict[Role, Tower] = {"none": self._tower}
        self.max_tokens = self._tower.max_tokens
        # What the folder wants before every query.
        named = self.transformer.default_prompt_name
        self._prompt = str(self.transformer.prompts[named]) if named else ""
        self.space_id = space_id(folder, "none", {"none": self._prompt})
        self._way = self._choose()
        self.engine = f"{self._way.name} float32"

    def tokenize(self, query: str, documents: Sequence[str]) -> tuple[list[PairTokens], list[int]]:
        """Turn a query with each of some documents into tokens, the over-long ones cut.

        Returns:
            The pairs, and the rows that were cut.
        """
        return self._tower.tokenize_pairs(self._prompt + query, documents)

    @torch.inference_mode()
    def score(self, batch: Sequence[Tokens]) -> Array:
        """Run the forward pass for one batch that fits in memory.

        Returns:
            scores_B1: float32, as `CrossEncoder.predict` gives them; rows follow `batch`.
        """
        scores_B1: Array = self.transformer.activation_fn(self._run(self._way, batch)).cpu().numpy()
        return scores_B1

    def _run(self, way: Way, batch: Sequence[Tokens]) -> torch.Tensor:
        """Return the network's own numbers, rows as `batch`."""
        order = sorted(range(len(batch)), key=lambda row: len(batch[row]))
        sorted_B1 = way([batch[row] for row in order])
        numbers_B1 = torch.empty_like(sorted_B1)
        numbers_B1[order] = sorted_B1
        return numbers_B1

    def _choose(self) -> Way:
        """Take the packed way where it is faithful, and padding where only that is."""
        query, *documents = probe_texts(self._tower)
        batch, _ = self.tokenize(query, documents)
        self._check_tokens(query, documents)
        numbers_B = torch.from_numpy(
            self.transformer.predict(
                [(query, document) for document in documents],
                activation_fn=torch.nn.Identity(),
                # One by one, as padding at the wrong side would change the library's own numbers.
                batch_size=1,
                show_progress_bar=False,
            )
        )
        packed: Packed | None = None
        try:
            if window(self._tower) > MAX_WINDOW:
                raise InvalidRequest(f"windows of more than {MAX_WINDOW} tokens are not tested")
            packed = Packed(self._tower)
            self._check_numbers(packed, batch, numbers_B)
            return packed
        # Architectures fail in their own ways on a batch without padding or mask.
        except (
            InvalidRequest, TypeError, ValueError, RuntimeError, IndexError, KeyError,
            AttributeError,
        ) as error:  # fmt: skip
            log.info("packing does not fit this architecture, padding instead: %s", error)
            if packed:
                packed.close()
        padded = PaddedPairs(self._tower)
        self._check_numbers(padded, batch, numbers_B)
        return padded

    @torch.inference_mode()
    def _check_numbers(
        self, way: Way, batch: Sequence[PairTokens], numbers_B: torch.Tensor
    ) -> None:
        difference = float((self._run(way, batch).cpu()[:, 0] - numbers_B).abs().max())
        spread = max(float(numbers_B.max() - numbers_B.min()), _MIN_SPREAD)
        if not difference <= _MAX_DIFFERENCE * spread:
            raise InvalidRequest(
                f"its scores are {difference:.2g} off those of sentence-transformers; this model "
                "cannot be served faithfully"
            )

    def _check_tokens(self, query: str, documents: Sequence[str]) -> None:
        """Pairs must be read as the library reads them, over-long ones too."""
        words = max(documents, key=len)
        long = " ".join([words] * (self.max_tokens // len(words.split()) + 1))
        for asked, read in ((query, [*documents, long]), (long, [long, query])):
            features = self.transformer.preprocess(
                [(asked, document) for document in read], self._prompt or None
            )
            masks = features["attention_mask"].bool()
            ours, _ = self.tokenize(asked, read)
            for row, pair in enumerate(ours):
                theirs = features["input_ids"][row][masks[row]].tolist()
                types = features["token_type_ids"][row][masks[row]].tolist() if pair.types else []
                if pair != theirs or pair.types != types:
                    raise InvalidRequest(
                        f"{self.folder.name}'s tokenizer joins two texts in a way that is not "
                        "known here; this model cannot be served faithfully"
                    )


class PaddedPairs:
    """transformers' own way: every pair as long as the longest."""

    name = "padded"

    def __init__(self, tower: PairTower) -> None:
        self._tower = tower

    def __call__(self, batch: Sequence[Tokens]) -> torch.Tensor:
        columns: dict[str, Sequence[Sequence[int]]] = {"input_ids": batch}
        if type_ids(batch):
            pairs = [tokens for tokens in batch if isinstance(tokens, PairTokens)]
            columns["token_type_ids"] = [pair.types for pair in pairs]
        features = self._tower.tokenizer.pad(columns, return_tensors="pt").to(self._tower.device)
        numbers_B1: torch.Tensor = self._tower.classifier(**features).logits.float()
        return numbers_B1
