"""Which attributes of points have an index, so that a filter need not read all points' payloads.

Each gets one by itself when it is first written. Measured with Edge 0.9, 30,000 points of 128
numbers, ten hits, on a core that others used too: 220 to 233 ms without one for filters that let
10% or less through, or half; 0.02 to 8 ms with it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

MAX_INDEXED = 64
"""Indexes of a collection, its own among them; filters by further attributes work, but slowly."""


def unindexed(payloads: Iterable[Mapping[str, Any]], indexed: Collection[str]) -> dict[str, str]:
    """Return the attributes of some points that want an index: {path: "string", "number", "bool"}.

    Args:
        payloads: as `store.to_payload`, or the part of it that holds the attributes.
        indexed: paths that have an index.
    """
    found = {
        f"attributes.{kind}.{key}": kind
        for payload in payloads
        for kind, part in payload["attributes"].items()
        for key in part
    }
    wanted = sorted(found.keys() - set(indexed))
    return {path: found[path] for path in wanted[: max(0, MAX_INDEXED - len(indexed))]}
