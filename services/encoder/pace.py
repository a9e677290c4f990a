"""How fast a model's forward pass is, learned from the passes that it runs.

In: tokens and seconds of each pass. Out: tokens per second of a full one. What waits is turned
into seconds with it, and a pass is kept as short as a waiting query may bear.
"""

# Before the first pass; every model runs one when it is loaded.
_FIRST_TOKENS_PER_S = 1000.0
# A full pass weighs this much, all before it the rest: some ten passes are remembered.
_WEIGHT = 0.1
# Below this many tokens the fixed cost of a pass dominates, whatever the machine.
_MIN_PASS_TOKENS = 64


class Pace:
    """The speed of one model's forward pass.

    The seconds of a pass are fitted as tokens / pace, least squares through zero, so the many
    small passes of a quiet hour, whose cost is fixed rather than by token, hardly count.

    Args:
        max_pass_s: how long a pass should take at most, s.
        max_batch_tokens: tokens in a pass at most, however fast the machine.
    """

    def __init__(self, max_pass_s: float, max_batch_tokens: int) -> None:
        self._max_pass_s = max_pass_s
        self._max_batch_tokens = max_batch_tokens
        self._work = 0.0  # sum of tokens x seconds
        self._square = 0.0  # sum of tokens squared
        self.tokens_per_s = _FIRST_TOKENS_PER_S

    @property
    def pass_tokens(self) -> int:
        """Tokens that fit into one pass of `max_pass_s`."""
        fitting = max(int(self.tokens_per_s * self._max_pass_s), _MIN_PASS_TOKENS)
        return min(fitting, self._max_batch_tokens)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one pass."""
        kept = 1 - _WEIGHT * min(1.0, tokens / self.pass_tokens)
        self._work = self._work * kept + tokens * max(seconds, 1e-6)
        self._square = self._square * kept + float(tokens) ** 2
        self.tokens_per_s = self._square / self._work

    def seconds(self, tokens: int) -> float:
        """Return how long so many tokens take."""
        return tokens / self.tokens_per_s
