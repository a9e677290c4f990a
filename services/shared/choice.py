"""Which way a tower's forward pass runs: measured at load, within a bound on fidelity.

In: a tower, and the oracle's answers to probe texts. Out: the fastest way that gives the same
answers, and what was measured. No way is trusted because it is known to work elsewhere: each must
give the probes' vectors, or it is not taken.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from services.shared.errors import InvalidRequest
from services.shared.forward import Packed, Padded, Static, Way
from services.shared.oracle import MAX_WINDOW, Probe, window
from services.shared.tower import Tower

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]

# Against sentence-transformers in float32, on the probe texts. Rounding alone stays above both;
# a wrong pooling, mask or position falls far below.
MIN_COSINE_FLOAT32 = 0.9999
MIN_COSINE_BFLOAT16 = 0.999

# A batch for the clock that is large enough to be typical.
_TIMED_COPIES = 10
_TIMED_RUNS = 5


@dataclass(frozen=True, slots=True)
class Trial:
    """One engine as it was measured on this machine.

    Args:
        engine: for example "packed bfloat16".
        min_cosine: the smallest to sentence-transformers in float32, over the probe texts.
        tokens_per_second: best of some runs.
    """

    engine: str
    min_cosine: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and from what.

    Args:
        way: runs the forward pass.
        engine: its name, for people.
        trials: what was measured; empty where there was nothing to choose from.
    """

    way: Way
    engine: str
    trials: list[Trial]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A faster arithmetic for a way that is already faithful in float32.

    Args:
        name: the second word of the engine's name.
        min_cosine: what counts as faithful.
        apply: takes the tower and its float32 way; returns the way to run, perhaps the same one
            over changed weights, and how to undo the change.
    """

    name: str
    min_cosine: float
    apply: Callable[[Tower, Way], tuple[Way, Callable[[], None]]]


def choose(tower: Tower, probe: Probe, precision: Precision) -> Choice:
    """Find the fastest faithful way.

    Raises:
        InvalidRequest: none is faithful, or not in the precision asked for.
    """
    way, exact = _exact(tower, probe)
    engine = f"{way.name} float32"
    tried = [] if tower.is_static else [a for a in _ARITHMETICS if precision in {"auto", a.name}]
    if precision != "auto":
        for arithmetic in tried:
            way, _ = arithmetic.apply(tower, way)
            check_fidelity(way, probe, arithmetic.min_cosine)
            engine = f"{way.name} {arithmetic.name}"
        return Choice(way, engine, [])
    if not tried:
        return Choice(way, engine, [])
    trials = [Trial(engine, exact, _tokens_per_second(tower, way, probe))]
    best: Arithmetic | None = None
    for arithmetic in tried:
        trial = _try(tower, way, probe, arithmetic)
        if trial is None:
            continue
        if trial.tokens_per_second > max(t.tokens_per_second for t in trials):
            best = arithmetic
        trials.append(trial)
    if best:
        way, _ = best.apply(tower, way)
        engine = f"{way.name} {best.name}"
    return Choice(way, engine, trials)


def check_fidelity(way: Way, probe: Probe, min_cosine: float) -> float:
    """Return the smallest cosine to the oracle over the probes.

    Raises:
        InvalidRequest: it is below `min_cosine`, or not a number.
    """
    with torch.inference_mode():
        vectors_BD = way(probe.batch).cpu()
    cosine = float(functional.cosine_similarity(vectors_BD, probe.oracle_BD, dim=1).min())
    if not cosine >= min_cosine:
        raise InvalidRequest(
            f"cosine to sentence-transformers is {cosine:.6f}, at least {min_cosine} is needed; "
            "this model cannot be served faithfully"
        )
    return cosine


def _exact(tower: Tower, probe: Probe) -> tuple[Way, float]:
    """Find the best way in float32: packed where the architecture allows it."""
    if tower.is_static:
        static = Static(tower)
        return static, check_fidelity(static, probe, MIN_COSINE_FLOAT32)
    packed: Packed | None = None
    try:
        if window(tower) > MAX_WINDOW:
            raise InvalidRequest(f"windows of more than {MAX_WINDOW} tokens are not tested")
        packed = Packed(tower)
        return packed, check_fidelity(packed, probe, MIN_COSINE_FLOAT32)
    # Architectures fail in their own ways on a batch without padding or mask.
    except (
        InvalidRequest, TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError,
    ) as error:  # fmt: skip
        log.info("packing does not fit this architecture, padding instead: %s", error)
        if packed:
            packed.close()
    padded = Padded(tower)
    return padded, check_fidelity(padded, probe, MIN_COSINE_FLOAT32)


def _try(tower: Tower, way: Way, probe: Probe, arithmetic: Arithmetic) -> Trial | None:
    """Measure one arithmetic and undo it; None if it is not faithful."""
    changed, undo = arithmetic.apply(tower, way)
    try:
        cosine = check_fidelity(changed, probe, arithmetic.min_cosine)
        speed = _tokens_per_second(tower, changed, probe)
        return Trial(f"{changed.name} {arithmetic.name}", cosine, speed)
    except InvalidRequest as error:
        log.info("%s is not taken: %s", arithmetic.name, error)
        return None
    finally:
        undo()


@torch.inference_mode()
def _tokens_per_second(tower: Tower, way: Way, probe: Probe) -> float:
    """Return the best of some runs over a batch that is large enough to be typical."""
    probes = sorted(probe.typical, key=len)
    batch = [tokens for tokens in probes for _ in range(_TIMED_COPIES)]
    # On a CPU its own time is what counts: another process beside it would blur the clock.
    clock = time.process_time if tower.device == "cpu" else time.perf_counter
    seconds = []
    for _ in range(_TIMED_RUNS):
        start = clock()
        way(batch).cpu()
        seconds.append(clock() - start)
    return sum(map(len, batch)) / max(min(seconds), 1e-9)


def _to_bfloat16(tower: Tower, way: Way) -> tuple[Way, Callable[[], None]]:
    """Round the network's weights, in place.

    Weights only: a rotary embedding's frequencies are buffers, and rounding those would move the
    positions of long texts. Pooling and heads stay in float32 too: they cost nothing and keep
    rotations exact.
    """
    kept: Sequence[tuple[torch.nn.Parameter, torch.Tensor]] = [
        (parameter, parameter.data) for parameter in tower.network.parameters()
    ]
    for parameter, data in kept:
        parameter.data = data.to(torch.bfloat16)

    def undo() -> None:
        for parameter, data in kept:
            parameter.data = data

    return way, undo


# Tried in this order; a new one is one more line.
_ARITHMETICS: Sequence[Arithmetic] = (Arithmetic("bfloat16", MIN_COSINE_BFLOAT16, _to_bfloat16),)
