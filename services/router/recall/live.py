"""A live search, as those that watch it are told of it.

Shapes: D full width.
"""

from dataclasses import dataclass

from services.router.filters import Filter
from services.router.plan import Plan
from services.router.storage.store import Collection
from services.shared.vectors import Array


@dataclass(frozen=True, slots=True)
class Live:
    """A search as it was answered."""

    collection: Collection
    plan: Plan
    query_D: Array
    condition: Filter | None
    slice: str
    target: float | None
    """Recall that it was promised; None: nothing was."""
    text: str | None = None
    """What was searched for, until it is no longer needed; None: a vector was."""
    keys: tuple[str, ...] = ()
    """Of the hits, best first."""
