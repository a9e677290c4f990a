"""What a rotation of other domains does for a domain that it has not seen; and the one we ship.

Pairs of several domains lie in packages (`domains.py`), on this machine (docstrings) and in the
collections. Each domain in turn is left out whole, a rotation is trained on the others' pairs, and
the domain that it has not seen is asked: up to a thousand of its anchors against all its texts, or
a collection's test questions against its corpus, nDCG@10. Beside it the vectors cut as they are,
and on the principal axes of the same other domains. The last line of stdout is one JSON object.

    make domains
    python -m bench.general [--cache FOLDER] [--seeds N] [--ship FOLDER]

With `--ship` a rotation trained on all but the docstrings, which the demo asks, is written as the
files that turn the packaged model into `DEFAULT_MODEL`. No test question is among what it has
learned from.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.adaptor import COLLECTIONS, DIMS, encode, read_lines
from bench.domains import TextPair, read_packages
from bench.nest import distinct
from services.cli.corpus import read_corpus
from services.shared.card import FILENAME, DimScores, Quality
from services.shared.folder import BASE_MODEL, DEFAULT_MODEL, FROM_BASE, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.data.pairs import number_texts
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.results import export
from services.trainer.results.evaluate import evaluate
from services.trainer.training.adaptor import Adaptor, Rows, Vectors, principal_axes
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.layers import Layer
from services.trainer.training.train import plan, train

STEPS, LABEL_WEIGHT = 150, 0.2
SCORES = ("ndcg10", "recall10", "mrr10")
SIZES = tuple(dim for dim in DIMS if dim < 384)
NUM_DOCSTRINGS = 6000
_NUM_QUESTIONS, _SEED = 1000, 7
# A collection of the one domain has much of what the other is about.
_KIN = {"medquad": "diseases"}


@dataclass(frozen=True, slots=True)
class Source:
    """Pairs as vectors of unit length; no test question is among the training pairs."""

    domain: str
    anchors: Sequence[str]
    documents: Sequence[str]
    anchors_AD: Array
    documents_ND: Array
    anchor_rows_P: Rows
    positive_rows_P: Rows
    """Of the training pairs, rows of the two above."""
    questions_QD: Array
    relevant: Sequence[Mapping[int, float]]


def read_docstrings(model: TextModel, cache: Path | None) -> Source:
    """Read and encode what the demo asks: first sentences ask for the rest.

    They are documentation, as the packages' manuals are.
    """
    pairs = [(found.title, found.body) for found in read_corpus(None, NUM_DOCSTRINGS)]
    return _drawn("manuals", pairs, model, cache)


def read_collections(model: TextModel, cache: Path | None) -> list[Source]:
    """Read and encode the collections that there are."""
    return [_collection(path, model, cache) for path in COLLECTIONS if path.is_dir()]


def read_packaged(model: TextModel, folder: Path, cache: Path | None) -> list[Source]:
    """Read and encode the packages' pairs."""
    return [
        _drawn(domain, pairs, model, cache)
        for domain, sources in read_packages(folder).items()
        for pairs in sources
    ]


def _drawn(domain: str, pairs: Sequence[TextPair], model: TextModel, cache: Path | None) -> Source:
    """Up to a thousand anchors, and a third of a small source's, are test questions."""
    anchors = distinct([anchor for anchor, _ in pairs])
    order = np.random.default_rng(_SEED).permutation(len(anchors))
    drawn = order[: min(_NUM_QUESTIONS, len(anchors) // 3)]
    asked: dict[str, dict[str, float]] = {anchors[row]: {} for row in drawn}
    kept = []
    for anchor, text in pairs:
        if anchor in asked:
            asked[anchor][text] = 1.0
        else:
            kept.append((anchor, text))
    documents = distinct([text for _, text in pairs])
    return _source(domain, model, cache, anchors, documents, kept, asked)


def _collection(folder: Path, model: TextModel, cache: Path | None) -> Source:
    bodies = {
        line["id"]: ". ".join(filter(None, (line.get("title"), line["text"])))
        for line in read_lines(folder, "corpus.jsonl")
    }
    pairs = [(line["anchor"], line["positive"]) for line in read_lines(folder, "pairs.jsonl")]
    questions = {line["id"]: line["text"] for line in read_lines(folder, "queries.jsonl")}
    asked: dict[str, dict[str, float]] = {text: {} for text in questions.values()}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        asked[questions[query_id]][bodies[document_id]] = float(grade)
    documents = distinct(list(bodies.values()))
    known = [anchor for anchor, _ in pairs] + list(asked)
    return _source(folder.name, model, cache, known, documents, pairs, asked)


def _source(
    domain: str, model: TextModel, cache: Path | None, known: list[str], documents: list[str],
    pairs: Sequence[TextPair], asked: Mapping[str, Mapping[str, float]],
) -> Source:  # fmt: skip
    anchors = sorted(set(known))
    anchors_AD = normalize(encode(model, anchors, cache))
    documents_ND = normalize(encode(model, documents, cache))
    rows, places = number_texts(anchors), number_texts(documents)
    kept = [(anchor, body) for anchor, body in pairs if body in places]
    return Source(
        domain,
        anchors,
        documents,
        anchors_AD,
        documents_ND,
        np.array([rows[anchor] for anchor, _ in kept]),
        np.array([places[body] for _, body in kept]),
        anchors_AD[[rows[text] for text in asked]],
        [{places[body]: grade for body, grade in found.items()} for found in asked.values()],
    )


def join(sources: Sequence[Source]) -> Vectors:
    """Return the training pairs of several sources as one."""
    begin_A = np.cumsum([0, *(len(s.anchors_AD) for s in sources)])
    begin_N = np.cumsum([0, *(len(s.documents_ND) for s in sources)])
    return Vectors(
        np.concatenate([s.anchors_AD for s in sources]),
        np.concatenate([s.documents_ND for s in sources]),
        np.concatenate([s.anchor_rows_P + b for s, b in zip(sources, begin_A, strict=False)]),
        np.concatenate([s.positive_rows_P + b for s, b in zip(sources, begin_N, strict=False)]),
    )


def learn(vectors: Vectors, seed: int) -> Array:
    """Return the rotation, rotation_DD."""
    num_pairs, full = len(vectors.anchor_rows_P), vectors.anchors_ND.shape[1]
    hyper = fill(Wanted(steps=STEPS, seed=seed, matryoshka_dims=SIZES), full, num_pairs)
    adaptor = Adaptor(vectors, "rotation", hyper.trained_dims, LABEL_WEIGHT, seed)
    with tempfile.TemporaryDirectory() as checkpoints:
        course = plan(hyper, num_pairs, checkpoint_steps=STEPS)
        train(adaptor, course, Path(checkpoints), lambda _: None, Interrupt())
    return adaptor.weight()


def ask(sources: Sequence[Source], rotation_DD: Array | None) -> Array:
    """Return scores_SK, each of `SCORES` by size, the mean of a domain's sources."""
    scores = []
    for source in sources:
        sides = source.questions_QD, source.documents_ND
        if rotation_DD is not None:
            sides = sides[0] @ rotation_DD.T, sides[1] @ rotation_DD.T
        found = evaluate(*sides, source.relevant, DIMS)
        scores.append([[getattr(one, name) for one in found] for name in SCORES])
    mean: Array = np.mean(scores, axis=0)
    return mean


def measure(unseen: Sequence[Source], others: Sequence[Source], seeds: int) -> dict[str, Array]:
    """Train on the others, ask the unseen domain; return scores_SK of each way."""
    vectors = join(others)
    used = (
        vectors.anchors_ND[np.unique(vectors.anchor_rows_P)],
        vectors.positives_ND[np.unique(vectors.positive_rows_P)],
    )
    axes_DD = principal_axes(torch.from_numpy(np.concatenate(used))).numpy()
    runs = np.array([ask(unseen, learn(vectors, seed)) for seed in range(seeds)])
    ways = {
        "plain cut": ask(unseen, None),
        "principal axes": ask(unseen, axes_DD),
        "rotation": runs.mean(axis=0),
    }
    print(
        f"\n{unseen[0].domain}: {sum(len(s.questions_QD) for s in unseen)} questions, "
        f"{sum(len(s.documents_ND) for s in unseen)} texts; trained on "
        f"{len(vectors.anchor_rows_P)} pairs of {', '.join(distinct([s.domain for s in others]))}"
    )
    show(ways)
    _print_row("  seeds apart by", np.ptp(runs, axis=0)[0])
    return ways


def show(ways: Mapping[str, Array]) -> None:
    """Print each way's nDCG@10, and by how much the rotation is ahead of the better other."""
    print("nDCG@10".ljust(22) + "".join(f"{dim:>8}" for dim in DIMS))
    for name, scores_SK in ways.items():
        _print_row(name, scores_SK[0])
    ahead = ways["rotation"][0] - np.maximum(ways["plain cut"][0], ways["principal axes"][0])
    _print_row("  ahead of both by", ahead)


def _print_row(name: str, scores_K: Array) -> None:
    print(name.ljust(22) + "".join(f"{score:8.3f}" for score in scores_K), flush=True)


def ship(folder: Path, model: TextModel, sources: Sequence[Source], unseen: Source) -> None:
    """Write what makes the default model of the packaged one: its head, configs and README.

    Args:
        folder: replaced.
        model: the packaged one.
        sources: all of them are trained on.
        unseen: asked, for the README.
    """
    rotation_DD = learn(join(sources), seed=0)
    before, after = ask([unseen], None), ask([unseen], rotation_DD)
    print(f"\nthe head that is shipped, of {sum(len(s.anchor_rows_P) for s in sources)} pairs:")
    print(f"{len(unseen.questions_QD)} docstrings ask {len(unseen.documents_ND)} texts")
    _print_row("plain cut", before[0])
    _print_row("rotation", after[0])
    digest = hashlib.sha256()
    for text in (text for source in sources for text in (*source.anchors, *source.documents)):
        digest.update(text.encode() + b"\0")
    sides = [
        np.concatenate([getattr(source, side) for source in sources]) @ rotation_DD.T
        for side in ("anchors_AD", "documents_ND")
    ]
    with tempfile.TemporaryDirectory() as scratch:
        made, whole = Path(scratch) / "made", Path(scratch) / "whole"
        export.copy_base(model.folder, made)
        export.add_head(made, [Layer(rotation_DD)], model.pre_op)
        origin = export.Origin(
            model_id=DEFAULT_MODEL,
            base_model=BASE_MODEL,
            data_digest=digest.hexdigest(),
            dims=DIMS,
            prompts=model.prompts,
            base_space_id=model.space_id,
        )
        quality = Quality(
            data="docstrings, of which it has learned from none",
            num_queries=len(unseen.questions_QD),
            num_documents=len(unseen.documents_ND),
            before=_scores(before),
            after=_scores(after),
        )
        probe = sources[0].documents[:32], sides[1][:32]
        export.finish(made, whole, origin, quality, model.pre_op, model.max_tokens, probe, sides)
        # A card, and a config that names sizes, would bind it to them; it is served at any.
        for name in (*FROM_BASE, FILENAME):
            (whole / name).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)


def _scores(scores_SK: Array) -> tuple[DimScores, ...]:
    return tuple(
        DimScores(dim=dim, **dict(zip(SCORES, column.tolist(), strict=True)))
        for dim, column in zip(DIMS, scores_SK.T.round(4), strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, default=Path(".domains"))
    parser.add_argument("--cache", type=Path, help="keep vectors here, and use those kept")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ship", type=Path, help="write the default model's files here")
    options = parser.parse_args()
    # Not "auto", which may choose anew each time.
    model = TextModel(locate(BASE_MODEL), "bfloat16")
    packaged = read_packaged(model, options.packages, options.cache)
    if not packaged:
        parser.error(
            f"{options.packages} holds no packages: run `make domains`, or give --packages"
        )
    docstrings = read_docstrings(model, options.cache)
    others = read_collections(model, options.cache) + packaged
    sources = [docstrings, *others]
    domains = distinct([source.domain for source in sources])
    unseen = {name: [source for source in sources if source.domain == name] for name in domains}
    results = {}
    for name, asked in unseen.items():
        results[name] = measure(asked, [s for s in sources if s.domain != name], options.seeds)
    mean = {way: np.mean([found[way] for found in results.values()], axis=0)
            for way in results[domains[0]]}  # fmt: skip
    print(f"\nthe mean of these {len(domains)}")
    show(mean)
    for name, kin in _KIN.items():
        if name in results and kin in results:
            print(f"\nwithout {kin} either,", end="")
            rest = [source for source in sources if source.domain not in (name, kin)]
            results[f"{name} without {kin}"] = measure(unseen[name], rest, options.seeds)
    if options.ship:
        ship(options.ship, model, others, docstrings)
        print(f"\nwritten to {options.ship}")
    report = {
        name: {way: dict(zip(DIMS, scores_SK[0].round(4), strict=True))
               for way, scores_SK in found.items()}
        for name, found in {**results, "mean": mean}.items()
    }  # fmt: skip
    conditions = {"model": BASE_MODEL, "max_tokens": model.max_tokens, "steps": STEPS,
                  "label_weight": LABEL_WEIGHT, "seeds": options.seeds}  # fmt: skip
    print(json.dumps({"bench": "general", **conditions, "ndcg10": report}, default=float))


if __name__ == "__main__":
    main()
