"""Searches on shards and replicas, one by one: how long they take, and what a lost machine does.

Searches arrive at random (Poisson). Each asks one replica of every shard, drawn by chance, and
waits for the slowest; then the full vectors of its shortlist are read from the disk, which takes
time and no core. A node serves first come, first served, a search on a core. A third of the way the
machine of one replica of the first shard is gone: calls to it get no answer until that is noticed,
and then are all made again at other replicas.

Times are drawn from log-normal distributions through the measured p50 and p99. Seeded: the same
numbers give the same result.
"""

import heapq
import math
import random
from dataclasses import dataclass

from services.cli.capacity import figures
from services.cli.capacity.estimate import Nodes
from services.cli.capacity.layouts import spread
from services.cli.capacity.need import Need

_CALLS, _MAX_CALLS = 800_000, 4_000_000
"""To all shards: as many as take some two seconds, and what is too long to wait for."""
_LEAST_S, _MOST_S = 2.0, 20.0
_WARM_SHARE, _LOSS_SHARE = 0.1, 1 / 3
NOTICED_S = 0.5
"""From the loss of a machine until nobody asks it any more: assumed."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Searches that came in a part of the time."""

    searches: int
    failed: int
    """That a shard without a replica left unanswered."""
    p50_ms: float
    """In the storage."""
    p99_ms: float
    whole_p50_ms: float
    """With the encoding of the query and the router's own time."""
    whole_p99_ms: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """What was seen."""

    seconds: float
    """Simulated."""
    before: Phase
    unnoticed: Phase
    """From the loss of a machine until it is noticed."""
    after: Phase
    busy: float
    """Mean share of all nodes' time at work, before the loss."""
    busy_after_loss: float
    """Of the replicas that the shard has left, from when the loss is noticed."""
    asked_again: int
    """Calls that were made again because of the loss."""


class _Node:
    """One replica of one shard."""

    def __init__(self, cores: int) -> None:
        self._free_at_s = [0.0] * cores

    def take(self, at_s: float, work_s: float) -> float:
        """Return when a call is answered; calls must come in the order of time."""
        start_s = max(at_s, self._free_at_s[0])
        heapq.heapreplace(self._free_at_s, start_s + work_s)
        return start_s + work_s


class _Cluster:
    """All nodes, one of which is lost: the first replica of the first shard."""

    def __init__(self, row: Nodes, seconds: float, draw: random.Random) -> None:
        self._shards = [
            [_Node(row.machine.cores) for _ in range(row.replicas)] for _ in range(row.shards)
        ]
        self._draw = draw
        self._mu = math.log(row.search_p50_ms / 1000)
        self._sigma = spread(row.search_p50_ms, row.search_p99_ms)
        self.loss_s = seconds * _LOSS_SHARE
        self.noticed_s = self.loss_s + NOTICED_S
        self.worked_before_s = self.worked_after_s = 0.0
        self.asked_again = 0

    def work_s(self) -> float:
        return self._draw.lognormvariate(self._mu, self._sigma)

    def ask(self, at_s: float) -> tuple[float, bool]:
        """Ask all shards.

        Returns:
            When the last has answered, and whether the first one has to be asked again.
        """
        last_s, is_lost = 0.0, False
        for number, replicas in enumerate(self._shards):
            place = int(self._draw.random() * len(replicas))
            if number == place == 0 and at_s >= self.noticed_s:
                last_s = max(last_s, self.ask_others(at_s))
                continue
            work_s = self.work_s()
            end_s = replicas[place].take(at_s, work_s)
            if number == place == 0 and end_s > self.loss_s:
                is_lost = True
                continue
            self._note(number, at_s, work_s)
            last_s = max(last_s, end_s)
        return last_s, is_lost

    def ask_others(self, at_s: float) -> float:
        """Ask a replica that the first shard has left; infinity where there is none."""
        left = self._shards[0][1:]
        if not left:
            return math.inf
        work_s = self.work_s()
        self._note(0, at_s, work_s)
        return left[int(self._draw.random() * len(left))].take(at_s, work_s)

    def _note(self, shard: int, at_s: float, work_s: float) -> None:
        if at_s < self.loss_s:
            self.worked_before_s += work_s
        elif shard == 0 and at_s >= self.noticed_s:
            self.worked_after_s += work_s


def simulate(row: Nodes, need: Need, seed: int = 0) -> Simulation | None:
    """Run some seconds of a deployment.

    Args:
        row: the layout and its nodes.
        need: the searches.
        seed: of all draws.

    Returns:
        None where so many calls would have to be followed that it took too long.
    """
    calls_per_s = need.searches_per_s * row.shards
    if calls_per_s * _LEAST_S > _MAX_CALLS:
        return None
    seconds = min(_MOST_S, max(_LEAST_S, _CALLS / calls_per_s))
    draw = random.Random(seed)
    cluster = _Cluster(row, seconds, draw)
    took_ms = _run(cluster, need.searches_per_s, seconds, draw)
    phases: tuple[list[float], ...] = ([], [], [])
    for came_s, storage_ms in took_ms:
        if came_s >= seconds * _WARM_SHARE:
            place = (came_s >= cluster.loss_s) + (came_s >= cluster.noticed_s)
            phases[place].append(storage_ms + row.read_ms)
    cores = row.machine.cores
    core_s = cluster.loss_s * cores * row.shards * row.replicas
    left_s = (seconds - cluster.noticed_s) * cores * (row.replicas - 1)
    before, unnoticed, after = (_phase(values, draw) for values in phases)
    return Simulation(
        seconds=seconds,
        before=before,
        unnoticed=unnoticed,
        after=after,
        busy=cluster.worked_before_s / core_s,
        busy_after_loss=cluster.worked_after_s / left_s if left_s else 0.0,
        asked_again=cluster.asked_again,
    )


def _run(
    cluster: _Cluster, per_s: float, seconds: float, draw: random.Random
) -> list[tuple[float, float]]:
    """Let searches come; return (when one came, how long it took in ms) of each."""
    took: list[tuple[float, float]] = []
    waiting: list[tuple[float, float]] = []
    at_s = draw.expovariate(per_s)
    while at_s < seconds:
        if waiting and at_s >= cluster.noticed_s:
            took += _again(cluster, waiting)
            waiting = []
        last_s, is_lost = cluster.ask(at_s)
        if is_lost:
            waiting.append((at_s, last_s))
        else:
            took.append((at_s, 1000 * (last_s - at_s)))
        at_s += draw.expovariate(per_s)
    return took + _again(cluster, waiting)


def _again(cluster: _Cluster, waiting: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Make the calls again that got no answer."""
    cluster.asked_again += len(waiting)
    return [
        (came_s, 1000 * (max(last_s, cluster.ask_others(cluster.noticed_s)) - came_s))
        for came_s, last_s in waiting
    ]


def _phase(took_ms: list[float], draw: random.Random) -> Phase:
    answered = [one_ms for one_ms in took_ms if math.isfinite(one_ms)]
    mu = math.log(figures.QUERY_P50_MS)
    sigma = spread(figures.QUERY_P50_MS, figures.QUERY_P99_MS)
    whole = [figures.ROUTER_MS + draw.lognormvariate(mu, sigma) + one_ms for one_ms in answered]
    return Phase(
        searches=len(took_ms),
        failed=len(took_ms) - len(answered),
        p50_ms=_quantile(answered, 0.5),
        p99_ms=_quantile(answered, 0.99),
        whole_p50_ms=_quantile(whole, 0.5),
        whole_p99_ms=_quantile(whole, 0.99),
    )


def _quantile(values: list[float], share: float) -> float:
    """Return a quantile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
