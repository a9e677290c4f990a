"""The pilot: two short trials that choose how much the adaptor shall listen to the labels.

Labels alone teach most where the questions to come are like those of the pairs; the base model's
own opinion keeps what it knows of everything else. Which is better depends on the collection, so
it is tried: a short training with each, measured on a tenth of the training pairs. These are like
the pairs by making, so labels alone must be surely better there.

Measured, nDCG@10 at 16/32/64/128 numbers on test queries (bench/adaptor.py, 128 tokens): medquad,
labels only .730/.829/.853/.852, half and half .715/.800/.816/.814; squad-split, whose test
queries are about other articles, .344/.531/.649/.715 and .391/.558/.666/.731; there a tenth of the
labels .388/.558/.672/.737, and with 3,000 pairs and 64 tokens .343/.516/.637/.689, where half
leaves .335/.496/.611/.661 and none .353/.519/.626/.688. A share for each size is no better than
the best one for all.

In the trials of 3,000 pairs, two seeds of each head, labels alone are better than a tenth of them
by 1.9 to 4.4 standard errors on medquad, and by -3.4 to 0.8 on squad-split.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from services.shared.errors import InvalidRequest
from services.trainer.data.pairs import Pair, split_rows
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.results.evaluate import score_each
from services.trainer.training.adaptor import Adaptor, Vectors
from services.trainer.training.checkpoint import write_atomic
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.layers import turn
from services.trainer.training.train import plan, train

log = logging.getLogger(__name__)

_Scores = np.ndarray[tuple[int], np.dtype[np.float64]]

GENERAL = 0.5
"""Half and half. Trained on one domain it was the best on collections of others (nDCG@10 over six
of them at 64 numbers: plain cut .354, PCA .378, labels .393, opinion .401, half and half .408)."""
LITTLE = 0.1
"""A tenth of the labels, which is as much as is safe where they teach little of new questions.
Half is told apart from neither by a trial."""
_SURELY = 1.28  # standard errors: nine times of ten it is not chance
_STEPS = 80  # half a training; a whole one chooses the same
_MIN_QUERIES = 50  # fewer say nothing
_KEPT = "label_weight.txt"


def settle_label_weight(folder: Path, choose: Callable[[], float]) -> float:
    """Choose the share of the labels once in the life of the job in a folder."""
    kept = folder / _KEPT
    if not kept.exists():
        write_atomic(kept, str(choose()).encode())
    return float(kept.read_text())


def tuning_label_weight(folder: Path) -> float:
    """Return the share of the labels where weights of a text model are trained.

    More than in a head's training by half of what is left, as the opinion is no longer the base's
    but that of the model in training. 1.0, where nothing was tried: it starts on the base's axes.
    """
    kept = folder / _KEPT
    return (1 + float(kept.read_text())) / 2 if kept.exists() else 1.0


def choose_label_weight(
    vectors: Vectors,
    pairs: Sequence[Pair],
    hyper: Hyperparameters,
    on_trial: Callable[[str], None],
    interrupt: Interrupt,
) -> float:
    """Return the share of the labels in the target, for `adaptor.Adaptor`.

    Args:
        vectors: of the training pairs.
        pairs: their texts, in the same order.
        hyper: the job's; trials are shortened.
        on_trial: told what is tried.
        interrupt: stops the trials.

    Raises:
        Interrupted: asked to stop.
    """
    try:
        asked = sorted(split_rows(pairs, hyper.seed))
    except InvalidRequest:  # texts are tied together
        return GENERAL
    queries = np.unique(vectors.anchor_rows_P[asked]).tolist()
    if len(queries) < _MIN_QUERIES:
        return GENERAL
    documents, places_P = np.unique(vectors.positive_rows_P, return_inverse=True)
    relevant: dict[int, dict[int, float]] = {query: {} for query in queries}
    for pair in asked:
        relevant[int(vectors.anchor_rows_P[pair])][int(places_P[pair])] = 1.0
    taught = sorted(set(range(len(pairs))) - set(asked))
    course = plan(hyper, len(taught), checkpoint_steps=hyper.steps)
    course = replace(course, steps=min(_STEPS, hyper.steps))

    def score(weight: float) -> _Scores:
        """Return what each query scores after a training with a share, in the mean of the sizes."""
        on_trial(f"trying labels at {weight:.0%} of the target")
        head = hyper.head or "rotation"
        adaptor = Adaptor(vectors.take(taught), head, course.dims, weight, hyper.seed)
        with tempfile.TemporaryDirectory() as nowhere:
            train(adaptor, course, Path(nowhere), lambda _: None, interrupt)
        layers = adaptor.layers()
        scores_QKS = score_each(
            turn(vectors.anchors_ND[queries], layers),
            turn(vectors.positives_ND[documents], layers),
            [relevant[query] for query in queries],
            hyper.matryoshka_dims,
        )
        scores_Q: _Scores = scores_QKS[:, :, 0].mean(axis=1)
        return scores_Q

    gain_Q = score(1.0) - score(LITTLE)
    gain, error = gain_Q.mean(), gain_Q.std() / math.sqrt(len(gain_Q))
    log.info("pilot: labels alone gain %.4f, with a standard error of %.4f", gain, error)
    return 1.0 if gain > _SURELY * error else LITTLE
