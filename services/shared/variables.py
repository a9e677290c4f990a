"""Variables that are named like settings and are none: most are misspelt, some others set.

Only their names are told: the value of a misspelt key is a key.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

OURS = "MATRYOSHKA_"
_WHOSE = tuple(f"{OURS}{one}_" for one in ("ENCODER", "ROUTER", "TRAINER", "UP", "CLI"))
# How like a setting's name a variable is that can only be meant for it; 1: the same.
_MISSPELT = 0.93
# Kubernetes tells pods of each of its Services like this, and one may have a service's name.
_OF_A_CLUSTER = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_ADDRESS_IN_A_CLUSTER = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Stranger:
    """A variable that nothing reads."""

    name: str
    nearest: tuple[str, ...]
    """Settings that it may be meant for: of several, one is as near as the other."""

    @property
    def is_misspelt(self) -> bool:
        """Whether it can be meant for nothing else."""
        return any(_likeness(self.name, near) >= _MISSPELT for near in self.nearest)

    def __str__(self) -> str:
        if not self.nearest:
            return f"{self.name} is not a setting; docs/settings.md lists them"
        return f"{self.name} is not a setting; did you mean {' or '.join(self.nearest)}?"


def of_service(given: Mapping[str, str], prefix: str, known: Collection[str]) -> list[Stranger]:
    """Return the variables of a service that are none of its settings, by name.

    Args:
        given: {variable: value}; of one in a file the value may be left empty.
        prefix: of the service's variables, such as "MATRYOSHKA_ROUTER_".
        known: its settings' names.
    """
    return [
        # Without the prefix: what all have in common makes none of them nearer.
        Stranger(name, _nearest(name, prefix, known))
        for name, value in sorted(given.items())
        if name.startswith(prefix) and name not in known and not _is_of_a_cluster(name, value)
    ]


def of_no_service(given: Mapping[str, str], known: Collection[str]) -> list[Stranger]:
    """Return the variables that lack a service's name, or misspell it; of others nothing is known.

    Args:
        given: {variable: value}.
        known: the settings' names of this process.
    """
    found = [
        Stranger(name, _nearest(name, OURS, known))
        for name, value in sorted(given.items())
        if name.startswith(OURS)
        and not name.startswith(_WHOSE)
        and not _is_of_a_cluster(name, value)
    ]
    return [stranger for stranger in found if stranger.nearest]


def _is_of_a_cluster(name: str, value: str) -> bool:
    if _OF_A_CLUSTER.search(name):
        return True
    return name.endswith("_PORT") and bool(_ADDRESS_IN_A_CLUSTER.match(value))


def _nearest(name: str, prefix: str, known: Collection[str]) -> tuple[str, ...]:
    end = name.removeprefix(prefix)
    near = difflib.get_close_matches(end, [one.removeprefix(prefix) for one in known])
    best = [one for one in near if _likeness(end, one) == _likeness(end, near[0])]
    return tuple(prefix + one for one in sorted(best))


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()
