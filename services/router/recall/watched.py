"""What is known of the recall of live searches, slice by slice, and what lost it."""

from collections import deque
from dataclasses import dataclass, field

from services.router.recall.bounds import Alarm

CAUSES = ("prefix", "graph", "quantization", "filter")
_WINDOW = 1000


@dataclass(slots=True)
class Watched:
    """What is known of a slice of a collection."""

    num_searches: int = 0
    num_measured: int = 0
    recalls: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    """Mean of what was lost, by cause, over all that was measured."""
    lower: float = 0.0
    upper: float = 1.0
    target: float | None = None
    alarm: Alarm | None = None

    @property
    def mean(self) -> float:
        return sum(self.recalls) / max(1, len(self.recalls))

    @property
    def is_alarmed(self) -> bool:
        """Whether it is below its target, beyond chance."""
        return self.alarm is not None and self.alarm.rings
