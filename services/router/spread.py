"""How a collection lies on a server's nodes: in how many shards, and how many copies of each."""

from dataclasses import dataclass

from services.shared.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Spread:
    """Shards of a collection, and replicas of each shard."""

    shards: int = 0
    """Parts that the points are spread over; 0: the storage's default."""
    replicas: int = 0
    """Copies of each part; 0: the storage's default."""

    def or_as(self, other: "Spread") -> "Spread":
        """Return this, with another's numbers for those that are not said."""
        return Spread(self.shards or other.shards, self.replicas or other.replicas)


DEFAULT_SPREAD = Spread()
WHOLE = Spread(1, 1)
"""In one place."""


def check_spread(spread: Spread, most: Spread) -> None:
    """Refuse more shards or replicas than one collection may have; InvalidRequest."""
    for param, number, bound in (
        ("shards", spread.shards, most.shards),
        ("replicas", spread.replicas, most.replicas),
    ):
        if number > bound:
            raise InvalidRequest(
                f"{param} must be 0, for the server's default, or 1 to {bound}, got {number}", param
            )


def check_whole(spread: Spread) -> None:
    """Refuse, where collections are kept in one place, to spread one; InvalidRequest."""
    for param, number in (("shards", spread.shards), ("replicas", spread.replicas)):
        if number > 1:
            raise InvalidRequest(
                f"{param} must be 0 or 1 on embedded storage, which keeps a collection whole in "
                f"one place, got {number}; a Qdrant server (MATRYOSHKA_ROUTER_QDRANT_URL) keeps "
                "more",
                param,
            )
