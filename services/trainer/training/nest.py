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

Of wide vectors steps see the turned axes only, and no axis behind the widest size is turned for
its own sake. With a whole skew matrix and targets from all numbers, which cost more, and as it is,
at 16, 32, 64 and 128 numbers: 38,000 docstrings .546, .799, .958, .997 and .549, .802, .958, .998;
6,700 first sentences, made longer to 1536 numbers (`bench/made.py`), .612, .823, .946, .993 and
.614, .826, .946, .993.

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
"""Principal axes that are turned; those behind them stay, and no step sees what lies on them."""
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
        checks_CD, documents_ND = _split(_shuffle(data.documents_ND, seed))
        asked_QD = documents_ND[:0]
        if data.queries_QD is not None:
            asked_CD, asked_QD = _split(_shuffle(data.queries_QD, seed))
            checks_CD = torch.cat([asked_CD, checks_CD])
        self._axes_DD = principal_axes(documents_ND)
        self._exact_CN = best(checks_CD, documents_ND[:_CHECK_DOCUMENTS], TOP)
        # From here on all is seen on the axes that are turned: of wide vectors a step would
        # otherwise read and multiply the most for what the rest of the axes adds to its targets.
        axes_RD = self._axes_DD[:MAX_TURNED]
        self._checks_CR = checks_CD @ axes_RD.T
        self._documents_NR = documents_ND @ axes_RD.T
        self._anchors_AR, self._own_rows_A = _anchors(self._documents_NR, asked_QD @ axes_RD.T)
        self._scale = _scale(self._anchors_AR, self._documents_NR)
        self._change_RM = torch.nn.Parameter(torch.zeros(len(axes_RD), dims[-1]))
        self._log_scales_K = torch.nn.Parameter(torch.zeros(len(dims)))
        self.parameters = {"change": self._change_RM, "log_scales": self._log_scales_K}

    @property
    def num_anchors(self) -> int:
        return len(self._anchors_AR)

    @property
    def axes_DD(self) -> Array:
        """The principal axes, float32, where the training starts."""
        axes: Array = self._axes_DD.numpy()
        return axes

    num_tokens = 0

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the anchors, as `train.Trainee`; the pool is the step's own draw."""
        pool_P = torch.randperm(len(self._documents_NR))[:POOL]
        blocked_BP = self._own_rows_A[rows_B][:, None] == pool_P
        anchors_BR, documents_PR = self._anchors_AR[rows_B], self._documents_NR[pool_P]
        cosines_BP = anchors_BR @ documents_PR.T
        targets_BP = (self._scale * cosines_BP).masked_fill_(blocked_BP, -torch.inf).softmax(1)
        turn_MR = self.turn()
        return nested_loss(
            anchors_BR @ turn_MR.T, documents_PR @ turn_MR.T, self._dims, targets_BP, blocked_BP,
            self._scale * (_SCALE_RATE * self._log_scales_K).exp(),
        )  # fmt: skip

    def turn(self, part: float = 1.0) -> torch.Tensor:
        """Return turn_MR, on the principal axes: the rows of the rotation that the sizes use.

        (I + S)^-1 (I - S) = 2 (I + S)^-1 - I, and (I + S)^T = I - S: so the first M rows are those
        of the first M columns of (I - S)^-1. With S = (A, -L^T; L, 0) these are X over L X, where
        X = (I - A + L^T L)^-1: a solve for M numbers, however many axes are turned.
        """
        widest = self._dims[-1]
        lower_RM = part * self._change_RM.tril(diagonal=-1)
        inner_MM, outer_LM = lower_RM[:widest], lower_RM[widest:]
        eye_MM = torch.eye(widest)
        left_MM = eye_MM - inner_MM + inner_MM.T + outer_LM.T @ outer_LM
        solved_MM = torch.linalg.solve(left_MM, eye_MM)
        return torch.cat([2 * solved_MM - eye_MM, 2 * outer_LM @ solved_MM]).T

    @torch.no_grad()
    def rotation(self) -> Array:
        """Return rotation_DD, float32, to be applied as `vectors @ rotation.T`.

        It goes as far from the principal axes as serves those anchors that were not learned from.
        Made in float64 and polished there to the nearest orthogonal matrix: what is left is the
        rounding of float32, below 1e-6 in any full-width cosine.
        """
        skew_RR = self._choose_part() * self._skew()
        eye_RR = torch.eye(len(skew_RR), dtype=torch.float64)
        turn_RR = torch.linalg.solve(eye_RR + skew_RR, eye_RR - skew_RR)
        rotation_DD = self._axes_DD.double()
        rotation_DD[: len(turn_RR)] = turn_RR @ rotation_DD[: len(turn_RR)]
        # Newton and Schulz: the axes were orthogonal to float32's rounding; a step squares that.
        error_DD = rotation_DD @ rotation_DD.T
        error_DD.diagonal().sub_(1)
        rotation_DD -= 0.5 * error_DD @ rotation_DD
        result: Array = rotation_DD.float().numpy()
        return result

    def _choose_part(self) -> float:
        """Return the shortest part of the way that keeps about the most in shortlists."""
        documents_NR = self._documents_NR[:_CHECK_DOCUMENTS]
        kept = {}
        for part in _PARTS:
            turn_MR = self.turn(part)
            sides = self._checks_CR @ turn_MR.T, documents_NR @ turn_MR.T
            shares = [recall(*sides, dim, self._exact_CN) for dim in self._dims]
            kept[part] = sum(shares) / len(shares)
        log.info("mean recall by the part of the way: %s", kept)
        return min(part for part in _PARTS if kept[part] >= max(kept.values()) - _ENOUGH)

    def _skew(self) -> torch.Tensor:
        """Return skew_RR, float64: only its first M columns, and so its first M rows, are trained.

        The others would turn the last axes among themselves, which changes no trained size.
        """
        skew_RR = torch.zeros(len(self._change_RM), len(self._change_RM), dtype=torch.float64)
        skew_RR[:, : self._dims[-1]] = self._change_RM.tril(diagonal=-1)
        return skew_RR - skew_RR.T


def _shuffle(vectors_ND: Array, seed: int) -> torch.Tensor:
    """Return the vectors in an order of chance, `MAX_DOCUMENTS` of them at most."""
    rows = np.random.default_rng([seed, len(vectors_ND)]).permutation(len(vectors_ND))
    return torch.from_numpy(vectors_ND[rows[:MAX_DOCUMENTS]])


def _split(shuffled_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors to check with, a tenth and `_MAX_CHECKS` at most, and the others."""
    count = min(len(shuffled_ND) // 10, _MAX_CHECKS)
    return shuffled_ND[:count], shuffled_ND[count:]


def _anchors(
    documents_NR: torch.Tensor, queries_QR: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return who asks, and for each its own row of the documents; -1: it is none of them."""
    rows_N = torch.arange(len(documents_NR))
    if not len(queries_QR):
        return documents_NR, rows_N
    rows_A = rows_N[: max(len(queries_QR), _MIN_ANCHORS - len(queries_QR))]
    own_rows_A = torch.cat([torch.full((len(queries_QR),), -1), rows_A])
    return torch.cat([queries_QR, documents_NR[rows_A]]), own_rows_A


def _scale(anchors_AR: torch.Tensor, documents_NR: torch.Tensor) -> float:
    """Return the factor of the cosines in the softmax: small where they differ much."""
    step_A, step_N = -(-len(anchors_AR) // 512), -(-len(documents_NR) // 2048)
    cosines = anchors_AR[::step_A] @ documents_NR[::step_N].T
    return _SHARPNESS / max(float(cosines.std(dim=1).mean()), 1e-6)
