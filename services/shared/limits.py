"""How often a key may be used: so many calls a minute, and so many at once.

A minute's calls may come together; then they come back one by one, evenly (a token bucket). What is
over a limit is refused before any work, and told when to come again.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from services.shared.errors import Overloaded


class OverLimit(Overloaded):
    """A key was used more often than it may be; `limit` says which of the two it was."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        limit: Literal["requests", "calls"] = "requests",
        retry_after_s: int = 1,
    ) -> None:
        super().__init__(message, param)
        self.limit = limit
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may use; None: as much as it likes."""

    requests_per_minute: int | None = None
    concurrent_calls: int | None = None


NO_LIMITS = Limits()
# A caller that waits as long as it was told must be served, whatever the last bits of the clock.
_ROUNDING = 1e-9


class Allowance:
    """What is left to one key.

    Args:
        limits: may be changed later; calls that are going on stay counted.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self, limits: Limits = NO_LIMITS, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._num_calls = 0
        self._requests = math.inf
        self._seen_s = now()
        self.limits = NO_LIMITS
        self.change(limits)

    def change(self, limits: Limits) -> None:
        """Set other limits; what was used up before stays used up."""
        if limits.requests_per_minute != self.limits.requests_per_minute:
            self._requests = min(self._left(), limits.requests_per_minute or math.inf)
            self._seen_s = self._now()
        self.limits = limits

    @contextmanager
    def use(self) -> Iterator[None]:
        """Make one call within the block.

        Raises:
            OverLimit: the key has been used too often, or is being used by too many.
        """
        most = self.limits.concurrent_calls
        if most is not None and self._num_calls >= most:
            raise OverLimit(
                f"this key may be used by at most {most} calls at once; wait for one", limit="calls"
            )
        self._take_request()
        self._num_calls += 1
        try:
            yield
        finally:
            self._num_calls -= 1

    def _take_request(self) -> None:
        rate = self.limits.requests_per_minute
        if rate is None:
            return
        self._requests, self._seen_s = self._left(), self._now()
        if self._requests < 1 - _ROUNDING:
            raise OverLimit(
                f"this key may be used for at most {rate} requests a minute; try again later",
                retry_after_s=math.ceil((1 - self._requests) * 60 / rate),
            )
        self._requests -= 1

    def _left(self) -> float:
        """Return how many requests may be made now, parts of one included."""
        rate = self.limits.requests_per_minute
        if rate is None:
            return math.inf
        return min(rate, self._requests + (self._now() - self._seen_s) * rate / 60)
