"""What is learned of scored pairs and of labelled texts, at every size (two `train.Trainee`s).

Scored pairs learn by their order (CoSENT). A class is the mean of its texts of a batch, and a text
is told its class by the nearest one, as a search among its neighbours will do: nothing has to be
learned beside the vectors, so a head, a model and a table from nothing take the same loss. Each
text of a batch brings another of its class, and classes are made of those alone: none is compared
with itself.

Source: Snell et al. 2017, arXiv:1703.05175 (classes as means of some texts, asked with others).
Shapes: P examples, B examples in the batch, C classes in it, D full width, K sizes.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from services.trainer.data.examples import Example, Labelled, Scored
from services.trainer.data.pairs import number_texts
from services.trainer.training.adaptor import SCALE
from services.trainer.training.loss import nested_classes
from services.trainer.training.scores import nested_cosent
from services.trainer.training.texts import Texts
from services.trainer.training.train import Trainee


class ScoredPairs:
    """Pairs whose cosines shall stand in the order of their scores.

    Args:
        pairs: the training pairs.
        texts: theirs, in the order of `distinct_texts`.
        dims: sizes to train for, ascending.
    """

    def __init__(self, pairs: Sequence[Scored], texts: Texts, dims: Sequence[int]) -> None:
        numbers = number_texts(text for pair in pairs for text in pair.texts)
        self._rows_P2 = torch.tensor([[numbers[text] for text in pair.texts] for pair in pairs])
        self._scores_P = torch.tensor([pair.score for pair in pairs], dtype=torch.float64)
        self._texts = texts
        self._dims = tuple(dims)
        self.parameters = texts.parameters

    @property
    def num_tokens(self) -> int:
        """As `train.Trainee`."""
        return self._texts.num_tokens

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the pairs, as `train.Trainee`."""
        first_BD, second_BD = self._texts.vectors(self._rows_P2[rows_B].T.flatten()).chunk(2)
        scores_B = self._scores_P[rows_B].to(first_BD.device)
        return nested_cosent(first_BD, second_BD, scores_B, self._dims, SCALE)


class Classes:
    """Texts that shall be nearest to those of their own class.

    Args:
        examples: the training texts, each once.
        texts: the same, in their order.
        dims: sizes to train for, ascending.
    """

    def __init__(self, examples: Sequence[Labelled], texts: Texts, dims: Sequence[int]) -> None:
        numbers = number_texts(example.label for example in examples)
        self._labels_P = torch.tensor([numbers[example.label] for example in examples])
        # Examples class by class; where each class begins there, and where each example stands.
        self._by_class_P = self._labels_P.argsort(stable=True)
        self._counts = self._labels_P.bincount()
        self._begins = self._counts.cumsum(0) - self._counts
        self._places_P = torch.empty_like(self._by_class_P)
        self._places_P[self._by_class_P] = torch.arange(len(examples))
        self._texts = texts
        self._dims = tuple(dims)
        self.parameters = texts.parameters

    @property
    def num_tokens(self) -> int:
        """As `train.Trainee`."""
        return self._texts.num_tokens

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the texts, as `train.Trainee`."""
        others_B = self.others(rows_B)
        asked_BD, told_BD = self._texts.vectors(torch.cat([rows_B, others_B])).chunk(2)
        # Only classes of the batch.
        found = self._labels_P[rows_B].tolist()
        numbers = {label: number for number, label in enumerate(dict.fromkeys(found))}
        labels_B = torch.tensor([numbers[label] for label in found])
        labels_B = labels_B.to(told_BD.device)
        # Sums are as good as means: only their direction counts.
        classes_CD = told_BD.new_zeros(len(numbers), told_BD.shape[1])
        classes_CD = classes_CD.index_add(0, labels_B, functional.normalize(told_BD))
        return nested_classes(asked_BD, classes_CD, labels_B, self._dims, SCALE)

    def others(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Draw another text of each one's class, itself where it is the only one.

        From torch's generator, whose state is the step's: the same step draws the same.
        """
        labels_B = self._labels_P[rows_B]
        counts_B, begins_B = self._counts[labels_B], self._begins[labels_B]
        # In float64, so that it stays below 1 times any count.
        drawn_B = torch.rand(len(rows_B), dtype=torch.float64)
        ahead_B = 1 + (drawn_B * (counts_B - 1)).long()
        return self._by_class_P[begins_B + (self._places_P[rows_B] - begins_B + ahead_B) % counts_B]


def distinct_texts(examples: Sequence[Example]) -> list[str]:
    """Return all texts of examples, each once, in the order of their rows."""
    texts = (text for example in examples for text in example.texts)
    # Pictures stand in pairs alone, which are found and not graded.
    return list(number_texts(text for text in texts if isinstance(text, str)))


def learn_grades(examples: Sequence[Example], texts: Texts, dims: Sequence[int]) -> Trainee:
    """Return what learns from examples of one kind that are no pairs to be found.

    Args:
        examples: scored pairs, or labelled texts.
        texts: as `distinct_texts` has them.
        dims: sizes to train for, ascending.
    """
    scored = [example for example in examples if isinstance(example, Scored)]
    if scored:
        return ScoredPairs(scored, texts, dims)
    return Classes([e for e in examples if isinstance(e, Labelled)], texts, dims)
