"""The one forward thread: it asks for its next batch by itself, over all models and both lanes.

One pass at a time, because a pass uses every core or the whole accelerator. The thread picks at
the last moment, so whoever is most urgent when a pass ends goes next, and no pass waits for the
event loop. Whose turn it is:

- Interactive before bulk; but while both wait, bulk has its share of the time. So an interactive
  request waits for at most one pass of bulk work, and bulk work is never starved.
- Within a lane, the model that has had the least time.
"""

import asyncio
import logging
import threading
from dataclasses import dataclass, field

from services.encoder.batcher import LANES, Batcher, Lane

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Seat:
    """One batcher's place at the thread; `used_s` is the time that it has had, per lane."""

    batcher: Batcher
    used_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))


class ForwardThread:
    """Runs the batches of all models, one at a time.

    Args:
        bulk_share: of the time, for bulk work while interactive work waits too; 0 to 1.
    """

    def __init__(self, bulk_share: float) -> None:
        # Given to every batcher: guards what waits.
        self.ready = threading.Condition()
        self._bulk_share = bulk_share
        self._seats: list[_Seat] = []
        # Time that bulk work has coming, because interactive work went first.
        self._owed_to_bulk_s = 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="forward", daemon=True)
        self._thread.start()

    def add(self, batcher: Batcher) -> None:
        with self.ready:
            self._seats.append(_Seat(batcher, {lane: self._least_used(lane) for lane in LANES}))

    def remove(self, batcher: Batcher) -> None:
        with self.ready:
            self._seats = [seat for seat in self._seats if seat.batcher is not batcher]

    async def close(self) -> None:
        """End the thread, after the pass that is running."""
        with self.ready:
            self._is_closed = True
            self.ready.notify_all()
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self._is_closed or self._waiting())
                if self._is_closed:
                    return
                seat, lane = self._next_turn()
                batch = seat.batcher.take(lane)
            try:
                seconds = seat.batcher.run(batch, lane)
            except Exception:  # the thread outlives any bug of ours
                log.exception("a pass failed")
                continue
            with self.ready:
                self._charge(seat, lane, seconds)

    def _waiting(self) -> list[tuple[_Seat, Lane]]:
        return [
            (seat, lane) for lane in LANES for seat in self._seats if seat.batcher.has_waiting(lane)
        ]

    def _next_turn(self) -> tuple[_Seat, Lane]:
        waiting = self._waiting()
        lanes = {lane for _, lane in waiting}
        lane: Lane = "interactive" if "interactive" in lanes else "bulk"
        if len(lanes) == 2 and self._owed_to_bulk_s > 0:
            lane = "bulk"
        elif "bulk" not in lanes:
            self._owed_to_bulk_s = 0.0
        seats = [seat for seat, its_lane in waiting if its_lane == lane]
        return min(seats, key=lambda seat: seat.used_s[lane]), lane

    def _charge(self, seat: _Seat, lane: Lane, seconds: float) -> None:
        """Book the time of a pass.

        A bulk pass takes from what bulk work is owed more than it was owed, and interactive
        passes pay that back: so bulk passes are spread, and each waits for its share.
        """
        # A batcher that was idle has saved nothing up: it starts level with the others.
        others = [s for s in self._seats if s is not seat and s.batcher.has_waiting(lane)]
        level = min((s.used_s[lane] for s in others), default=seat.used_s[lane])
        seat.used_s[lane] = max(seat.used_s[lane], level) + seconds
        if lane == "bulk":
            # Time that nobody else wanted is not held against it.
            waits = any(s.batcher.has_waiting("interactive") for s in self._seats)
            owed_s = self._owed_to_bulk_s if waits else 0.0
            # Never two in a row, be it that interactive passes took long.
            self._owed_to_bulk_s = min(owed_s - seconds, 0.0)
        elif any(s.batcher.has_waiting("bulk") for s in self._seats):
            self._owed_to_bulk_s += seconds * self._bulk_share / (1 - self._bulk_share)

    def _least_used(self, lane: Lane) -> float:
        return min((seat.used_s[lane] for seat in self._seats), default=0.0)
