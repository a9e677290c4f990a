"""What a deployment is to do, and what machines there are: the user's numbers, checked."""

import math
from dataclasses import dataclass

from services.cli.capacity.figures import TARGETS
from services.router.settings import RouterSettings
from services.router.sizes import BITS, Quantization
from services.shared.errors import InvalidRequest

_GIB = 2**30
MAX_VECTORS = 10**12


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine to rent or to buy, with a price relative to the others'."""

    cores: int
    memory_bytes: int
    disk_bytes: int
    price: float

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        return f"{self.cores} cores, {self.memory_bytes / _GIB:g} GiB"


@dataclass(frozen=True, slots=True)
class Gpu:
    """An accelerator for the encoder, by the user's own measurement."""

    tokens_per_s: float
    price: float


@dataclass(frozen=True, slots=True)
class OwnPlan:
    """A plan of the user's: the size that is searched first, and how long that took."""

    dim: int
    quantization: Quantization
    p50_ms: float
    p99_ms: float
    points: int
    """Of the collection on which that was measured."""
    scored: int
    """Points whose full vectors are read to be scored anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The user's numbers."""

    vectors: int
    dims: int
    searches_per_s: float
    recall_target: float
    replicas: int
    """Least copies of each shard. From two on, one of a shard may be lost without overload."""
    texts_per_s: float
    """Documents to encode, beside the queries."""
    payload_bytes: int
    """On the disk, beside a vector: text and attributes."""
    train_pairs: int
    train_hours: float
    """Time in which all weights are to see all pairs once."""
    machines: tuple[Machine, ...]
    gpu: Gpu | None
    own_plan: OwnPlan | None
    busy: float
    """Most of the time that a core may be at work."""
    memory_share: float
    """Of a machine's memory: what codes, links and vectors may take."""

    @property
    def measured_target(self) -> float:
        """The least target that was measured and is no lower."""
        return next(target for target in TARGETS if target >= self.recall_target)

    def check(self) -> None:
        """Refuse what cannot be planned for; InvalidRequest says what is accepted."""
        _check("--vectors", self.vectors, 1, MAX_VECTORS)
        _check("--dims", self.dims, 8, 65_536)
        _check("--searches-per-s", self.searches_per_s, 0.001, 1e7)
        _check("--recall-target", self.recall_target, 0.5, TARGETS[-1])
        _check("--replicas", self.replicas, 1, RouterSettings.model_fields["max_replicas"].default)
        _check("--texts-per-s", self.texts_per_s, 0, 1e8)
        _check("--payload-bytes", self.payload_bytes, 0, 10**7)
        _check("--train-pairs", self.train_pairs, 1, 10**11)
        _check("--train-hours", self.train_hours, 0.01, 10_000)
        _check("--busy", self.busy, 0.05, 0.95)
        _check("--memory-share", self.memory_share, 0.05, 0.95)
        if self.own_plan and self.own_plan.dim > self.dims:
            raise InvalidRequest(f"--plan must be at most {self.dims} numbers wide, as --dims says")


def _check(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"{option} must be between {least:g} and {most:g}, got {value:g}")


def parse_machine(text: str) -> Machine:
    """Read CORES:MEMORY_GIB:DISK_GIB:PRICE; InvalidRequest."""
    cores, memory, disk, price = _numbers("--machine", text, "16:128:2000:1.0", 4)
    if cores < 1 or cores % 1:
        raise InvalidRequest(f"--machine: cores must be a whole number from 1, got {cores:g}")
    return Machine(int(cores), round(memory * _GIB), round(disk * _GIB), price)


def parse_gpu(text: str) -> Gpu:
    """Read TOKENS_PER_S:PRICE; InvalidRequest."""
    return Gpu(*_numbers("--gpu", text, "500000:3.0", 2))


def parse_own_plan(text: str, measured: str) -> OwnPlan:
    """Read DIM:CODES and P50_MS:P99_MS:POINTS:SCORED; InvalidRequest."""
    if not text:
        raise InvalidRequest("--measured needs --plan, the size and codes that it is of")
    dim, _, codes = text.partition(":")
    if not dim.isdecimal() or int(dim) < 1 or codes not in BITS:
        raise InvalidRequest(
            f"--plan must be a size and its codes such as 128:turbo4, got {text!r}; codes are "
            f"{', '.join(BITS)}"
        )
    if not measured:
        raise InvalidRequest(
            "--plan needs --measured P50_MS:P99_MS:POINTS:SCORED, as `matryoshka calibrate` "
            "shows them"
        )
    p50_ms, p99_ms, points, scored = _numbers("--measured", measured, "0.83:3.4:1000000:110", 4)
    if p99_ms < p50_ms or points < 2:
        raise InvalidRequest("--measured: P99_MS must be no less than P50_MS, and POINTS 2 or more")
    return OwnPlan(int(dim), codes, p50_ms, p99_ms, int(points), int(scored))


def _numbers(option: str, text: str, example: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(0 < number < math.inf for number in numbers):
        raise InvalidRequest(f"{option} must be {count} numbers above 0 such as {example}")
    return numbers
