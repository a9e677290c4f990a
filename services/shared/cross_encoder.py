"""A cross-encoder: a query and a document together in, one score out.

The encoder serves it for the last stage of a search. Loading is sentence-transformers' work, and
it is the oracle too: at load, tokens and numbers of probe pairs must be those of its
`CrossEncoder`, or the model is refused.

Shapes: B pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from services.shared.choice import Precision, choose
from services.shared.cross_encoder_folder import check_cross_encoder
from services.shared.engines import Engines, Trial
from services.shared.errors import InvalidRequest
from services.shared.folder import space_id
from services.shared.loading import load_cross_encoder
from services.shared.oracle import Probe, probe_texts
from services.shared.packing import PairTokens, Tokens
from services.shared.pair_tower import PairTower
from services.shared.tower import Role, Tower
from services.shared.vectors import Array


class CrossEncoder:
    """A loaded cross-encoder.

    Args:
        folder: as sentence-transformers' CrossEncoder reads it.
        precision: "auto" measures and chooses.
        device: a torch device; None takes an accelerator if there is one.
        engines: as for `TextModel`.

    Raises:
        InvalidRequest: the folder cannot be loaded safely, or not faithfully, or it gives more
            than one number.
    """

    def __init__(
        self,
        folder: Path,
        precision: Precision = "auto",
        device: str | None = None,
        engines: Path | None = None,
    ) -> None:
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
        kept = Engines(engines, self._tower.network) if engines else None
        self._choice = choose(self._tower, self._ask(), precision, kept)
        self.engine = self._choice.engine

    @property
    def trials(self) -> list[tuple[Role, Trial]]:
        """What was measured before the engine was chosen; empty without a choice."""
        return [("none", trial) for trial in self._choice.trials]

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
        order = sorted(range(len(batch)), key=lambda row: len(batch[row]))
        sorted_B1 = self._choice.way([batch[row] for row in order])
        numbers_B1 = torch.empty_like(sorted_B1)
        numbers_B1[order] = sorted_B1
        scores_B1: Array = self.transformer.activation_fn(numbers_B1).cpu().numpy()
        return scores_B1

    def _ask(self) -> Probe:
        """Score probe pairs with the library's own `predict`, without the activation."""
        texts = probe_texts(self._tower)
        self._check_tokens(texts)
        # Each with itself and with another, so that there are high numbers and low ones.
        asked = [
            (text, other) for row, text in enumerate(texts) for other in (text, texts[row - 1])
        ]
        numbers_B = self.transformer.predict(
            asked,
            activation_fn=torch.nn.Identity(),
            # One by one, as padding at the wrong side would change the library's own numbers.
            batch_size=1,
            show_progress_bar=False,
        )
        batch = [pair for query, text in asked for pair in self.tokenize(query, [text])[0]]
        return Probe(list(batch), torch.from_numpy(numbers_B)[:, None])

    def _check_tokens(self, texts: Sequence[str]) -> None:
        """Pairs must be read as the library reads them, over-long ones too."""
        words = max(texts, key=len)
        long = " ".join([words] * (self.max_tokens // len(words.split()) + 1))
        for asked, read in ((texts[0], [*texts, long]), (long, [long, texts[0]])):
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
