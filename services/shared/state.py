"""Whether a server is seen as ready, and whether it serves calls: two things while it drains."""

import asyncio
from dataclasses import dataclass, field

from services.shared.errors import Unavailable


@dataclass(slots=True)
class State:
    """The state of one server process."""

    is_ready: bool = False
    """What probes are told; false as soon as draining begins, so that no new caller comes."""
    is_open: bool = False
    """Whether calls are served; still true while draining, for callers that do not know yet."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server takes no more calls: whatever could go on for long ends what it has
    begun and takes nothing new. The gRPC door ends streams by it, see there."""

    def close(self) -> None:
        """Take no more calls; those in flight go on."""
        self.is_ready = self.is_open = False
        self.closing.set()

    def check_open(self) -> None:
        """Refuse a call that came before the service was ready, or after it was closed.

        Raises:
            Unavailable: try again shortly.
        """
        if not self.is_open:
            doing = "stopping" if self.closing.is_set() else "starting"
            raise Unavailable(f"the service is {doing}; try again shortly")
