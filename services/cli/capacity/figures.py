"""What was measured, and where: the defaults of the capacity model.

Each figure stands in a committed output below `bench/results`, which says on what it was measured;
a test holds the two together. All of them are of two cores of one processor, one model
(all-MiniLM-L6-v2) and collections of up to a million points. What is further is extrapolated.
"""

from dataclasses import dataclass

DIM = 384
"""Width of the vectors that were searched."""
POINTS_SINGLE, POINTS_NESTED = 40_772, 1_000_000
"""Collections that single-stage and nested plans were timed on."""
TARGETS = (0.9, 0.95, 0.99)
"""Recalls@10 that plans were calibrated for."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One plan on one collection, one search at a time."""

    p50_ms: float
    p99_ms: float
    points: int
    scored: int = 0
    """Points whose full vectors are read to be scored anew."""


# bench/results/router.txt, docstrings: the fastest single stage that a sweep found at any memory.
FASTEST_SINGLE = {
    0.9: Timing(0.13, 0.24, POINTS_SINGLE),
    0.95: Timing(0.14, 0.35, POINTS_SINGLE),
    0.99: Timing(0.22, 0.53, POINTS_SINGLE),
}
# bench/results/router.txt, docstrings: full width in codes of two bits; hits x oversampling scored.
# The last p99 is of a moment when other work ran, so that simulated tails are rather too long.
TURBO2_SINGLE = {
    0.9: Timing(0.15, 0.26, POINTS_SINGLE, 30),
    0.95: Timing(0.17, 0.30, POINTS_SINGLE, 40),
    0.99: Timing(0.28, 3.05, POINTS_SINGLE, 60),
}
# bench/results/million.txt: a third of the width, nested, in codes of four bits.
NESTED = {
    0.9: Timing(0.98, 4.75, POINTS_NESTED, 82),
    0.95: Timing(0.83, 3.37, POINTS_NESTED, 110),
    0.99: Timing(3.23, 5.90, POINTS_NESTED, 344),
}
# bench/results/escalation.txt, docstrings at 128 nested numbers without codes: the shortlists that
# keep a target among 36,103 points. With those above they say how a shortlist grows.
POINTS_SHORTLISTS = 36_103
NESTED_SHORTLISTS = {0.9: 15, 0.95: 20, 0.99: 40}
# bench/results/million.txt: what the engine's process holds beside files, less the codes of two
# sizes (64 and 128 numbers in four bits): ids and the like, and the process itself.
WORKER_OWN_GIB, WORKER_CODES_BYTES = 0.25, (64 + 128) // 2 + 2 * 8
BESIDE_BYTES = round(WORKER_OWN_GIB * 2**30 / POINTS_NESTED) - WORKER_CODES_BYTES
# bench/results/encoder-cpu.txt, "ours: gRPC 64 clients", both cores together.
ENCODER_CORES = 2
QUERIES_PER_S, QUERY_TOKENS = 541.5, 15.0
DOCUMENTS_PER_S, DOCUMENT_TOKENS = 75.8, 185.8
# The same at half of that load.
QUERY_P50_MS, QUERY_P99_MS = 22.7, 60.4
# bench/results/router.txt: the router's own time.
ROUTER_MS = 0.967
# bench/results/trainer.txt: all weights, batches of 32 pairs, both cores together.
TRAINER_CORES, TRAINER_BATCH, TRAINER_STEPS_PER_S = 2, 32, 0.804
ADAPTOR_S, ADAPTOR_PAIRS = 22.0, 15_000
# bench/results/nest.txt: 100,000 vectors of 384 numbers.
NEST_S = 33.6
