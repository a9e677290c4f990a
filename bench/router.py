"""The router's plans beside the best single-stage settings of the same engine, and its promises.

On Qdrant Edge, over real vectors and real questions that nobody calibrated with. For each recall
target: the fastest single-stage setting found by a sweep (plain, int8, TurboQuant, binary, each
with rescoring), exact search, and the plan that a calibration chose; queries per second of one
core, p50 and p99 in the engine, bytes in memory per point, recall on the timed questions. The
sweep may look at the timed questions; the calibration may not.

Then the promise itself: calibrations on many random choices of questions; how often the chosen
plan keeps its target on the others, and what it costs beside the cheapest plan that does. The
last line of stdout is one JSON object. A million points are `bench.million`'s.

    python -m bench.router [--cache FOLDER] [--promises N] [--pool N]
"""

import argparse
import asyncio
import json
import platform
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
from rich.progress import Progress

from bench.adaptor import COLLECTIONS, encode
from bench.nest import Texts, learn_rotation, read_collection, read_docstrings
from bench.report import cpu
from services.router.plan import Plan, Stage, exact_plan, recall
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.candidates import candidate_plans
from services.router.recall.queries import Queries, QuerySource
from services.router.recall.ranks import Neighbours, Scan
from services.router.recall.recent import Recent
from services.router.recall.trials import OBJECTIVES, Trial, front, plan_rows, thin
from services.router.sizes import Quantization, Size, SizeRequest, label, memory, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection, Point
from services.shared.folder import DEFAULT_MODEL, locate
from services.shared.model import TextModel
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.vectors import Array, normalize, pack
from tests.conftest import serve

TARGETS = (0.90, 0.95, 0.99)
LIMIT = 10
FULL = 384
# What a collection keeps here: short sizes, plain and nested, and the full one as two-bit codes
# with a graph, whose originals lie on the disk. Which answers, and how, the calibration says.
SIZES = (SizeRequest(96, "turbo4"), SizeRequest(FULL, "turbo2", 16, "cold"))
NESTED = (96, 128)
EFS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SINGLE: dict[Quantization, tuple[float | None, ...]] = {
    "none": (None,),
    "int8": (0.0, 1.0),
    "turbo4": (0.0, 1.0, 2.0),
    "turbo2": (1.0, 2.0, 4.0),
    "binary": (2.0, 4.0, 8.0),
}
_NUM_TIMED = 1000
_MAX_CANDIDATES = 5000
_CHOOSING = 600
_MIN_CERTIFYING = 500


@dataclass(frozen=True, slots=True)
class Vectors:
    """A collection and its questions."""

    name: str
    documents_ND: Array
    known_QD: Array
    """Questions that a calibration may use."""
    timed_QD: Array


@dataclass(frozen=True, slots=True)
class Measured:
    """A setting on the timed questions."""

    what: str
    recall: float
    qps: float
    p50_ms: float
    p99_ms: float
    memory_bytes: float


def load(texts: Texts, model: TextModel, cache: Path | None) -> Vectors:
    known = sorted({*texts.training, *texts.questions})
    rows = {text: row for row, text in enumerate(known)}
    vectors = normalize(encode(model, known, cache))
    return Vectors(
        texts.name,
        normalize(encode(model, texts.documents, cache)),
        vectors[[rows[text] for text in texts.training]],
        vectors[[rows[text] for text in texts.questions[:_NUM_TIMED]]],
    )


async def build(
    store: EdgeStore, name: str, sizes: Sequence[SizeRequest], data: Vectors
) -> Collection:
    full = data.documents_ND.shape[1]
    collection = Collection(name, "bench", "bench", resolve_sizes(sizes, full))
    await store.create(collection)
    for begin in range(0, len(data.documents_ND), 2048):
        rows = data.documents_ND[begin : begin + 2048]
        points = [Point(str(begin + row), "", {}) for row in range(len(rows))]
        await store.upsert(name, points, rows)
    await store.settle(name)
    return collection


async def read_truth(
    store: EdgeStore, collection: Collection, queries_QD: Array, sizes: Sequence[Size], depth: int
) -> Neighbours:
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
    store: EdgeStore,
    settings: Sequence[tuple[str, Collection, Plan, float]],
    queries_QD: Array,
    truth: Neighbours,
) -> list[Measured]:
    """Let all settings answer all questions, in turns.

    Each collection has an engine of its own; the first search after those of others finds its
    memory cold, so one that does not count comes before.
    """
    recalls = np.zeros((len(settings), len(queries_QD)))
    seconds = np.zeros_like(recalls)
    for query, query_D in enumerate(queries_QD):
        exact = list(zip(truth.keys[query], truth.scores[query], strict=True))
        last = None
        for number, (_, collection, plan, _) in enumerate(settings):
            if collection is not last:
                await store.search(collection, plan, query_D, with_points=False)
                last = collection
            answer = await store.search(collection, plan, query_D, with_points=False)
            hits = [(hit.key, hit.score) for hit in answer.hits]
            recalls[number, query] = recall(hits, exact)
            seconds[number, query] = answer.seconds
    return [
        Measured(
            what,
            float(recalls[number].mean()),
            float(1 / seconds[number].mean()),
            float(np.median(seconds[number]) * 1000),
            float(np.quantile(seconds[number], 0.99) * 1000),
            bytes_,
        )
        for number, (what, _, _, bytes_) in enumerate(settings)
    ]


def single_stage(
    collection: Collection, num_points: int
) -> list[tuple[str, Collection, Plan, float]]:
    """Return the sweep over one collection that keeps the full size only."""
    (size,) = collection.sizes
    (cost,) = memory(collection.sizes, num_points)
    return [
        (
            f"{size.quantization} ef={ef} oversampling={times}",
            collection,
            Plan((Stage(size.dim, LIMIT, ef=ef, oversampling=times),)),
            float(cost.vector_bytes + cost.graph_bytes),
        )
        for times in SINGLE[size.quantization]
        for ef in EFS
    ]


def words(plan: Plan) -> str:
    """Return a plan in a few words."""
    *first, last = plan.stages
    parts = [
        f"{label(s.key)} x {s.candidates} ({'scan' if not s.ef else f'ef={s.ef}'})" for s in first
    ]
    how = "exact" if last.exact else f"ef={last.ef} oversampling={last.oversampling}"
    return " > ".join([*parts, str(last.dim) if first else f"{last.dim} {how}"])


async def compare(store: EdgeStore, data: Vectors, progress: Progress) -> dict[str, object]:
    """Measure one collection."""
    num_points, full = data.documents_ND.shape
    task = progress.add_task(f"{data.name}: build", total=None)
    single = [
        await build(store, f"{data.name}-{kind}", [SizeRequest(full, kind)], data)
        for kind in SINGLE
    ]
    plain = await build(store, data.name, SIZES, data)
    progress.update(task, description=f"{data.name}: nest")
    rotation = learn_rotation(data.documents_ND, data.known_QD, NESTED)
    nested = [SizeRequest(dim, "turbo4", is_nested=True) for dim in NESTED]
    sizes = resolve_sizes([*SIZES, *nested], full, nesting=rotation.id)
    ours = await store.resize(plain.name, sizes, rotation, lambda *_: None)
    progress.update(task, description=f"{data.name}: calibrate")
    recent = Recent(store, 0, 1, 60.0)
    calibrator = Calibrator(
        store,
        Queries(store, None, recent, 4000, 1_000_000),
        10**7,
        _MAX_CANDIDATES,
        1000,  # type: ignore[arg-type]
    )
    begin = time.perf_counter()
    calibration = await calibrator.run(
        Calibrate(
            data.name, LIMIT, 0.99, queries=QuerySource(vectors_QD=data.known_QD, space_id="bench")
        ),
        lambda *_: None,
    )
    calibrated_s = time.perf_counter() - begin
    truth = await read_truth(store, ours, data.timed_QD, ours.sizes[-1:], LIMIT)
    settings = [("exact search", ours, exact_plan(ours.sizes, LIMIT), 4.0 * full)]
    for collection in single:
        # Keys are the points' ids, so they are the same in all collections.
        settings += single_stage(collection, num_points)
    chosen = {}
    for target in TARGETS:
        choice = calibration.choose(target)
        chosen[target] = len(settings)
        plan = choice.row.plan(LIMIT)
        settings.append((words(plan), ours, plan, float(choice.row.memory_bytes)))
    progress.update(task, description=f"{data.name}: time {len(settings)} settings")
    found = await measure(store, settings, data.timed_QD, truth)
    progress.remove_task(task)
    num_single = len(settings) - len(TARGETS)
    exact, swept = found[0], found[1:num_single]
    graph = next(m for m in swept if m.what.startswith("none"))
    targets = {}
    for target in TARGETS:
        mine = found[chosen[target]]
        holding = [m for m in swept if m.recall >= target]
        best = max(holding, key=lambda m: m.qps, default=exact)
        targets[target] = (mine, best, calibration.choose(target).promised)
    show(data, exact, graph, targets, calibrated_s, calibration.num_queries)
    return {
        str(target): {
            "recall": round(mine.recall, 4),
            "promised": round(promised, 4),
            "memory_ratio": round(graph.memory_bytes / mine.memory_bytes, 2),
            "qps_vs_best_single_stage": round(mine.qps / best.qps, 3),
            "qps_vs_exact": round(mine.qps / exact.qps, 2),
            "plan": mine.what,
            "best_single_stage": best.what,
        }
        for target, (mine, best, promised) in targets.items()
    }


def show(
    data: Vectors,
    exact: Measured,
    graph: Measured,
    targets: dict[float, tuple[Measured, Measured, float]],
    calibrated_s: float,
    num_queries: int,
) -> None:
    num_points, full = data.documents_ND.shape
    print(
        f"\n## {data.name}: {num_points:,} points, {full} numbers; {len(data.timed_QD):,} timed "
        f"questions; calibrated in {calibrated_s:.0f} s, bounds from {num_queries:,} others\n"
    )
    print(
        "| target | what | recall | queries/s | p50 ms | p99 ms | bytes/point "
        "| memory of full HNSW over it |"
    )
    print("|---|---|---|---|---|---|---|---|")

    def row(target: str, name: str, m: Measured) -> None:
        print(
            f"| {target} | {name} | {m.recall:.4f} | {m.qps:,.0f} | {m.p50_ms:.2f} "
            f"| {m.p99_ms:.2f} | {m.memory_bytes:.0f} | {graph.memory_bytes / m.memory_bytes:.1f} |"
        )

    row("", "exact search", exact)
    for target, (mine, best, promised) in targets.items():
        row(f"{target:g}", f"**ours: {mine.what}**, promised {promised:.3f}", mine)
        row("", f"best single stage: {best.what}", best)


async def promises(
    store: EdgeStore, data: Vectors, pool: int, number: int, progress: Progress
) -> dict[str, float]:
    """Calibrate often on random choices of questions; judge by those that were left out."""
    collection = await store.find(data.name)
    num_points = len(data.documents_ND)
    rng = np.random.default_rng(0)
    questions_QD = data.known_QD[rng.permutation(len(data.known_QD))[:pool]]
    sizes = collection.sizes
    ranks = await read_truth(store, collection, questions_QD[:400], sizes, _MAX_CANDIDATES)
    truth = await read_truth(store, collection, questions_QD, sizes[-1:], LIMIT)
    plans = candidate_plans(collection.sizes, ranks, num_points, LIMIT, _MAX_CANDIDATES)
    exact = Trial(exact_plan(collection.sizes, LIMIT), 4 * collection.full, [], [])
    trials = [Trial(plan, plan.stages[0].dim, [], []) for plan in plans]
    task = progress.add_task(f"{data.name}: promises", total=len(questions_QD))
    for query, query_D in enumerate(questions_QD):
        best = list(zip(truth.keys[query], truth.scores[query], strict=True))
        for trial in [exact, *trials]:
            answer = await store.search(collection, trial.plan, query_D, with_points=False)
            trial.recalls.append(recall([(hit.key, hit.score) for hit in answer.hits], best))
            trial.seconds.append(answer.seconds)
        if query in (40, 150):  # most are of no use, as in a calibration
            trials = [t for t in trials if t.p50 < exact.p50]
            trials = front(trials, "latency", 0.75 if query == 40 else 0.9)
        progress.update(task, completed=query + 1)
    progress.remove_task(task)
    held: list[bool] = []
    costs: list[float] = []
    size = len(questions_QD)
    for _ in range(number):
        order = rng.permutation(size)
        choosing, certifying = order[:_CHOOSING], order[_CHOOSING : size // 2]
        left_out = order[size // 2 :]
        mine = [replace(t, recalls=[t.recalls[q] for q in choosing]) for t in trials]
        for trial, whole in zip(mine, trials, strict=True):
            trial.recall_chosen = float(np.mean([whole.recalls[q] for q in left_out]))
        sequence = thin(front(mine, "latency"), 18)
        sequence.sort(key=lambda trial: (-trial.recall, -trial.p50))
        of = {id(trial): whole for trial, whole in zip(mine, trials, strict=True)}
        for trial in sequence:
            trial.recalls[:] = [of[id(trial)].recalls[q] for q in certifying]
        rows = plan_rows(exact, sequence, dict.fromkeys(OBJECTIVES, sequence), {}, 0.95)
        for target in TARGETS:
            sure = [
                (t if t is not exact else None, row.seconds_p50)
                for t, row in zip([exact, *sequence], rows, strict=True)
                if row.recalls[""].promised["latency"] >= target
            ]
            trial, cost = min(sure, key=lambda one: one[1])
            really = 1.0 if trial is None else trial.recall_chosen
            cheapest = min([t.p50 for t in mine if t.recall_chosen >= target] + [exact.p50])
            held.append(really >= target)
            costs.append(cost / cheapest)
    return {
        "held": float(np.mean(held)),
        "cost": float(np.mean(costs)),
        "questions": size,
        "calibrations": number,
    }


async def overhead(data: Vectors, folder: Path) -> float:
    """Return the router's own time at p50: a search by vector through gRPC, less the engine's."""
    process = serve(folder, "up")
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            router = pb_grpc.RouterServiceStub(channel)
            size = pb.Size(dim=96, quantization=pb.QUANTIZATION_TURBO4)
            made = await router.CreateCollection(
                pb.CreateCollectionRequest(name="bench", model="default", sizes=[size])
            )
            space = made.collection.space_id
            rows = data.documents_ND[:20_000]

            async def batches() -> AsyncIterator[pb.UpsertRequest]:
                for begin in range(0, len(rows), 1000):
                    some = rows[begin : begin + 1000]
                    points = [pb.Point(id=str(begin + n)) for n in range(len(some))]
                    yield pb.UpsertRequest(
                        collection="bench", points=points, vectors=pack(some), space_id=space
                    )

            async for _ in router.Upsert(batches()):
                pass
            extra = []
            for query_D in np.concatenate([data.timed_QD, data.timed_QD]):
                request = pb.SearchRequest(collection="bench", vector=pack(query_D), space_id=space)
                begin_s = time.perf_counter()
                answer = await router.Search(request)
                extra.append(time.perf_counter() - begin_s - answer.search_seconds)
            return float(np.median(extra) * 1000)
    finally:
        process.stop()


async def run(arguments: argparse.Namespace) -> None:
    print(
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, Qdrant Edge, "
        "one engine process, one search at a time; bytes in memory: codes or numbers that are "
        "searched, and links; full vectors of plans that rerank lie on the disk, here in the page "
        "cache"
    )
    # One arithmetic, whatever is fastest here today: the cache goes by it.
    model = TextModel(locate(DEFAULT_MODEL), "bfloat16")
    model.max_tokens = 128
    texts = [read_collection(folder) for folder in COLLECTIONS if folder.exists()]
    texts = [read_docstrings(), *(t for t in texts if len(t.documents) > 10_000)]
    result: dict[str, object] = {}
    kept: list[dict[str, float]] = []
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        for one in texts:
            data = load(one, model, arguments.cache)
            store = EdgeStore(Path(folder) / one.name)
            await store.open()
            try:
                result[one.name] = await compare(store, data, progress)
                promise = await promises(store, data, arguments.pool, arguments.promises, progress)
                print(
                    f"\npromises: of {promise['calibrations']:.0f} calibrations for each target "
                    f"the chosen plan kept it in {promise['held']:.1%}, at {promise['cost']:.2f} "
                    "of the time of the cheapest plan that does (mean)"
                )
                kept.append(promise)
            finally:
                await store.close()
        result["router_overhead_p50_ms"] = round(await overhead(data, Path(folder)), 3)
    print(f"\nthe router's own time, p50: {result['router_overhead_p50_ms']} ms")
    result["promise_held_share"] = round(min(one["held"] for one in kept), 4)
    result["cost_vs_cheapest_holding_plan"] = round(max(one["cost"] for one in kept), 3)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cache", type=Path, help="folder to keep vectors of texts in")
    parser.add_argument("--promises", type=int, default=200, help="calibrations to simulate")
    parser.add_argument("--pool", type=int, default=6000, help="questions to draw them from")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
