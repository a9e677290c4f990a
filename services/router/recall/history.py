"""The recall of a slice over time: a point a minute, in memory, bounded."""

from array import array
from dataclasses import astuple, dataclass

EVERY_S = 60
_NUMBERS = 5


@dataclass(frozen=True, slots=True)
class RecallAt:
    """What was known of a slice's recall at a time."""

    at: float
    """Unix time, seconds."""
    num_measured: float
    """Since the last calibration."""
    mean: float
    lower: float
    upper: float


class History:
    """What was known at the end of each minute in which a search was measured.

    Args:
        max_points: kept, the last ones; 0 keeps none.
    """

    def __init__(self, max_points: int) -> None:
        self._max_points = max_points
        # Flat, 40 bytes a point: there may be as many histories as slices.
        self._numbers = array("d")

    def note(self, point: RecallAt) -> None:
        """Take note of what is known now; of one minute the last counts."""
        if not self._max_points:
            return
        if self._numbers and self._numbers[-_NUMBERS] // EVERY_S == point.at // EVERY_S:
            del self._numbers[-_NUMBERS:]
        self._numbers.extend(astuple(point))
        del self._numbers[: -_NUMBERS * self._max_points]

    def points(self) -> list[RecallAt]:
        """Return the points, the oldest first."""
        starts = range(0, len(self._numbers), _NUMBERS)
        return [RecallAt(*self._numbers[start : start + _NUMBERS]) for start in starts]
