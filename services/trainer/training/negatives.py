"""Which negatives join the documents of a step, beside the positives of its pairs.

Each joins once, however many pairs have it, and none that answers an anchor of the step: as a
positive of the step it is there already, and as another it must not be pushed away.

Shapes: P pairs, B pairs in the batch.
"""

from collections.abc import Sequence

import torch

MAX_PER_PAIR = 7
"""Negatives of one pair in a step (FlagEmbedding's and contrastors' usual number); of more, others
come in other steps."""


class Negatives:
    """Chooses the negatives of a step.

    Args:
        anchors_P: for each pair a number of its anchor, equal for equal texts.
        positives_P: of its positive.
        negatives_P: of its negatives, numbered as the positives.
    """

    def __init__(
        self,
        anchors_P: Sequence[int],
        positives_P: Sequence[int],
        negatives_P: Sequence[Sequence[int]],
    ) -> None:
        self._anchors_P = anchors_P
        self._negatives_P = negatives_P
        self._answers: dict[int, set[int]] = {}
        for anchor, positive in zip(anchors_P, positives_P, strict=True):
            self._answers.setdefault(anchor, set()).add(positive)
        self._are_any = any(negatives_P)

    def of(self, rows_B: torch.Tensor) -> list[int]:
        """Return the numbers of the texts that join, each once; the same for the same pairs."""
        if not self._are_any:
            return []
        rows: list[int] = rows_B.tolist()
        turn = sum(rows)  # another in another step, and the same in every process
        chosen: dict[int, None] = {}
        for row in rows:
            negatives = self._negatives_P[row]
            for place in range(min(len(negatives), MAX_PER_PAIR)):
                chosen[negatives[(turn + place) % len(negatives)]] = None
        answers: set[int] = set()
        for row in rows:
            answers |= self._answers[self._anchors_P[row]]
        return [number for number in chosen if number not in answers]
