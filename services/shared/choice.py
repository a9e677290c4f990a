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

from services.shared.engines import Engines, Trial
from services.shared.errors import InvalidRequest
from services.shared.forward import Packed, Padded, Static, Way
from services.shared.oracle import MAX_WINDOW, Probe, window
from services.shared.packing import Tokens
from services.shared.pair_tower import PairTower
from services.shared.tower import Tower

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "int8"]

# Against sentence-transformers in float32, on the probe texts; of scores, what is on a cosine's
# scale. Rounding alone stays above both; a wrong pooling, mask or position falls far below.
MIN_COSINE_FLOAT32 = 0.9999
MIN_COSINE_ROUNDED = 0.999

_TIMED_RUNS = 3
_SAMPLE_TEXTS = 64
# Another seed than the one that int8 is fitted with.
_SAMPLE_SEED = 2


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
        apply: takes the tower, its float32 way, and what is kept; returns the way to run, perhaps
            the same one over changed weights, and how to undo the change.
    """

    name: str
    apply: Callable[[Tower, Way, Engines | None], tuple[Way, Callable[[], None]]]


def choose(tower: Tower, probe: Probe, precision: Precision, engines: Engines | None) -> Choice:
    """Find the fastest faithful way.

    Args:
        tower: in float32.
        probe: what every way must reproduce.
        precision: "auto", or the one to take if it is faithful.
        engines: what was measured here before; None measures always, and leaves int8 to those
            who ask for it, as its weights would have to be rounded at each start.

    Raises:
        InvalidRequest: none is faithful, or not in the precision asked for.
    """
    way, exact = _exact(tower, probe)
    engine = f"{way.name} float32"
    if tower.is_static or precision == "float32":
        return Choice(way, engine, [])
    tried = [a for a in _ARITHMETICS if precision in {"auto", a.name}]
    if precision == "auto":
        if engines is None:
            tried = [a for a in tried if a.name != "int8"]
        elif trials := engines.read_trials():
            fastest = _fastest(trials)
            chosen = [a for a in tried if fastest.engine == f"{way.name} {a.name}"]
            if not chosen:
                return Choice(way, engine, trials)
            try:
                changed, _ = _apply(chosen[0], tower, way, probe, engines)
                return Choice(changed, fastest.engine, trials)
            except InvalidRequest as error:
                log.warning("%s was chosen before and is measured again: %s", fastest.engine, error)
    else:
        way, _ = _apply(tried[0], tower, way, probe, engines)
        return Choice(way, f"{way.name} {precision}", [])
    return _measure(tower, way, exact, probe, tried, engines)


def _measure(
    tower: Tower,
    way: Way,
    exact: float,
    probe: Probe,
    tried: Sequence[Arithmetic],
    engines: Engines | None,
) -> Choice:
    """Try each arithmetic beside float32, and keep the fastest."""
    # Texts that no arithmetic was fitted to, sorted by length.
    samples = sorted(tower.sample(_SAMPLE_TEXTS, _SAMPLE_SEED), key=len)
    exact_BD = _run(way, samples)
    best = Choice(way, f"{way.name} float32", [])
    trials = [Trial(best.engine, exact, _tokens_per_second(tower, way, samples))]

    def undo_best() -> None:
        """Nothing is to be undone for float32."""

    for arithmetic in tried:
        try:
            changed, undo = _apply(arithmetic, tower, way, probe, engines)
        except InvalidRequest as error:
            log.info("%s is not taken: %s", arithmetic.name, error)
            continue
        likeness = tower.likeness(_run(changed, samples), exact_BD)
        speed = _tokens_per_second(tower, changed, samples)
        trial = Trial(f"{changed.name} {arithmetic.name}", likeness, speed)
        trials.append(trial)
        if likeness >= MIN_COSINE_ROUNDED and trial == _fastest(trials):
            undo_best()
            best, undo_best = Choice(changed, trial.engine, trials), undo
        else:
            undo()
    if engines:
        engines.write_trials(trials)
    return Choice(best.way, best.engine, trials)


def _fastest(trials: Sequence[Trial]) -> Trial:
    faithful = [trial for trial in trials if trial.min_cosine >= MIN_COSINE_ROUNDED]
    return max(faithful, key=lambda trial: trial.tokens_per_second)


def _apply(
    arithmetic: Arithmetic, tower: Tower, way: Way, probe: Probe, engines: Engines | None
) -> tuple[Way, Callable[[], None]]:
    """Change the arithmetic, if it is faithful on the probes."""
    changed, undo = arithmetic.apply(tower, way, engines)
    try:
        check_fidelity(tower, changed, probe, MIN_COSINE_ROUNDED)
    except InvalidRequest:
        undo()
        raise
    return changed, undo


def check_fidelity(tower: Tower, way: Way, probe: Probe, min_likeness: float) -> float:
    """Return the likeness to the oracle over the probes.

    Raises:
        InvalidRequest: it is below `min_likeness`, or not a number.
    """
    likeness = tower.likeness(_run(way, probe.batch), probe.oracle_BD)
    if not likeness >= min_likeness:
        raise InvalidRequest(
            f"likeness to sentence-transformers' answers is {likeness:.6f}, at least "
            f"{min_likeness} is needed; this model cannot be served faithfully"
        )
    return likeness


def _exact(tower: Tower, probe: Probe) -> tuple[Way, float]:
    """Find the best way in float32: packed where the architecture allows it."""
    if tower.is_static:
        static = Static(tower)
        return static, check_fidelity(tower, static, probe, MIN_COSINE_FLOAT32)
    packed: Packed | None = None
    try:
        if window(tower) > MAX_WINDOW:
            raise InvalidRequest(f"windows of more than {MAX_WINDOW} tokens are not tested")
        packed = Packed(tower)
        return packed, check_fidelity(tower, packed, probe, MIN_COSINE_FLOAT32)
    # Architectures fail in their own ways on a batch without padding or mask.
    except (
        InvalidRequest, TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError,
    ) as error:  # fmt: skip
        log.info("packing does not fit this architecture, padding instead: %s", error)
        if packed:
            packed.close()
    padded = Padded(tower)
    return padded, check_fidelity(tower, padded, probe, MIN_COSINE_FLOAT32)


@torch.inference_mode()
def _run(way: Way, batch: Sequence[Tokens]) -> torch.Tensor:
    return way(batch).cpu()


@torch.inference_mode()
def _tokens_per_second(tower: Tower, way: Way, batch: Sequence[Tokens]) -> float:
    """Return the best of some runs over texts of usual lengths."""
    # On a CPU its own time is what counts: another process beside it would blur the clock. It is
    # the time of all cores, whether a way shares each product between them or not.
    cores = torch.get_num_threads() if tower.device == "cpu" else 1
    clock = time.process_time if tower.device == "cpu" else time.perf_counter
    seconds = []
    for _ in range(_TIMED_RUNS):
        start = clock()
        way(batch).cpu()
        seconds.append(clock() - start)
    return sum(map(len, batch)) * cores / max(min(seconds), 1e-9)


def _to_int8(tower: Tower, way: Way, engines: Engines | None) -> tuple[Way, Callable[[], None]]:
    if not isinstance(way, Packed):
        raise InvalidRequest("int8 is for models that can be packed")
    # Here, as its compiler is slow to import and not needed where int8 is not tried.
    try:
        from services.shared.int8 import Int8
    except (ImportError, RuntimeError) as error:  # numba finds no folder for what it compiles
        raise InvalidRequest(f"int8 cannot be compiled here: {error}") from error

    int8 = Int8(tower, way, engines)
    return int8, int8.close


def _to_bfloat16(tower: Tower, way: Way, _: Engines | None) -> tuple[Way, Callable[[], None]]:
    """Round the network's weights, in place.

    Weights only: a rotary embedding's frequencies are buffers, and rounding those would move the
    positions of long texts. Pooling and heads stay in float32 too: they cost nothing and keep
    rotations exact.
    """
    if isinstance(way, Padded) and isinstance(tower, PairTower):
        raise InvalidRequest("bfloat16 is for cross-encoders that can be packed")
    kept: Sequence[tuple[torch.nn.Parameter, torch.Tensor]] = [
        (parameter, parameter.data) for parameter in tower.network.parameters()
    ]
    for parameter, data in kept:
        parameter.data = data.to(torch.bfloat16)

    def undo() -> None:
        for parameter, data in kept:
            parameter.data = data

    return way, undo


# Tried in this order: bfloat16 changes the weights in place, so it comes last.
_ARITHMETICS = (Arithmetic("int8", _to_int8), Arithmetic("bfloat16", _to_bfloat16))
