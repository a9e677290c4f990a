"""What the quality of a job is measured on, of each kind of examples, and what is kept aside.

Pairs and labelled texts ask for what should be found: of a text, those of its class among the
training texts, which is what a search by nearest neighbours will meet. Of scored pairs the cosines
are held against the scores. Knows nothing of vectors.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from services.shared.errors import InvalidRequest
from services.trainer.data.examples import Example, Labelled, Scored
from services.trainer.data.pairs import Pair, Questions, Split, number_texts, questions, split_rows

T = TypeVar("T")

_MAX_WATCHED, _MAX_WATCHED_DOCUMENTS = 200, 2000


def ask(data: Split[Example]) -> Questions:
    """Return what examples of one kind are measured on."""
    match data.held_out[0]:
        case Scored():
            return _compare(_only(data.held_out, Scored))
        case Labelled():
            return _neighbours(_only(data.held_out, Labelled), _only(data.training, Labelled))
        case Pair():
            return questions(Split(_only(data.training, Pair), _only(data.held_out, Pair)))


def _compare(pairs: Sequence[Scored]) -> Questions:
    queries = number_texts(pair.first for pair in pairs)
    documents = number_texts(pair.second for pair in pairs)
    scores: list[dict[int, float]] = [{} for _ in queries]
    for pair in pairs:
        scores[queries[pair.first]][documents[pair.second]] = pair.score
    return Questions(tuple(queries), tuple(documents), tuple(scores), kind="scored")


def _neighbours(held_out: Sequence[Labelled], training: Sequence[Labelled]) -> Questions:
    """Each class is a slice, so that one sees whose texts get worse."""
    of_class: dict[str, dict[int, float]] = defaultdict(dict)
    for row, example in enumerate(training):
        of_class[example.label][row] = 1.0
    return Questions(
        tuple(example.text for example in held_out),
        tuple(example.text for example in training),
        tuple(of_class[example.label] for example in held_out),
        tuple(example.label for example in held_out),
        "labelled",
    )


def keep_aside(examples: Sequence[Example], seed: int) -> tuple[list[int], Questions]:
    """Return the rows of the examples to learn from, and what to ask of the others while training.

    Raises:
        InvalidRequest: shared texts tie all of them together, or what is kept aside tells nothing.
    """
    kept = split_rows(examples, seed)
    learned = [row for row in range(len(examples)) if row not in kept]
    watched = _spread(sorted(kept), _MAX_WATCHED)
    others = _spread(learned, _MAX_WATCHED_DOCUMENTS - len(watched))
    data = Split(tuple(examples[row] for row in others), tuple(examples[row] for row in watched))
    asked = ask(data)
    check_asked(asked)
    return learned, asked


def check_asked(asked: Questions) -> None:
    """Refuse what no quality can be told from.

    Raises:
        InvalidRequest: says what is missing.
    """
    if asked.kind == "scored":
        if len({score for scores in asked.relevant for score in scores.values()}) < 2:
            raise InvalidRequest(
                "the pairs that are held out must have at least two different scores; give more "
                "pairs, or a validation_file",
                "validation_file",
            )
    elif not any(asked.relevant):
        raise InvalidRequest(
            "at least one text that is held out must be of a class that a training text has; give "
            "more texts of each class, or a validation_file",
            "validation_file",
        )


def check_learnable(examples: Sequence[Example]) -> None:
    """Refuse training examples that nothing can be learned from.

    Raises:
        InvalidRequest: says what is missing.
    """
    if len({example.score for example in examples if isinstance(example, Scored)}) == 1:
        raise InvalidRequest(
            "training_file must hold pairs of at least two different scores", "training_file"
        )
    if len({example.label for example in examples if isinstance(example, Labelled)}) == 1:
        raise InvalidRequest(
            "training_file must hold texts of at least two classes", "training_file"
        )


def _only(examples: Sequence[Example], kind: type[T]) -> tuple[T, ...]:
    return tuple(example for example in examples if isinstance(example, kind))


def _spread(items: Sequence[int], count: int) -> Sequence[int]:
    """Take at most `count`, evenly spread: files may be sorted."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
