"""The tower of a cross-encoder: pairs of texts to tokens, and what makes a number of each.

In: a query and documents. Out: the tokens of each pair as one text, cut as sentence-transformers
cuts them, and the parts of the network that a forward pass needs. How it runs is decided by
`cross_encoder.py`.

Shapes: B pairs, D width, 1 the one number of a pair.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch

from services.shared.calibration import sample_texts
from services.shared.errors import InvalidRequest
from services.shared.packing import PairTokens, Tokens
from services.shared.tower import Tower

# Of a sampled text, which stand for a question about it.
_QUERY_WORDS = 12


class PairTower(Tower):
    """A tower that reads a query and a document together.

    Args:
        transformer: of sentence-transformers, around a network for sequence classification.
        device: a torch device, where it is.

    Raises:
        InvalidRequest: its tokenizer cannot read pairs here.
    """

    answer = "scores"

    def __init__(self, transformer: Any, device: str) -> None:  # noqa: ANN401 (see `Tower`)
        super().__init__([transformer], device)
        if self._backend is None or self._is_chat:
            raise InvalidRequest(
                "a cross-encoder must have a tokenizer.json, and no chat template: it reads two "
                "texts as one"
            )
        encoding = self._uncut().encode("a", "b")
        self._frame = _frame(encoding)
        self._room = self.max_tokens - encoding.special_tokens_mask.count(1)
        self._takes_types = "token_type_ids" in self.tokenizer.model_input_names

    @property
    def classifier(self) -> Any:  # noqa: ANN401 (any architecture)
        """The whole network, which makes a number of each pair."""
        return self.modules[0].auto_model

    @property
    def network(self) -> Any:  # noqa: ANN401
        """The transformers model below the classifier's own layers."""
        return self.classifier.base_model

    @property
    def pooling(self) -> str | None:
        """What the classifier reads of a pair; None for a family that is not known here."""
        config = self.classifier.config
        return getattr(config, "classifier_pooling", "cls") if self._kind in _HEADS else None

    @property
    def heads(self) -> list[Any]:
        """The classifier's own layers, behind the pooling."""
        head, classifier = _HEADS[self._kind], self.classifier

        def score(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"sentence_embedding": head(classifier, features["sentence_embedding"])}

        return [score]

    def tokenize_pairs(
        self, query: str, documents: Sequence[str]
    ) -> tuple[list[PairTokens], list[int]]:
        """Turn a query with each of some documents into the tokens of one text.

        A pair longer than `max_tokens` loses tokens of the longer of the two, and of both where
        they are alike, at the side that the tokenizer says.

        Returns:
            The pairs, and the rows that were cut.
        """
        encodings = self._uncut().encode_batch_fast([query, *documents], add_special_tokens=False)
        asked, *others = [encoding.ids for encoding in encodings]
        pairs, truncated = [], []
        for row, ids in enumerate(others):
            lengths = share(len(asked), len(ids), self._room)
            if lengths != (len(asked), len(ids)):
                truncated.append(row)
            pairs.append(self._join(self._cut(asked, lengths[0]), self._cut(ids, lengths[1])))
        return pairs, truncated

    def sample(self, count: int, seed: int) -> list[Tokens]:
        """Read pairs to measure with; half of them belong together."""
        texts = sample_texts(count, seed)
        pairs: list[Tokens] = []
        for number, text in enumerate(texts):
            query = " ".join(texts[number - number % 2].split()[:_QUERY_WORDS])
            pairs += self.tokenize_pairs(query, [text])[0]
        return pairs

    def likeness(self, answers_BD: torch.Tensor, exact_BD: torch.Tensor) -> float:
        """Return how near numbers are to the exact ones, at most 1.

        On the scale of a cosine, which is 1 - e^2 / 2 for vectors of unit length that lie e apart:
        here e is the root mean square of the differences, in standard deviations of the numbers.
        """
        square = (answers_BD - exact_BD).square().mean() / exact_BD.var()
        return float(1 - square / 2)

    def _cut(self, tokens: Tokens, length: int) -> Tokens:
        is_left = self.tokenizer.truncation_side == "left"
        return tokens[len(tokens) - length :] if is_left else tokens[:length]

    def _join(self, *texts: Tokens) -> PairTokens:
        tokens: Tokens = []
        types: list[int] = []
        for owner, kind, special in self._frame:
            part = special if owner is None else texts[owner]
            tokens += part
            types += [kind] * len(part)
        return PairTokens(tokens, types if self._takes_types else [])

    @property
    def _kind(self) -> str:
        return str(self.classifier.config.model_type)


def share(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each of two texts there is room for.

    The longer one gives way until both are alike; of an odd number the second has one more.
    Source: huggingface/tokenizers, `truncate_encodings`, "longest_first".

    >>> share(3, 9, 10), share(9, 9, 7)
    ((3, 7), (3, 4))
    """
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


def _frame(encoding: Any) -> list[tuple[int | None, int, Tokens]]:  # noqa: ANN401 (tokenizers')
    """Read off a pair how its tokens stand: whose they are, of which type, and the special ones.

    Returns:
        (0 or 1 for one of the texts, None for special tokens; type; the special tokens) in order.
    """
    places = zip(encoding.sequence_ids, encoding.type_ids, encoding.ids, strict=True)
    return [
        (owner, kind, [token for _, _, token in same])
        for (owner, kind), same in groupby(places, key=lambda place: place[:2])
    ]


def _bert(classifier: Any, pooled_BD: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    # Poolers and classifiers of these families look for the first token themselves. BERT's pooler
    # belongs to its network, which may be rounded.
    pooler = classifier.bert.pooler
    first_B1D = pooled_BD[:, None].to(pooler.dense.weight.dtype)
    scores_B1: torch.Tensor = classifier.classifier(pooler(first_B1D).float())
    return scores_B1


def _roberta(classifier: Any, pooled_BD: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    scores_B1: torch.Tensor = classifier.classifier(pooled_BD[:, None])
    return scores_B1


def _distilbert(classifier: Any, pooled_BD: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    scores_B1: torch.Tensor = classifier.classifier(classifier.pre_classifier(pooled_BD).relu())
    return scores_B1


def _modernbert(classifier: Any, pooled_BD: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    scores_B1: torch.Tensor = classifier.classifier(classifier.head(pooled_BD))
    return scores_B1


# What stands behind the pooling, as transformers' classifiers of these families have it; any other
# family's runs whole, with padding.
_HEADS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "bert": _bert,
    "camembert": _roberta,
    "distilbert": _distilbert,
    "electra": _roberta,
    "modernbert": _modernbert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}
