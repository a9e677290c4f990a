"""Nesting: a rotation that makes any vectors Matryoshka, learned from the vectors alone.

A rotation changes no score at full size, so it needs no labels: the full size itself says how
each prefix should rank. It starts from the principal axes and is trained until the softmax of
each prefix's cosines over a pool of documents is that of the full cosines. Where real queries
are known they ask, together with documents; else documents stand in for them.

Tried on docstrings (35,603 of 384 numbers, 500 other first sentences as queries; recall of the
exact top 10 in a shortlist of 50 at 64 numbers, plain .672, PCA .868). One run each, in rounds of
other steps and rates, so .005 between two of them says nothing:
random pools, scale 20: .928; a scale learned for each size: .930, and .941 instead of .935 for
documents as queries; near neighbours mined into the pools: .926; scale 40: .919; 64 the only
size: .933; 256 of the axes turned, not all: .920; 2,000 or 5,000 documents: .05 or .02 less.
Who asks: documents .926, 6635 titles .941, the same and as many documents .936, 200 titles
.874, these among 1800 documents .921. So a few queries are filled up with documents.

Few documents are learned by heart, so the last thing is to try parts of the way from the axes on
anchors that were not learned from. Of 2,067 documents of squad-split PCA keeps .990, the whole
way (80 steps) .971, a quarter .990; of 2,000 docstrings PCA .871, the whole way (40 steps) .906,
three quarters .910.

Shapes: N documents, A anchors (who asks), C anchors to check with, B anchors of a step, P
documents of its pool, D full width, R axes that are turned, M widest trained size, K sizes.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from services.shared.vectors import Array
from services.trainer.data.sample import Sample
from services.trainer.results.shortlist import TOP, best, recall
from services.trainer.training.adaptor import principal_axes
from services.trainer.training.loss import nested_loss

log = logging.getLogger(__name__)

POOL = 2048
MAX_TURNED = 768
"""Principal axes that are turned; those behind them stay. A step solves for as many numbers."""
MAX_DOCUMENTS = 65_536
"""Documents in memory while training, drawn at random."""
_MIN_ANCHORS = 8192  # fewer queries than half of it are filled up with documents
# The scale times the spread of a query's cosines, so that models whose cosines lie close together
# are taught no less sharply; 20 to 24 with all-MiniLM-L6-v2.
_SHARPNESS = 2.2
_MAX_CHECKS, _CHECK_DOCUMENTS = 256, 16_384
_PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ENOUGH = 0.002  # less than chance makes with so few checks
_SCALE_RATE = 10.0  # the logarithms of the scales may move faster than the angles


class Nest:
    """The rotation in training (a `train.Trainee`).

    Args:
        data: the sample.
        dims: sizes to train for, ascending.
        seed: of the choice of documents and anchors.
    """

    def __init__(self, data: Sample, dims: Sequence[int], seed: int) -> None:
        self._dims = tuple(dims)
        checks_CD, self._documents_ND = _split(_shuffle(data.documents_ND, seed))
        queries_QD = None
        if data.queries_QD is not None:
            asked_CD, queries_QD = _split(_shuffle(data.queries_QD, seed))
            checks_CD = torch.cat([asked_CD, checks_CD])
        self._checks_CD = checks_CD
        self._anchors_AD, self._own_rows_A = _anchors(self._documents_ND, queries_QD)
        self._axes_DD = principal_axes(self._documents_ND)
        self._turned = min(len(self._axes_DD), MAX_TURNED)
        axes_RD = self._axes_DD[: self._turned]
        self._documents_NR = self._documents_ND @ axes_RD.T
        self._anchors_AR = self._anchors_AD @ axes_RD.T
        self._scale = _scale(self._anchors_AD, self._documents_ND)
        # The turn is the Cayley transform of a skew matrix.
        self._change_RR = torch.nn.Parameter(torch.zeros(self._turned, self._turned))
        self._log_scales_K = torch.nn.Parameter(torch.zeros(len(dims)))
        self.parameters = {"change": self._change_RR, "log_scales": self._log_scales_K}

    @property
    def num_anchors(self) -> int:
        return len(self._anchors_AD)

    @property
    def axes_DD(self) -> Array:
        """The principal axes, float32, where the training starts."""
        axes: Array = self._axes_DD.numpy()
        return axes

    num_tokens = 0

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the anchors, as `train.Trainee`; the pool is the step's own draw."""
        pool_P = torch.randperm(len(self._documents_ND))[:POOL]
        blocked_BP = self._own_rows_A[rows_B][:, None] == pool_P
        with torch.no_grad():
            cosines_BP = self._anchors_AD[rows_B] @ self._documents_ND[pool_P].T
            targets_BP = (self._scale * cosines_BP).masked_fill_(blocked_BP, -torch.inf).softmax(1)
        turn_MR = self._turn()
        return nested_loss(
            self._anchors_AR[rows_B] @ turn_MR.T, self._documents_NR[pool_P] @ turn_MR.T,
            self._dims, targets_BP, blocked_BP,
            self._scale * (_SCALE_RATE * self._log_scales_K).exp(),
        )  # fmt: skip

    @torch.no_grad()
    def rotation(self) -> Array:
        """Return rotation_DD, float32, to be applied as `vectors @ rotation.T`.

        It goes as far from the principal axes as serves those anchors that were not learned from.
        Made in float64 and polished there to the nearest orthogonal matrix: what is left is the
        rounding of float32, below 1e-6 in any full-width cosine.
        """
        skew_RR = self._choose_part() * _skew(self._change_RR.double())
        eye_RR = torch.eye(self._turned, dtype=torch.float64)
        rotation_DD = self._axes_DD.double()
        turn_RR = torch.linalg.solve(eye_RR + skew_RR, eye_RR - skew_RR)
        rotation_DD[: self._turned] = turn_RR @ rotation_DD[: self._turned]
        # Newton and Schulz: the axes were orthogonal to float32's rounding; a step squares that.
        error_DD = rotation_DD @ rotation_DD.T
        error_DD.diagonal().sub_(1)
        rotation_DD -= 0.5 * error_DD @ rotation_DD
        result: Array = rotation_DD.float().numpy()
        return result

    def _choose_part(self) -> float:
        """Return the shortest part of the way that keeps about the most in shortlists."""
        documents_ND = self._documents_ND[:_CHECK_DOCUMENTS]
        documents_NR = self._documents_NR[:_CHECK_DOCUMENTS]
        checks_CR = self._checks_CD @ self._axes_DD[: self._turned].T
        exact_CN = best(self._checks_CD, documents_ND, TOP)
        kept = {}
        for part in _PARTS:
            turn_MR = self._turn(part)
            sides = checks_CR @ turn_MR.T, documents_NR @ turn_MR.T
            shares = [recall(*sides, dim, exact_CN) for dim in self._dims]
            kept[part] = sum(shares) / len(shares)
        log.info("mean recall by the part of the way: %s", kept)
        return min(part for part in _PARTS if kept[part] >= max(kept.values()) - _ENOUGH)

    def _turn(self, part: float = 1.0) -> torch.Tensor:
        """Return turn_MR: of the Cayley transform the rows that the trained sizes use.

        (I + S)^-1 (I - S) = 2 (I + S)^-1 - I, and (I + S)^T = I - S: so the first M rows cost a
        solve for M columns.
        """
        widest = self._dims[-1]
        eye_RR = torch.eye(self._turned)
        skew_RR = part * _skew(self._change_RR)
        solved_RM = torch.linalg.solve(eye_RR - skew_RR, eye_RR[:, :widest])
        turn_MR: torch.Tensor = 2 * solved_RM.T - eye_RR[:widest]
        return turn_MR


def _skew(change_RR: torch.Tensor) -> torch.Tensor:
    upper_RR = change_RR.triu(diagonal=1)
    return upper_RR - upper_RR.T


def _shuffle(vectors_ND: Array, seed: int) -> torch.Tensor:
    """Return the vectors in an order of chance, `MAX_DOCUMENTS` of them at most."""
    rows = np.random.default_rng([seed, len(vectors_ND)]).permutation(len(vectors_ND))
    return torch.from_numpy(vectors_ND[rows[:MAX_DOCUMENTS]])


def _split(shuffled_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors to check with, a tenth and `_MAX_CHECKS` at most, and the others."""
    count = min(len(shuffled_ND) // 10, _MAX_CHECKS)
    return shuffled_ND[:count], shuffled_ND[count:]


def _anchors(
    documents_ND: torch.Tensor, queries_QD: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return who asks, and for each its own row of the documents; -1: it is none of them."""
    rows_N = torch.arange(len(documents_ND))
    if queries_QD is None:
        return documents_ND, rows_N
    rows_A = rows_N[: max(len(queries_QD), _MIN_ANCHORS - len(queries_QD))]
    own_rows_A = torch.cat([torch.full((len(queries_QD),), -1), rows_A])
    return torch.cat([queries_QD, documents_ND[rows_A]]), own_rows_A


def _scale(anchors_AD: torch.Tensor, documents_ND: torch.Tensor) -> float:
    """Return the factor of the cosines in the softmax: small where they differ much."""
    step_A, step_N = -(-len(anchors_AD) // 512), -(-len(documents_ND) // 2048)
    cosines = anchors_AD[::step_A] @ documents_ND[::step_N].T
    return _SHARPNESS / max(float(cosines.std(dim=1).mean()), 1e-6)
