"""A card for any model folder, without training: what each size keeps, and how to store its bytes.

In: a model folder, and texts or pairs like those it will serve. Out: a card. With pairs a right
answer is the labelled one; without, it is what the full size ranks first, so that no labels are
needed: that is stricter, as a document that the full size ranks first by chance counts too.

Shapes: Q queries, N documents, D full width.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from services.shared.card import (
    FILENAME,
    Card,
    DimRanges,
    Quality,
    describe_ranges,
    write_card,
)
from services.shared.errors import AlreadyExists, InvalidRequest
from services.shared.folder import default_id, locate
from services.shared.model import TextModel
from services.shared.quantization import measure_ranges
from services.shared.vectors import Array, truncate
from services.trainer.data.pairs import Pair, Questions, Split, number_texts, questions
from services.trainer.jobs.hyperparameters import default_dims
from services.trainer.results.evaluate import evaluate, rank
from services.trainer.training.checkpoint import publish
from services.trainer.training.encode import encode

S = TypeVar("S", Sequence[str], Sequence[Pair], Array)

# Fewer texts say too little about the ends of a range.
MIN_TEXTS = 100
_MAX_QUERIES = 1_000
# Ten times what a ranking of ten needs to be hard; a minute of encoding on two cores.
_MAX_DOCUMENTS = 10_000
_RANGE_VECTORS = 10_000


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model is measured on.

    Args:
        name: of the data, for people.
        texts: distinct; empty if there are pairs.
        pairs: what is asked, and what should be found.
    """

    name: str
    texts: Sequence[str] = ()
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """Encoded queries and documents, with the rows of the documents that answer each query."""

    queries_QD: Array
    documents_ND: Array
    relevant: Sequence[Mapping[int, float]]


def measure_card(
    source: str,
    sample: Sample,
    dims: Sequence[int],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Card:
    """Measure a model.

    Args:
        source: a model folder, a hub id, or the packaged default.
        sample: at least `MIN_TEXTS` texts, or as many pairs.
        dims: sizes to measure; empty: those that the model declares, else powers of two.
        on_progress: called with the number of texts encoded, and of all.

    Raises:
        InvalidRequest: the folder cannot be loaded, a size is impossible, or the sample too small.
    """
    folder = locate(source)
    chosen = _choose(sample)  # refused, if it is too small, before the model is loaded
    model = TextModel(folder)
    sizes = _sizes(dims, model)
    asked = _ask(model, chosen, on_progress)
    scores = evaluate(asked.queries_QD, asked.documents_ND, asked.relevant, sizes)
    quality = Quality(
        data=sample.name,
        num_queries=len(asked.queries_QD),
        num_documents=len(asked.documents_ND),
        before=scores,
        after=scores,
        judged_by="labels" if sample.pairs else "neighbours",
    )
    old = model.card
    if old and old.quality and old.quality.judged_by == "labels" and not sample.pairs:
        # What labels said is worth more, if it speaks of the same sizes.
        kept = {score.dim for score in old.quality.after}
        quality = old.quality if kept.issuperset(sizes) else quality
    return Card(
        id=old.id if old else default_id(folder, source),
        dims=sizes,
        pre_op=model.pre_op,
        prompts=model.prompts,
        base_model=old.base_model if old else None,
        data_digest=old.data_digest if old else None,
        space_id=model.space_id,
        base_space_id=model.base_space_id,
        quality=quality,
        int8_ranges=measure_byte_ranges([asked.queries_QD, asked.documents_ND], sizes),
    )


def measure_byte_ranges(vector_sets: Sequence[Array], dims: Sequence[int]) -> tuple[DimRanges, ...]:
    """Measure the byte ranges of each size, for a card.

    Args:
        vector_sets: full vectors of several kinds, queries and documents for example; as many
            are taken of each, so that none is drowned by the others.
        dims: sizes, ascending.
    """
    per_set = _RANGE_VECTORS // len(vector_sets)
    vectors_ND = np.concatenate([_spread(vectors_BD, per_set) for vectors_BD in vector_sets])
    return describe_ranges({dim: measure_ranges(truncate(vectors_ND, dim)) for dim in dims})


def copy_with_card(source: str, target: Path, card: Card) -> None:
    """Copy a model folder, bit for bit, with the card in it.

    Raises:
        AlreadyExists: there is something at `target`.
    """
    if target.exists():
        raise AlreadyExists(f"{target} is there already; give the name of a new folder")
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Contents only: files may be read-only, or links into a cache.
    shutil.copytree(
        locate(source),
        temporary,
        ignore=shutil.ignore_patterns(FILENAME, "__pycache__", ".git"),
        copy_function=shutil.copyfile,
    )
    write_card(temporary, card)
    publish(temporary, target)


def _sizes(dims: Sequence[int], model: TextModel) -> tuple[int, ...]:
    full = model.full
    sizes = tuple(sorted({*(dims or model.declared_dims or default_dims(full)), full}))
    if not 1 <= sizes[0] <= sizes[-1] == full:
        raise InvalidRequest(f"sizes must be between 1 and {full}, the model's full one")
    return sizes


def _choose(sample: Sample) -> Questions:
    """Choose what is asked, and what may answer; of texts, what answers is not known yet."""
    if sample.pairs:
        pairs = _spread(sample.pairs, _MAX_DOCUMENTS)
        held_out = tuple(_spread(pairs, _MAX_QUERIES))
        chosen = questions(Split(tuple(pairs), held_out))
    else:
        texts = _spread(list(number_texts(sample.texts)), _MAX_DOCUMENTS)
        # Every tenth asks, and is not among the answers: it would find itself.
        queries = tuple(texts[::10][:_MAX_QUERIES])
        asking = set(queries)
        chosen = Questions(queries, tuple(text for text in texts if text not in asking), ())
    num_texts = len(chosen.queries) + len(chosen.documents)
    if num_texts < MIN_TEXTS:
        raise InvalidRequest(
            f"{sample.name} has {num_texts} different texts; at least {MIN_TEXTS} are needed"
        )
    return chosen


def _ask(model: TextModel, chosen: Questions, on_progress: Callable[[int, int], None]) -> _Asked:
    queries, documents = chosen.queries, chosen.documents
    total = len(queries) + len(documents)

    def on_documents(done: int) -> None:
        on_progress(len(queries) + done, total)

    queries_QD = encode(model, queries, "query", lambda done: on_progress(done, total))
    documents_ND = encode(model, documents, "document", on_documents)
    if chosen.relevant:
        return _Asked(queries_QD, documents_ND, chosen.relevant)
    nearest = rank(truncate(queries_QD, model.full), truncate(documents_ND, model.full))
    return _Asked(queries_QD, documents_ND, [dict.fromkeys(rows, 1.0) for rows in nearest])


def _spread(items: S, count: int) -> S:
    """Take at most `count` items, evenly spread."""
    return items[:: max(1, -(-len(items) // count))]
