"""Which part of the machine's peak a training reaches: model FLOPs utilisation, while it runs.

Operations that the model needs, not those that are run: a second forward pass to save memory counts
as waste, and so does the time of the loss, of the optimizer, of checkpoints and of looks.
"""

import logging
import time

from services.shared.flops import peak
from services.trainer.training.passes import Passes

log = logging.getLogger(__name__)


class Utilization:
    """Compares what went through a model since the last look with what could have.

    Args:
        passes: count what their texts need.
        is_frozen: whether the weights get no gradients of their own (LoRA).
    """

    def __init__(self, passes: Passes, is_frozen: bool) -> None:
        self._passes = passes
        # Gradients take a forward pass for the texts, and another for the weights.
        self._times = 2 if is_frozen else 3
        self._peak = _measure(passes)
        self._flops = passes.num_flops
        self._at = time.monotonic()

    def look(self) -> float:
        """Return the ratio since the last look, 0..1; 0.0 where nothing is known of it."""
        now, flops = time.monotonic(), self._passes.num_flops
        seconds = max(now - self._at, 1e-6)
        done = self._times * (flops - self._flops)
        self._at, self._flops = now, flops
        return done / seconds / self._peak if self._peak else 0.0


def _measure(passes: Passes) -> float:
    """Return the peak, FLOP/s; 0.0: the model multiplies nothing, or there is no memory for it."""
    if passes.is_static:
        return 0.0
    try:
        return peak(passes.arithmetic, passes.device)
    except RuntimeError as error:  # a job trains without it
        log.warning("the peak in %s could not be measured: %s", passes.arithmetic, error)
        return 0.0
