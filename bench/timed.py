"""Settings of a search side by side: what is built for them, and how they are timed.

Shapes: N points, Q queries, D full width.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.router.plan import Plan, recall, scores_are_cosines
from services.router.recall.ranks import Neighbours, Scan
from services.router.sizes import Size, SizeRequest, label, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection, Point
from services.shared.vectors import Array

LIMIT = 10
_BATCH = 2048
_WARM_UP = 3

Found = tuple[list[tuple[str, float]], float]
"""(key, score) of the hits, best first, and the engine's seconds."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """A collection and its questions."""

    name: str
    documents_ND: Array
    known_QD: Array
    """Questions that a calibration may use."""
    timed_QD: Array


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to search."""

    what: str
    ask: Callable[[Array], Awaitable[Found]]
    memory_bytes: float
    """For each point: what a search reads, and links."""
    is_cosine: bool = True
    """Whether scores are cosines of whole vectors, and not what codes make of them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A setting on the timed questions."""

    what: str
    recall: float
    qps: float
    p50_ms: float
    p99_ms: float
    memory_bytes: float


def of_plan(
    store: EdgeStore, collection: Collection, plan: Plan, what: str, memory_bytes: float
) -> Setting:
    """Return the setting that runs a plan."""

    async def ask(query_D: Array) -> Found:
        answer = await store.search(collection, plan, query_D, with_points=False)
        return [(hit.key, hit.score) for hit in answer.hits], answer.seconds

    is_cosine = scores_are_cosines(plan, collection.sizes[-1])
    return Setting(what, ask, memory_bytes, is_cosine)


def words(plan: Plan) -> str:
    """Return a plan in a few words."""
    *first, last = plan.stages
    parts = [
        f"{label(s.key)} x {s.candidates} ({'scan' if not s.ef else f'ef={s.ef}'})" for s in first
    ]
    how = "exact" if last.exact else f"ef={last.ef} oversampling={last.oversampling}"
    return " > ".join([*parts, str(last.dim) if first else f"{last.dim} {how}"])


async def build(
    store: EdgeStore, name: str, sizes: Sequence[SizeRequest], documents_ND: Array
) -> Collection:
    """Write and index a collection; a point's id is its row."""
    collection = Collection(name, "bench", "bench", resolve_sizes(sizes, documents_ND.shape[1]))
    await store.create(collection)
    for begin in range(0, len(documents_ND), _BATCH):
        rows = documents_ND[begin : begin + _BATCH]
        points = [Point(str(begin + row), "", {}) for row in range(len(rows))]
        await store.upsert(name, points, rows)
    await store.settle(name)
    return collection


async def read_truth(
    store: EdgeStore, collection: Collection, queries_QD: Array, sizes: Sequence[Size], depth: int
) -> Neighbours:
    """Return the exact hits of queries, and their ranks at some sizes."""
    rotation = await store.rotation(collection)
    scan = Scan(queries_QD, [""] * len(queries_QD), sizes, depth, rotation)
    after: str | None = None
    while True:
        page = await store.vectors(collection.name, after, 1000)
        scan.add(page.keys, page.vectors_BD)
        after = page.after
        if after is None:
            return scan.neighbours(LIMIT)


async def measure(
    settings: Sequence[Setting], queries_QD: Array, truth: Neighbours
) -> list[Measured]:
    """Let all settings answer all questions, under the same conditions.

    For each question in an order of its own, drawn anew; each right after the same setting has
    answered a few other questions. One that stood in a row of settings of its index, with the same
    question, would find all it reads in the processor's caches: users do not ask like that, and
    long sweeps would look faster than a single plan.
    """
    random = np.random.default_rng(0)
    recalls = np.zeros((len(settings), len(queries_QD)))
    seconds = np.zeros_like(recalls)
    for query, query_D in enumerate(queries_QD):
        exact = list(zip(truth.keys[query], truth.scores[query], strict=True))
        for number in random.permutation(len(settings)):
            setting = settings[number]
            for other in random.integers(len(queries_QD), size=_WARM_UP):
                await setting.ask(queries_QD[other])
            hits, seconds[number, query] = await setting.ask(query_D)
            recalls[number, query] = recall(hits, exact, setting.is_cosine)
    return [
        Measured(
            setting.what,
            float(recalls[number].mean()),
            float(1 / seconds[number].mean()),
            float(np.median(seconds[number]) * 1000),
            float(np.quantile(seconds[number], 0.99) * 1000),
            setting.memory_bytes,
        )
        for number, setting in enumerate(settings)
    ]
