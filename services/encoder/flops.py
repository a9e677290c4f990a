"""What a forward pass costs, and what the machine could do: model FLOPs utilisation.

In: the texts of each pass and its seconds. Out: two metrics, the floating-point operations that the
model needed (padding and whatever else a way of running adds are not needed), and which part that
is of the machine's own speed at matrix products in the same arithmetic, measured here.

Source: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B.
"""

import logging
import math
from collections.abc import Sequence

from services.encoder.metrics import EncoderMetrics
from services.shared.cross_encoder import CrossEncoder
from services.shared.flops import Cost, peak
from services.shared.images import ImageTokens
from services.shared.model import Role, TextModel
from services.shared.packing import Tokens
from services.shared.tower import TowerTokens

log = logging.getLogger(__name__)

# A pass is forgotten over this much later forward time, s: some ten full passes on a CPU.
_REMEMBERED_S = 1.0


class Utilization:
    """Counts one model's operations, and compares the last passes with the machine's peak.

    Args:
        model_id: the metrics' label.
        peak: of the machine, FLOP/s; None shows no utilisation.
    """

    def __init__(
        self,
        model_id: str,
        text_model: TextModel | CrossEncoder,
        metrics: EncoderMetrics,
        peak: float | None,
    ) -> None:
        self._costs = {role: Cost.of(tower.network) for role, tower in text_model.towers.items()}
        self._model_id = model_id
        self._metrics = metrics
        self._peak = peak
        self._flops = 0.0
        self._seconds = 0.0

    def observe(self, batch: Sequence[Tokens], seconds: float) -> None:
        """Learn of one pass; called on the forward thread."""
        flops = sum(self._costs[_role(tokens)].flops(len(tokens)) for tokens in batch)
        self._metrics.forward_flops.labels(self._model_id).inc(flops)
        if self._peak is None:
            return
        kept = math.exp(-seconds / _REMEMBERED_S)
        self._flops = self._flops * kept + flops
        self._seconds = self._seconds * kept + max(seconds, 1e-6)
        ratio = self._flops / self._seconds / self._peak
        self._metrics.flops_utilization.labels(self._model_id).set(ratio)

    def forget(self) -> None:
        """Take an unloaded model's utilisation away."""
        self._peak = None
        self._metrics.flops_utilization.remove_by_labels({"model": self._model_id})


def measure_peak(text_model: TextModel | CrossEncoder) -> float | None:
    """Return the machine's speed at matrix products as a model makes them, FLOP/s.

    None where it says nothing of the model: a static one makes none, and what a picture needs is
    not counted. Of a model with two towers in two arithmetics the first one's is taken.
    """
    if any(tower.is_static or tower.takes_images for tower in text_model.towers.values()):
        return None
    arithmetic = text_model.engine.partition(",")[0].split()[-1]
    try:
        return peak(arithmetic, text_model.device)
    except RuntimeError as error:  # no memory is left for it: a model is served without a gauge
        log.warning("the peak in %s could not be measured: %s", arithmetic, error)
        return None


def _role(tokens: Tokens) -> Role:
    return tokens.role if isinstance(tokens, TowerTokens | ImageTokens) else "none"
