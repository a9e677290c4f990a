"""The bodies that a server holds: bounded together, so that many large ones cannot fill memory.

In: the length of each piece as it arrives. Out: nothing, or a refusal. Knows nothing of HTTP.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from services.shared.errors import Overloaded


class Bodies:
    """All bodies of one server.

    Args:
        max_bytes: of all bodies together, from their first byte to the end of their answers.
        max_s: for each body to arrive.
    """

    def __init__(self, max_bytes: int, max_s: float) -> None:
        self.max_s = max_s
        self._max_bytes = max_bytes
        self._held_bytes = 0

    @contextmanager
    def hold(self) -> Iterator["Body"]:
        """Hold one request's body until its answer is given."""
        body = Body(self)
        try:
            yield body
        finally:
            self._held_bytes -= body.num_bytes

    def take(self, num_bytes: int) -> None:
        """Count bytes in. For `Body`.

        Raises:
            Overloaded: there is no room for them now. A body that is alone always has room.
        """
        if self._held_bytes and self._held_bytes + num_bytes > self._max_bytes:
            raise Overloaded(
                f"{self._held_bytes} bytes of bodies are held and at most {self._max_bytes} may "
                "be; try again shortly"
            )
        self._held_bytes += num_bytes


class Body:
    """What has arrived of one body."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.max_s = bodies.max_s
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Note a piece that arrived; raises as `Bodies.take`."""
        self._bodies.take(num_bytes)
        self.num_bytes += num_bytes
