"""Whether searching hard questions once more pays: a short list for all, a longer one for some.

After a shortlist on a nested size and its rerank, three signals say how sure a result is: by how
much the last hit's full score is above the shortlist's last short score, how far short scores fall
from the wanted number of hits to the shortlist's end, and how deep in the shortlist the deepest
hit stood. The surest stay; the others are searched again with a longer shortlist. Counted in
candidates scored anew, which is what a search's time follows; the second way to the engine is not
even counted. Lengths and the share are chosen on half of the questions, to reach the target there
at the least cost. On the other half that is held against one length for all, the one that finds as
much there (between two lengths, interpolated). The last line of stdout is one JSON object.

    python -m bench.escalation [--max-tokens N] [--cache FOLDER]
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.adaptor import COLLECTIONS
from bench.nest import learn_rotation, read_collection, read_docstrings
from bench.report import cpu
from bench.router import load
from bench.timed import Vectors
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, truncate

DIMS = (64, 128)
TARGETS = (0.9, 0.95, 0.99)
LIMIT = 10
LENGTHS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 160, 200, 250, 320, 400, 500, 640, 800,
           1000, 1300, 1600, 2000)  # fmt: skip
_BLOCK = 250


@dataclass(frozen=True, slots=True)
class Ranked:
    """Questions, each with the best of its collection by the short size, best first."""

    places_QK: Array
    """Where each of the true hits stands; the longest length where it is further off."""
    short_QL: Array
    """Short scores."""
    full_QL: Array
    """Full scores of the same points."""

    def half(self, which: int) -> "Ranked":
        return Ranked(self.places_QK[which::2], self.short_QL[which::2], self.full_QL[which::2])

    def recalls(self, length: int) -> Array:
        return (self.places_QK < length).mean(axis=1)


Signal = Callable[[Ranked, int], Array]


def margin(ranked: Ranked, length: int) -> Array:
    last_hits = np.partition(ranked.full_QL[:, :length], -LIMIT, axis=1)[:, -LIMIT]
    return last_hits - ranked.short_QL[:, length - 1]


def fall(ranked: Ranked, length: int) -> Array:
    return ranked.short_QL[:, LIMIT - 1] - ranked.short_QL[:, length - 1]


def depth(ranked: Ranked, length: int) -> Array:
    hits = np.argpartition(-ranked.full_QL[:, :length], LIMIT - 1, axis=1)[:, :LIMIT]
    return -hits.max(axis=1).astype(np.float64)


SIGNALS: dict[str, Signal] = {"margin": margin, "fall": fall, "depth": depth}


def rank(documents_ND: Array, questions_QD: Array, turned_NM: Array, asked_QM: Array) -> Ranked:
    """Compare every question with every document, at full size and at the short one."""
    longest = LENGTHS[-1]
    parts = []
    for begin in range(0, len(questions_QD), _BLOCK):
        some = slice(begin, begin + _BLOCK)
        full_BN = questions_QD[some] @ documents_ND.T
        short_BN = asked_QM[some] @ turned_NM.T
        hits_BK = np.argpartition(-full_BN, LIMIT, axis=1)[:, :LIMIT]
        order_BL = np.argsort(-short_BN, axis=1)[:, :longest]
        place_BN = np.full(full_BN.shape, longest)
        np.put_along_axis(place_BN, order_BL, np.arange(longest)[None], axis=1)
        parts.append(
            Ranked(
                np.take_along_axis(place_BN, hits_BK, axis=1),
                np.take_along_axis(short_BN, order_BL, axis=1),
                np.take_along_axis(full_BN, order_BL, axis=1),
            )
        )
    return Ranked(
        np.concatenate([part.places_QK for part in parts]),
        np.concatenate([part.short_QL for part in parts]),
        np.concatenate([part.full_QL for part in parts]),
    )


def one_length(ranked: Ranked, target: float) -> int:
    """Return the shortest list that keeps the target; the longest if none does."""
    kept = (length for length in LENGTHS if ranked.recalls(length).mean() >= target)
    return next(kept, LENGTHS[-1])


def same_length(ranked: Ranked, recall: float) -> float:
    """Return the length that finds as much, between two that were tried."""
    recalls = [float(ranked.recalls(length).mean()) for length in LENGTHS]
    return float(np.exp(np.interp(recall, recalls, np.log(LENGTHS))))


def two_lengths(ranked: Ranked, target: float, signal: Signal) -> tuple[int, int, float]:
    """Return the cheapest pair that keeps the target, and the signal under which it is used."""
    best, chosen = float(one_length(ranked, target)), (one_length(ranked, target), 0, -np.inf)
    for first in LENGTHS:
        before = ranked.recalls(first)
        if before.mean() >= target:
            break
        signals = signal(ranked, first)
        order = np.argsort(signals)
        for second in (length for length in LENGTHS if length > first):
            gains = (ranked.recalls(second) - before)[order].cumsum() / len(before)
            needed = int(np.searchsorted(gains + before.mean(), target))
            if needed >= len(order):
                continue
            cost = first + (needed + 1) / len(order) * second
            if cost < best:
                best, chosen = cost, (first, second, float(signals[order[needed]]))
    return chosen


def measure(data: Vectors, dim: int, seen: dict[str, object], table: Table) -> None:
    rotation = learn_rotation(data.documents_ND, data.known_QD[:2000], [dim])
    turned_NM = truncate(rotation.turn(data.documents_ND), dim)
    asked_QM = truncate(rotation.turn(data.timed_QD), dim)
    ranked = rank(data.documents_ND, data.timed_QD, turned_NM, asked_QM)
    chosen_on, held_out = ranked.half(0), ranked.half(1)
    for target in TARGETS:
        alone = one_length(chosen_on, target)
        alone_recall = float(held_out.recalls(alone).mean())
        row = [data.name, str(dim), f"{target:g}", f"{alone} ({alone_recall:.3f})"]
        told: dict[str, object] = {"one": alone, "recall": round(alone_recall, 4)}
        for name, signal in SIGNALS.items():
            first, second, least = two_lengths(chosen_on, target, signal)
            again = signal(held_out, first) <= least
            recalls = np.where(again, held_out.recalls(second), held_out.recalls(first))
            cost = first + float(again.mean()) * second
            ratio = cost / same_length(held_out, float(recalls.mean()))
            row.append(f"{ratio:.2f} ({recalls.mean():.3f}; {again.mean():.0%} again)")
            told[name] = {
                "cost_ratio": round(ratio, 3),
                "recall": round(float(recalls.mean()), 4),
                "share": round(float(again.mean()), 3),
            }
        table.add_row(*row)
        seen[f"{data.name}/{dim}/{target:g}"] = told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    model = TextModel(locate(BASE_MODEL))
    model.max_tokens = arguments.max_tokens
    columns = ("collection", "nested size", "target", "one length (recall)")
    title = "candidates in the mean over those of the one length that finds as much"
    table = Table(*columns, *SIGNALS, title=title, title_justify="left")
    seen: dict[str, object] = {}
    texts = [read_docstrings(), *(read_collection(f) for f in COLLECTIONS if f.exists())]
    for some in texts:
        data = load(some, model, arguments.cache)
        if len(data.documents_ND) < LENGTHS[-1]:
            continue
        for dim in DIMS:
            measure(data, dim, seen, table)
    console = Console(width=140)
    console.print(f"{cpu()}; {len(LENGTHS)} lengths, {LIMIT} hits")
    console.print(table)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
