"""The door of the queue: who may wait, decided from the time that his answer would take.

In: a request's lane and number of tokens, estimated from the length of its texts before anything
is done for it, and known once they are tokenised. Out: a place, or a refusal that says when to
come back. An answer after its caller has stopped waiting is worth nothing, so what waits is
bounded in seconds of the forward pass at its measured pace, and in tokens, which bounds memory.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.encoder.batcher import LANES, Batcher, Lane
from services.encoder.metrics import EncoderMetrics
from services.shared.errors import Overloaded

# English has more characters to a token, most other languages fewer; it is only to see at once
# what is far over a bound, and is corrected as soon as the tokens are known.
_CHARS_PER_TOKEN = 4
_SPECIAL_TOKENS = 2
_IMAGE_TOKENS = 256
_MAX_RETRY_AFTER_S = 60


def estimate_tokens(
    inputs: Sequence[Sequence[object]], images: Sequence[bytes], max_tokens: int
) -> int:
    """Estimate how many tokens a request will have, without reading it.

    Args:
        inputs: texts, or token ids.
        images: files; how many pixels they have is seen only when they are read.
        max_tokens: of a single text; longer ones are cut or refused.
    """
    texts = sum(
        min(
            (len(item) // _CHARS_PER_TOKEN if isinstance(item, str) else len(item))
            + _SPECIAL_TOKENS,
            max_tokens,
        )
        for item in inputs
    )
    return texts + len(images) * _IMAGE_TOKENS


def estimate_pair_tokens(query: str, documents: Sequence[str], max_tokens: int) -> int:
    """Estimate how many tokens a query has with each of some documents, without reading them.

    Args:
        query: counted with each document.
        documents: texts.
        max_tokens: of a single pair; longer ones are cut.
    """
    return sum(
        min((len(query) + len(document)) // _CHARS_PER_TOKEN + _SPECIAL_TOKENS, max_tokens)
        for document in documents
    )


class Place:
    """A request's place among what waits."""

    def __init__(self, admission: "Admission", batcher: Batcher, lane: Lane, tokens: int) -> None:
        self._admission = admission
        self._batcher = batcher
        self._tokens = tokens
        self.lane = lane

    def settle(self, tokens: int) -> None:
        """Put the known number of tokens in place of the estimate.

        Raises:
            Overloaded: there are so many more than estimated that they may not wait.
        """
        estimate = self._tokens
        self.leave()
        if tokens > estimate:
            self._admission.check(self._batcher, self.lane, tokens)
        self._move(tokens)

    def done(self, tokens: int) -> None:
        """Note that so many tokens have been run."""
        self._move(-min(tokens, self._tokens))

    def leave(self) -> None:
        self._move(-self._tokens)

    def _move(self, tokens: int) -> None:
        self._tokens += tokens
        self._admission.move(self._batcher, self.lane, tokens)


class Admission:
    """Bounds what waits, over all models: they share one forward thread.

    Args:
        max_queue_s: for interactive requests, from their arrival to the end of their last pass.
        max_bulk_queue_s: the same for bulk requests.
        max_queued_tokens: of all that wait.
    """

    def __init__(
        self,
        max_queue_s: float,
        max_bulk_queue_s: float,
        max_queued_tokens: int,
        metrics: EncoderMetrics,
    ) -> None:
        self._max_s: dict[Lane, float] = {"interactive": max_queue_s, "bulk": max_bulk_queue_s}
        self._max_tokens = max_queued_tokens
        self._metrics = metrics
        self._waiting: dict[Lane, dict[Batcher, int]] = {lane: {} for lane in LANES}

    @contextmanager
    def enter(
        self, batcher: Batcher, lane: Lane, tokens: int, remaining_s: float | None = None
    ) -> Iterator[Place]:
        """Hold a place for a request, from before it is tokenised until it is answered.

        A request that alone takes longer than any interactive one may wait is bulk work,
        whatever it says it is.

        Args:
            batcher: where it will wait.
            lane: where it wants to wait.
            tokens: estimated.
            remaining_s: until the caller stops waiting; None if he did not say.

        Raises:
            Overloaded: it would be answered too late; it says when to try again.
        """
        if batcher.pace.seconds(tokens) > self._max_s["interactive"]:
            lane = "bulk"
        self.check(batcher, lane, tokens, remaining_s)
        place = Place(self, batcher, lane, 0)
        place._move(tokens)
        try:
            yield place
        finally:
            place.leave()

    def check(
        self, batcher: Batcher, lane: Lane, tokens: int, remaining_s: float | None = None
    ) -> None:
        """Refuse what would wait too long; whatever finds nothing ahead of it is let in.

        Raises:
            Overloaded: see `enter`.
        """
        ahead_s, ahead = self._ahead(lane)
        if not ahead:
            return
        done_s = ahead_s + batcher.pace.seconds(tokens)
        if done_s > self._max_s[lane]:
            reason = f"an answer may take at most {self._max_s[lane]:g} s"
            raise self._refuse("queue_seconds", ahead_s, reason)
        if remaining_s is not None and done_s > remaining_s:
            reason = f"your deadline is in {max(remaining_s, 0):.1f} s"
            raise self._refuse("deadline", ahead_s, reason)
        if self.tokens() + tokens > self._max_tokens:
            reason = f"at most {self._max_tokens} tokens may wait"
            raise self._refuse("queue_tokens", ahead_s, reason)

    def tokens(self) -> int:
        """Return how many tokens wait or run, over all models and lanes."""
        return sum(sum(waiting.values()) for waiting in self._waiting.values())

    def move(self, batcher: Batcher, lane: Lane, tokens: int) -> None:
        """Add to what waits, or take from it. For `Place`."""
        waiting = self._waiting[lane]
        waiting[batcher] = waiting.get(batcher, 0) + tokens
        if not waiting[batcher]:
            del waiting[batcher]
        self._metrics.queued_tokens.labels(lane).set(sum(waiting.values()))

    def _ahead(self, lane: Lane) -> tuple[float, int]:
        """Return what goes before a newcomer, in seconds and in tokens.

        Bulk work waits for all interactive work. That in turn waits for the share of bulk work,
        which is left out: it is bounded, and estimates are no better than that.
        """
        lanes: tuple[Lane, ...] = ("interactive",) if lane == "interactive" else LANES
        ahead = [item for name in lanes for item in self._waiting[name].items()]
        return sum(b.pace.seconds(tokens) for b, tokens in ahead), sum(t for _, t in ahead)

    def _refuse(self, kind: str, ahead_s: float, reason: str) -> Overloaded:
        self._metrics.refusals.labels(kind).inc()
        # When what waits now will be done: sooner, the answer would be the same.
        retry_after_s = min(max(math.ceil(ahead_s), 1), _MAX_RETRY_AFTER_S)
        error = Overloaded(
            f"about {ahead_s:.1f} s of work are waiting and {reason}; try again in "
            f"{retry_after_s} s"
        )
        error.retry_after_s = retry_after_s
        return error
