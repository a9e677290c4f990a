"""Hard negatives mined with the base model: for each pair the texts that it takes for answers.

Candidates are the positives of the other training pairs, all of them, compared exactly; and what a
collection's searches found for the anchor, if the job mines there. A text that scores nearly as
high as the pair's own positive is often another right answer that nobody labelled, so only texts
below a share of the positive's score are taken (Moreira et al. 2024, NV-Retriever,
arXiv:2407.15831, TopK-PercPos; 95 % was best there). Never taken: a positive of the same anchor,
the anchor itself, a text that the pair has as a negative already, and of texts that count as the
same more than one.

Shapes: P pairs, A anchors, N documents, F texts found, L found for one anchor at most, C pairs of a
chunk, K negatives mined, D full width.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from services.shared.vectors import Array
from services.trainer.data.checks import text_key
from services.trainer.data.finds import Finds
from services.trainer.data.pairs import Pair, number_texts
from services.trainer.data.pictures import Item
from services.trainer.jobs.spec import Mining
from services.trainer.training.checkpoint import write_atomic

_CHUNK_PAIRS = 4096  # what a killed job mines again at most
_BLOCK_SCORES = 2**24  # 64 MiB of float32 scores at a time

Rows = np.ndarray[tuple[int, int], np.dtype[np.int64]]


def mine(
    pairs: Sequence[Pair],
    anchors_AD: Array,
    documents: Sequence[Item],
    documents_ND: Array,
    mining: Mining,
    folder: Path,
    on_progress: Callable[[int], None],
    found: Finds,
    found_FD: Array,
) -> tuple[Pair, ...]:
    """Return the pairs with mined negatives behind those that they had.

    Args:
        pairs: the training pairs.
        anchors_AD: the base's vectors of their anchors, each text once, in order of appearance.
        documents: texts, all positives of the pairs among them.
        documents_ND: their vectors.
        mining: how many, and how near to the positive.
        folder: keeps what is mined, so that a killed job goes on.
        on_progress: called with the number of pairs done; what it raises stops the work.
        found: candidates beside the positives, by the order in which anchors appear; no text that
            counts as one of the documents.
        found_FD: the base's vectors of their texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    miner = _Miner(pairs, anchors_AD, documents, documents_ND, mining, found, found_FD)
    candidates = (*documents, *found.texts)
    mined: list[Pair] = []
    for begin in range(0, len(pairs), _CHUNK_PAIRS):
        end = min(begin + _CHUNK_PAIRS, len(pairs))
        path = folder / f"{begin:09d}.npy"
        if path.exists():
            found_CK = np.load(path, allow_pickle=False)
        else:

            def on_block(done: int, begin: int = begin) -> None:
                on_progress(begin + done)

            found_CK = miner.find(begin, end, on_block)
            data = io.BytesIO()
            np.save(data, found_CK, allow_pickle=False)
            write_atomic(path, data.getvalue())
        on_progress(end)
        for pair, rows in zip(pairs[begin:end], found_CK.tolist(), strict=True):
            more = tuple(candidates[row] for row in rows if row >= 0)
            mined.append(replace(pair, negatives=(*pair.negatives, *more)))
    return tuple(mined)


class _Miner:
    """The candidates, and for each anchor those that it must not get."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        anchors_AD: Array,
        documents: Sequence[Item],
        documents_ND: Array,
        mining: Mining,
        found: Finds,
        found_FD: Array,
    ) -> None:
        self._pairs = pairs
        self._mining = mining
        self._anchor_rows = number_texts(pair.anchor for pair in pairs)
        self._anchors_AD = functional.normalize(torch.from_numpy(anchors_AD))
        rows = number_texts(documents)
        # Of texts that count as the same the first stands for all.
        self._places: dict[bytes, int] = {}
        candidates: list[int] = []
        for text in number_texts(pair.positive for pair in pairs):
            if self._places.setdefault(text_key(text), len(candidates)) == len(candidates):
                candidates.append(rows[text])
        self._num_positives = len(candidates)
        self._candidates_ND = functional.normalize(torch.from_numpy(documents_ND[candidates]))
        # Texts found have the places behind these, and the rows behind the documents'.
        for place, text in enumerate(found.texts, start=len(candidates)):
            self._places.setdefault(text_key(text), place)
        behind_F = torch.arange(len(documents), len(documents) + len(found.texts))
        self._rows = torch.cat([torch.tensor(candidates), behind_F])
        self._found_FD = functional.normalize(torch.from_numpy(found_FD))
        most = max(map(len, found.rows), default=0)
        self._found_AL = torch.full((len(anchors_AD), most), -1)
        for anchor, mine in enumerate(found.rows):
            self._found_AL[anchor, : len(mine)] = torch.tensor(mine) + len(candidates)
        self._answers: dict[Item, set[int]] = defaultdict(set)
        for pair in pairs:
            self._answers[pair.anchor].add(self._places[text_key(pair.positive)])

    def find(self, begin: int, end: int, on_progress: Callable[[int], None]) -> Rows:
        """Return the rows of the negatives found for some pairs, best first; -1: no more."""
        size = max(self._num_positives, self._found_AL.shape[1] * self._anchors_AD.shape[1])
        block = max(1, _BLOCK_SCORES // size)
        found = []
        for first in range(begin, end, block):
            last = min(first + block, end)
            found.append(self._find_block(self._pairs[first:last]))
            on_progress(last - begin)
        found_CK: Rows = torch.cat(found).numpy()
        return found_CK

    def _find_block(self, pairs: Sequence[Pair]) -> torch.Tensor:
        anchors_C = [self._anchor_rows[pair.anchor] for pair in pairs]
        anchors_CD = self._anchors_AD[anchors_C]
        scores_CN = anchors_CD @ self._candidates_ND.T
        own_C = torch.tensor([self._places[text_key(pair.positive)] for pair in pairs])
        own_scores_C1 = scores_CN.gather(1, own_C[:, None])
        # A share of the score, downwards where it is negative too.
        limit_C1 = own_scores_C1 - (1 - self._mining.margin) * own_scores_C1.abs()
        taboo = [self._taboo(pair) for pair in pairs]
        rows, places = torch.tensor(
            [
                (r, place)
                for r, mine in enumerate(taboo)
                for place in mine
                if place < self._num_positives
            ]
        ).T
        scores_CN[rows, places] = -torch.inf
        scores_CN.masked_fill_(scores_CN > limit_C1, -torch.inf)
        best_CK, places_CK = scores_CN.topk(min(self._mining.negatives, self._num_positives), dim=1)
        if self._found_AL.shape[1]:
            found_CL = self._found_AL[anchors_C]
            vectors_CLD = self._found_FD[(found_CL - self._num_positives).clamp_min(0)]
            scores_CL = (vectors_CLD @ anchors_CD[:, :, None])[:, :, 0]
            scores_CL[(found_CL < 0) | (scores_CL > limit_C1)] = -torch.inf
            for row, mine in enumerate(taboo):
                scores_CL[row, torch.isin(found_CL[row], torch.tensor(sorted(mine)))] = -torch.inf
            places_CK = torch.cat([places_CK, found_CL], dim=1)
            count = min(self._mining.negatives, places_CK.shape[1])
            best_CK, chosen_CK = torch.cat([best_CK, scores_CL], dim=1).topk(count, dim=1)
            places_CK = places_CK.gather(1, chosen_CK)
        return self._rows[places_CK].masked_fill(best_CK.isinf(), -1)

    def _taboo(self, pair: Pair) -> set[int]:
        """Return the candidates that are no negatives of a pair, or are its own already."""
        keys = map(text_key, (pair.anchor, *pair.negatives))
        known = {place for key in keys if (place := self._places.get(key)) is not None}
        return known | self._answers[pair.anchor]
