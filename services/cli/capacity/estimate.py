"""From the user's numbers to machines: the arithmetic, top to bottom.

A node holds one replica of one shard. Every search asks one replica of each shard. So memory and
disk say how many shards there are, and the searches how many replicas of each.
"""

import math
from dataclasses import dataclass

from services.cli.capacity import figures
from services.cli.capacity.layouts import Layout, layouts
from services.cli.capacity.need import Machine, Need
from services.router.settings import RouterSettings
from services.router.storage.shard_limits import per_shard
from services.shared.errors import InvalidRequest

READ_MS = 0.1
"""Time to read one full vector from an NVMe disk: usual, not measured here."""
_DISK_SHARE = 0.5
"""Of a disk: a rebuild writes new files before it deletes the old ones."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """What one layout takes on the machine on which it is the cheapest."""

    layout: Layout
    machine: Machine
    points: int
    bytes_per_point: int
    """In memory, by the router's cost model; `figures.BESIDE_BYTES` come to it."""
    disk_bytes_per_point: int
    shards: int
    replicas: int
    search_p50_ms: float
    search_p99_ms: float
    scored: int
    """Points whose full vectors one search reads."""
    busy: float
    """Share of the time that a node's cores are at work, all replicas being there."""
    busy_after_loss: float
    """The same at a shard that has lost one replica; of the only one: infinite."""
    disk_reads_per_s: float
    """By one node."""

    @property
    def nodes(self) -> int:
        return self.shards * self.replicas

    @property
    def memory_bytes(self) -> int:
        """Of all points, in one replica of each shard."""
        return (self.bytes_per_point + figures.BESIDE_BYTES) * self.points

    @property
    def price(self) -> float:
        return self.nodes * self.machine.price

    @property
    def read_ms(self) -> float:
        """Of one search: the full vectors of a shard's part of its shortlist, from the disk."""
        return per_shard(self.scored, self.shards, 0) * READ_MS if self.scored else 0.0

    def warnings(self) -> list[str]:
        """Say what a router would refuse, as it is set by default."""
        most = RouterSettings.model_fields
        found = []
        if self.layout.is_shortlist and self.scored > most["max_candidates"].default:
            found.append(
                f"a shortlist of {self.scored:,} is longer than MATRYOSHKA_ROUTER_MAX_CANDIDATES "
                "allows"
            )
        for name, number in (("shards", self.shards), ("replicas", self.replicas)):
            if number > most[f"max_{name}"].default:
                found.append(
                    f"{number} {name} are more than MATRYOSHKA_ROUTER_MAX_{name.upper()} allows"
                )
        return found


@dataclass(frozen=True, slots=True)
class Others:
    """What does not depend on the layout."""

    router_processes: int
    router_cores: float
    encoder_cores: float
    encoder_nodes: int
    encoder_price: float
    encoder_gpus: int | None
    """None: nobody has said how fast one is."""
    gpu_price: float | None
    training_nodes: int
    adaptor_s: float
    nest_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """All of a deployment, for every layout."""

    need: Need
    rows: tuple[Nodes, ...]
    """The first is what the others are compared with."""
    others: Others

    @property
    def cheapest(self) -> Nodes | None:
        """Of those that a router takes, and of several at one price the fastest; None: none is."""
        taken = [row for row in self.rows if not row.warnings()]
        return min(
            taken,
            key=lambda row: (row.price, row.search_p50_ms + row.read_ms, row.bytes_per_point),
            default=None,
        )

    @property
    def shown(self) -> Nodes:
        """What is simulated: the user's own plan, else the cheapest; where none is, the first."""
        return self.rows[-1] if self.need.own_plan else self.cheapest or self.rows[0]

    def cost(self, row: Nodes) -> float:
        """Return the price of a row relative to the first: the nodes that search."""
        return row.price / self.rows[0].price


def estimate(need: Need) -> Estimate:
    """Plan for a need.

    Raises:
        InvalidRequest: a number is out of bounds, or nothing fits on any machine.
    """
    need.check()
    if not need.machines:
        raise InvalidRequest("--machine must be given at least once")
    rows = tuple(_cheapest(layout, need) for layout in layouts(need))
    return Estimate(need, rows, _others(need))


def _cheapest(layout: Layout, need: Need) -> Nodes:
    return min(
        (nodes(layout, machine, need) for machine in need.machines),
        key=lambda row: (row.price, row.nodes),
    )


def nodes(layout: Layout, machine: Machine, need: Need) -> Nodes:
    """Return what a layout takes on one kind of machine.

    Raises:
        InvalidRequest: not even one point fits.
    """
    in_memory = layout.memory_bytes(need.vectors)
    on_disk = layout.disk_bytes(need.vectors, need.payload_bytes)
    room = min(
        int(machine.memory_bytes * need.memory_share) // (in_memory + figures.BESIDE_BYTES),
        int(machine.disk_bytes * _DISK_SHARE) // on_disk,
    )
    if room < 1:
        raise InvalidRequest(f"--machine: {machine.name} holds not even one vector")
    shards = math.ceil(need.vectors / room)
    work = need.searches_per_s * layout.mean_ms(need) / 1000 / machine.cores
    spare = 1 if need.replicas > 1 else 0
    replicas = max(need.replicas, math.ceil(work / need.busy) + spare)
    p50_ms, p99_ms = layout.search_ms(need)
    pages = math.ceil(4 * need.dims / 4096)
    return Nodes(
        layout=layout,
        machine=machine,
        points=need.vectors,
        bytes_per_point=in_memory,
        disk_bytes_per_point=on_disk,
        shards=shards,
        replicas=replicas,
        search_p50_ms=p50_ms,
        search_p99_ms=p99_ms,
        scored=layout.scored(need),
        busy=work / replicas,
        busy_after_loss=work / (replicas - 1) if replicas > 1 else math.inf,
        disk_reads_per_s=need.searches_per_s * layout.scored(need) * pages / (shards * replicas),
    )


def _others(need: Need) -> Others:
    """Count routers, encoders and trainers, with one more of each that must not fail."""
    machine = min(need.machines, key=lambda one: one.price / one.cores)
    router_cores = need.searches_per_s * figures.ROUTER_MS / 1000 / need.busy
    queries = need.searches_per_s / figures.QUERIES_PER_S
    documents = need.texts_per_s / figures.DOCUMENTS_PER_S
    encoder_cores = (queries + documents) * figures.ENCODER_CORES / need.busy
    encoder_nodes = math.ceil(encoder_cores / machine.cores) + 1
    gpus = gpu_price = None
    if need.gpu:
        tokens = (
            need.searches_per_s * figures.QUERY_TOKENS + need.texts_per_s * figures.DOCUMENT_TOKENS
        )
        gpus = math.ceil(tokens / need.gpu.tokens_per_s / need.busy) + 1
        gpu_price = gpus * need.gpu.price
    pairs_per_core_s = figures.TRAINER_STEPS_PER_S * figures.TRAINER_BATCH / figures.TRAINER_CORES
    training_cores = need.train_pairs / pairs_per_core_s / (need.train_hours * 3600)
    return Others(
        router_processes=math.ceil(router_cores) + 1,
        router_cores=router_cores,
        encoder_cores=encoder_cores,
        encoder_nodes=encoder_nodes,
        encoder_price=encoder_nodes * machine.price,
        encoder_gpus=gpus,
        gpu_price=gpu_price,
        training_nodes=math.ceil(training_cores / machine.cores),
        adaptor_s=figures.ADAPTOR_S * need.train_pairs / figures.ADAPTOR_PAIRS,
        nest_s=figures.NEST_S,
    )
