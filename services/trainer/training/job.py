"""One job at work: its data, how far it is, and what training leaves of it.

Shapes: Q queries, N documents, A other texts, P pairs, T texts taken, D full width.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from services.shared.card import DimScores, SimilarityScores
from services.shared.model import Role, TextModel
from services.shared.vectors import Array, PreOp
from services.trainer.data.examples import Example
from services.trainer.data.pairs import Pair, Questions, Split, number_texts
from services.trainer.data.pictures import Item
from services.trainer.data.questions import keep_aside
from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.spec import Spec
from services.trainer.results.evaluate import means, measure
from services.trainer.training.adaptor import Rows, Vectors
from services.trainer.training.encode import encode_kept
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.train import Trainee, plan, train
from services.trainer.training.utilization import Utilization
from services.trainer.training.watch import Watch

_EVENT_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What every part of a job needs."""

    folder: Path
    spec: Spec
    data: Split[Example]
    questions: Questions
    events: EventLog
    interrupt: Interrupt
    mined: tuple[Pair, ...] = ()
    """The training pairs with the negatives that were mined for them; empty: none were."""
    taken: tuple[str, ...] = ()
    """Negatives that were found in a collection; none of them is a document of the questions."""
    taken_TD: Array | None = None
    """The base's vectors of them."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The training pairs; empty: the examples are of another kind."""
        return self.mined or tuple(
            example for example in self.data.training if isinstance(example, Pair)
        )

    @property
    def roles(self) -> tuple[Role, Role]:
        """Whose prompts queries and documents get: no side of the other kinds is either."""
        return ("query", "document") if self.spec.kind == "pairs" else ("none", "none")

    @property
    def metric(self) -> str:
        """What people call the score that decides."""
        scores = SimilarityScores if self.spec.kind == "scored" else DimScores
        return next(iter(scores.NAMES.values()))

    def progress(self, phase: str, what: str, begin: int, total: int) -> Callable[[int], None]:
        """Return a callback that reports progress, not too often, and stops if asked to.

        Args:
            phase: of the events.
            what: is counted, for people.
            begin: added to each count, where a phase has several parts.
            total: of the whole phase.
        """
        last_s = 0.0

        def on_progress(done: int) -> None:
            nonlocal last_s
            self.interrupt.check()
            now = time.monotonic()
            if now - last_s < _EVENT_INTERVAL_S and begin + done < total:
                return
            last_s = now
            message = f"{what}: {begin + done} of {total}"
            self.events.append(
                Event(phase=phase, message=message, step=begin + done, total_steps=total)
            )

        return on_progress

    def encode_questions(
        self, model: TextModel, name: str, phase: str, others: int = 0
    ) -> tuple[Array, Array]:
        """Return vectors of the held-out queries and of all documents.

        Args:
            model: the same for the same `name`.
            name: of the folder that keeps them.
            phase: of the events.
            others: how many more texts the phase will encode, for its progress.
        """
        queries, documents = self.questions.queries, self.questions.documents
        total = len(queries) + len(documents) + others
        first = self.progress(phase, "encoded", 0, total)
        second = self.progress(phase, "encoded", len(queries), total)
        kept = self.folder / name
        asking, asked = self.roles
        return (
            encode_kept(model, queries, asking, kept / "queries", first),
            encode_kept(model, documents, asked, kept / "documents", second),
        )

    def encode_pairs(self, model: TextModel, name: str, documents_ND: Array) -> Vectors:
        """Return the training pairs as vectors.

        Args:
            model: as `encode_questions`.
            name: as there.
            documents_ND: the model's, from there.
        """
        anchors, anchors_ND = self.training_anchors(), self.encode_anchors(model, name)
        pairs = self.pairs
        if self.taken_TD is not None:
            documents_ND = np.concatenate([documents_ND, self.taken_TD])
        return Vectors(
            anchors_ND,
            documents_ND,
            _rows(anchors, [pair.anchor for pair in pairs]),
            _rows(self.questions.documents, [pair.positive for pair in pairs]),
            self._negative_rows(),
        )

    def encode_anchors(self, model: TextModel, name: str) -> Array:
        """Return vectors of `training_anchors`; see `encode_pairs`."""
        anchors = self.training_anchors()
        begin = len(self.questions.queries) + len(self.questions.documents)
        on_progress = self.progress("encode", "encoded", begin, begin + len(anchors))
        kept = self.folder / name / "anchors"
        return encode_kept(model, anchors, self.roles[0], kept, on_progress)

    def _negative_rows(self) -> tuple[tuple[int, ...], ...]:
        numbers = number_texts((*self.questions.documents, *self.taken))
        return tuple(tuple(numbers[text] for text in pair.negatives) for pair in self.pairs)

    def training_anchors(self) -> tuple[Item, ...]:
        """Return the training texts that are not among the documents; of pairs, the anchors."""
        match self.spec.kind:
            case "pairs":
                return tuple(number_texts(pair.anchor for pair in self.pairs))
            case "scored":
                texts = (text for example in self.data.training for text in example.texts)
                return tuple(number_texts(texts))
            case "labelled":
                return ()

    def learn_and_watch(self) -> tuple[list[int], Questions | None]:
        """Return the rows of the examples to learn from, and what to ask to see when to stop.

        What is asked is no part of what is learned from, nor of what the result is measured on.
        """
        examples = self.data.training
        if self.spec.hyperparameters.early_stopping is None:
            return list(range(len(examples))), None
        return keep_aside(examples, self.spec.hyperparameters.seed)

    def train(
        self,
        trainee: Trainee,
        num_pairs: int,
        watched: Questions | None,
        encode: Callable[[Questions], tuple[Array, Array]],
        utilization: Utilization | None = None,
    ) -> tuple[float, float]:
        """Train to the end; return the seconds it took and the last event's steps per second.

        Args:
            trainee: see there.
            num_pairs: that it learns from.
            watched: what it is asked to see when to stop; None: it does not stop early.
            encode: returns the vectors of queries and documents by the trainee as it is.
            utilization: told of with each step's event; None: no text goes through a model.
        """
        hyper = self.spec.hyperparameters
        checkpoints = self.folder / "checkpoints"
        watch = None
        if watched and (stopping := hyper.early_stopping):

            def score(asked: Questions = watched, dim: int = stopping.dim) -> float:
                return means(measure(*encode(asked), asked, [dim]), [dim])[0].score

            watch = Watch(stopping, score, checkpoints / "best", self.metric)
        begin = time.monotonic()
        course = plan(hyper, num_pairs, self.spec.checkpoint_steps)

        def on_event(event: Event) -> None:
            if utilization and event.loss:
                event = replace(event, utilization=utilization.look())
            self.events.append(event)

        train(trainee, course, checkpoints, on_event, self.interrupt, watch)
        last = self.events.last
        return time.monotonic() - begin, last.steps_per_second if last else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training leaves for the evaluation and the export."""

    queries_QD: Array
    documents_ND: Array
    start: Path
    """The folder whose copy becomes the trained model."""
    write: Callable[[Path], None]
    """Makes the trained model of that copy."""
    prompts: dict[str, str]
    max_tokens: int
    pre_op: PreOp
    """Of the trained model."""
    base_space_id: str | None
    """As `export.Origin`."""
    train_seconds: float
    steps_per_second: float


def _rows(texts: Sequence[Item], wanted: Sequence[Item]) -> Rows:
    numbers = number_texts(texts)
    return np.array([numbers[text] for text in wanted], dtype=np.int64)
