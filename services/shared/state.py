"""Whether a server is seen as ready, and whether it serves calls: two things while it drains."""

from dataclasses import dataclass

from services.shared.errors import Unavailable


@dataclass(slots=True)
class State:
    """The state of one server process."""

    is_ready: bool = False
    """What probes are told; false as soon as draining begins, so that no new caller comes."""
    is_open: bool = False
    """Whether calls are served; still true while draining, for callers that do not know yet."""

    def check_open(self) -> None:
        """Refuse a call that came before the service was ready.

        Raises:
            Unavailable: try again shortly.
        """
        if not self.is_open:
            raise Unavailable("the service is starting; try again shortly")
