"""The router's plans beside other ways to search the same vectors, and its promises.

On Qdrant Edge, over real vectors and real questions that nobody calibrated with. For each recall
target: the fastest single-stage setting of the same engine found by a sweep (plain, int8,
TurboQuant, binary, each with rescoring), FAISS's HNSW likewise if it is installed
(`faiss_hnsw.py`), exact search, and the plan that a calibration chose; queries per second of one
core, p50 and p99 in the engine, bytes in memory per point, recall on the timed questions. The
sweeps may look at the timed questions; the calibration may not.

Then the promise itself: calibrations on many random choices of questions; how often the chosen
plan keeps its target on the others, and what it costs beside the cheapest plan that does.

--made adds collections of other widths, made of the real ones (`made.py`), as many points as
--made-points says; of them only the comparison is made. With --only-made the real ones lend their
vectors and are not measured. A million points are `bench.million`'s.
The last line of stdout is one JSON object.

    python -m bench.router [--cache FOLDER] [--promises N] [--pool N] [--made D,D [--made-points N]
        [--made-timed N] [--only-made]]
"""

import argparse
import asyncio
import contextlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rich.progress import Progress

from bench.adaptor import COLLECTIONS, encode
from bench.faiss_hnsw import ABSENT, IS_INSTALLED, faiss_settings
from bench.made import Longer, more_of
from bench.nest import Texts, learn_rotation, read_collection, read_docstrings
from bench.promises import MAX_CANDIDATES, TARGETS, promises
from bench.report import cpu
from bench.timed import (
    LIMIT,
    Measured,
    Setting,
    Vectors,
    build,
    measure,
    of_plan,
    read_truth,
    words,
)
from services.router.plan import Plan, Stage, exact_plan
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.calibration import Calibration
from services.router.recall.queries import Queries, QuerySource
from services.router.recall.recent import Recent
from services.router.sizes import Quantization, SizeRequest, memory, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize
from services.trainer.jobs.hyperparameters import MAX_NESTED

EFS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SINGLE: dict[Quantization, tuple[float | None, ...]] = {
    "none": (None,),
    "int8": (0.0, 1.0),
    "turbo4": (0.0, 1.0, 2.0),
    "turbo2": (1.0, 2.0, 4.0),
    "binary": (2.0, 4.0, 8.0),
}
_NUM_TIMED = 1000
_NUM_KNOWN = 4000
# Vectors that a rotation is learned from.
_LEARNED_FROM = 50_000


def sizes_of(full: int) -> list[SizeRequest]:
    """Return what a collection keeps here besides nested sizes.

    A short size, and the full one as two-bit codes with a graph, whose originals lie on the disk.
    Which of them answers, and how, the calibration says.
    """
    return [SizeRequest(full // 4, "turbo4"), SizeRequest(full, "turbo2", 16, "cold")]


def nested_of(full: int) -> list[SizeRequest]:
    """Return a short nested size, and a long one within an eighth of full HNSW's memory."""
    dims = (min(full // 3, MAX_NESTED), full * 7 // 12)
    return [SizeRequest(dim, "turbo4", is_nested=True) for dim in dims]


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


def made_of(real: Vectors, width: int, points: int, timed: int) -> Vectors:
    """Make a larger and longer collection of a real one, and questions of its questions."""
    longer = Longer(real.documents_ND, width)
    return Vectors(
        f"made-{width}",
        longer(more_of(real.documents_ND, points, 0)),
        longer(more_of(real.known_QD, _NUM_KNOWN, 1)),
        longer(more_of(real.timed_QD, timed, 2)),
    )


def single_stage(store: EdgeStore, collection: Collection, num_points: int) -> list[Setting]:
    """Return the sweep over one collection that keeps the full size only."""
    (size,) = collection.sizes
    (cost,) = memory(collection.sizes, num_points)
    return [
        of_plan(
            store,
            collection,
            Plan((Stage(size.dim, LIMIT, ef=ef, oversampling=times),)),
            f"{size.quantization} ef={ef} oversampling={times}",
            float(cost.vector_bytes + cost.graph_bytes),
        )
        for times in SINGLE[size.quantization]
        for ef in EFS
    ]


async def calibrate(store: EdgeStore, name: str, known_QD: Array) -> Calibration:
    recent = Recent(store, 0, 1, 60.0)
    queries = Queries(store, None, recent, _NUM_KNOWN, 1)  # type: ignore[arg-type]  # asks no encoder
    calibrator = Calibrator(store, queries, 10**7, MAX_CANDIDATES, 1000)
    source = QuerySource(vectors_QD=known_QD, space_id="bench")
    return await calibrator.run(Calibrate(name, LIMIT, 0.99, queries=source), lambda *_: None)


async def compare(store: EdgeStore, data: Vectors, progress: Progress) -> dict[str, object]:
    """Measure one collection."""
    num_points, full = data.documents_ND.shape
    task = progress.add_task(f"{data.name}: build", total=None)
    single = [
        await build(store, f"{data.name}-{kind}", [SizeRequest(full, kind)], data.documents_ND)
        for kind in SINGLE
    ]
    plain = await build(store, data.name, sizes_of(full), data.documents_ND)
    progress.update(task, description=f"{data.name}: build FAISS's")
    swept_faiss = await asyncio.to_thread(faiss_settings, data.documents_ND)
    progress.update(task, description=f"{data.name}: nest")
    nested = nested_of(full)
    rotation = learn_rotation(
        data.documents_ND[:_LEARNED_FROM], data.known_QD, [size.dim for size in nested]
    )
    sizes = resolve_sizes([*sizes_of(full), *nested], full, nesting=rotation.id)
    ours = await store.resize(plain.name, sizes, rotation, lambda *_: None)
    progress.update(task, description=f"{data.name}: calibrate")
    begin_s = time.perf_counter()
    calibration = await calibrate(store, data.name, data.known_QD)
    calibrated_s = time.perf_counter() - begin_s
    truth = await read_truth(store, ours, data.timed_QD, ours.sizes[-1:], LIMIT)
    swept = [setting for one in single for setting in single_stage(store, one, num_points)]
    rows = [calibration.choose(target).row for target in TARGETS]
    plans = [row.plan(LIMIT) for row in rows]
    settings = [
        of_plan(store, ours, exact_plan(ours.sizes, LIMIT), "exact search", 4.0 * full),
        *swept,
        *swept_faiss,
        *(
            of_plan(store, ours, plan, words(plan), float(row.memory_bytes))
            for plan, row in zip(plans, rows, strict=True)
        ),
    ]
    progress.update(task, description=f"{data.name}: time {len(settings)} settings")
    exact, *found = await measure(settings, data.timed_QD, truth)
    progress.remove_task(task)
    graph = next(m for m in found if m.what.startswith("none"))
    peers = {
        "best_single_stage": found[: len(swept)],
        "faiss": found[len(swept) : len(swept) + len(swept_faiss)],
    }
    targets = {
        target: (mine, {name: fastest(some, target) for name, some in peers.items()})
        for target, mine in zip(TARGETS, found[-len(TARGETS) :], strict=True)
    }
    promised = {target: calibration.choose(target).promised for target in TARGETS}
    show(data, exact, graph, targets, promised, calibrated_s, calibration.num_queries)
    return {
        str(target): {
            "recall": round(mine.recall, 4),
            "promised": round(promised[target], 4),
            "memory_ratio": round(graph.memory_bytes / mine.memory_bytes, 2),
            "qps_vs_exact": round(mine.qps / exact.qps, 2),
            "plan": mine.what,
            **beside(mine, best),
        }
        for target, (mine, best) in targets.items()
    }


def fastest(swept: Sequence[Measured], target: float) -> Measured | None:
    """Return the fastest setting of a sweep that keeps a target; None: none does."""
    holding = [m for m in swept if m.recall >= target]
    return max(holding, key=lambda m: m.qps, default=None)


def beside(mine: Measured, best: dict[str, Measured | None]) -> dict[str, object]:
    """Return ratios to the peers' best."""
    result: dict[str, object] = {}
    for name, peer in best.items():
        if peer is not None:
            result[name] = peer.what
            result[f"qps_vs_{name}"] = round(mine.qps / peer.qps, 3)
            result[f"memory_vs_{name}"] = round(mine.memory_bytes / peer.memory_bytes, 3)
    return result


def show(
    data: Vectors,
    exact: Measured,
    graph: Measured,
    targets: dict[float, tuple[Measured, dict[str, Measured | None]]],
    promised: dict[float, float],
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
    for target, (mine, best) in targets.items():
        row(f"{target:g}", f"**ours: {mine.what}**, promised {promised[target]:.3f}", mine)
        names = {"best_single_stage": "best single stage", "faiss": "FAISS"}
        for peer, measured in best.items():
            if measured is not None:
                row("", f"{names[peer]}: {measured.what}", measured)


def overhead() -> dict[str, int]:
    """Measure the router's own time in a process of its own."""
    command = [sys.executable, "-m", "bench.overhead"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, int] = json.loads(made.stdout.splitlines()[-1])
    return figures


async def run(arguments: argparse.Namespace) -> None:
    print(
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, Qdrant Edge, "
        "one engine process, one search at a time; bytes in memory: codes or numbers that are "
        "searched, and links; full vectors of plans that rerank lie on the disk, here in the page "
        "cache"
    )
    # One arithmetic, whatever is fastest here today: the cache goes by it.
    model = TextModel(locate(BASE_MODEL), "bfloat16")
    model.max_tokens = 128
    texts = [read_collection(folder) for folder in COLLECTIONS if folder.exists()]
    texts = [read_docstrings(), *(t for t in texts if len(t.documents) > 10_000)]
    texts = texts[:1] if arguments.only_made else texts
    real = [load(one, model, arguments.cache) for one in texts]
    del model
    result: dict[str, object] = {}
    kept: list[dict[str, float]] = []
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        for data in () if arguments.only_made else real:
            async with opened(Path(folder) / data.name) as store:
                result[data.name] = await compare(store, data, progress)
                promise = await promises(store, data, arguments.pool, arguments.promises, progress)
            print(
                f"\npromises: of {promise['calibrations']:.0f} calibrations for each target the "
                f"chosen plan kept it in {promise['held']:.1%}, at {promise['cost']:.2f} of the "
                "time of the cheapest plan that does (mean)"
            )
            kept.append(promise)
        for width in arguments.made:
            data = made_of(real[0], width, arguments.made_points, arguments.made_timed)
            async with opened(Path(folder) / data.name) as store:
                result[data.name] = await compare(store, data, progress)
            del data
    if arguments.only_made:
        print(json.dumps(result))
        return
    own = overhead()
    result["router_overhead_p50_ms"] = round(own["own_p50_us"] / 1000, 3)
    print(
        f"\nthe router's own time, p50: {result['router_overhead_p50_ms']} ms, of which gRPC's, "
        f"in both processes: {own['health_p50_us'] / 1000:.3f} ms"
    )
    if not IS_INSTALLED:
        print(ABSENT)
    result["promise_held_share"] = round(min(one["held"] for one in kept), 4)
    result["cost_vs_cheapest_holding_plan"] = round(max(one["cost"] for one in kept), 3)
    print(json.dumps(result))


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[EdgeStore]:
    """Have a store for one collection, and its disk back afterwards."""
    store = EdgeStore(folder)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        shutil.rmtree(folder)


def widths(value: str) -> list[int]:
    return [int(width) for width in value.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cache", type=Path, help="folder to keep vectors of texts in")
    parser.add_argument("--promises", type=int, default=200, help="calibrations to simulate")
    parser.add_argument("--pool", type=int, default=6000, help="questions to draw them from")
    parser.add_argument("--made", type=widths, default=[], help="widths of made collections")
    parser.add_argument("--only-made", action="store_true", help="leave the real ones out")
    parser.add_argument("--made-points", type=int, default=200_000, help="in each of these")
    parser.add_argument("--made-timed", type=int, default=_NUM_TIMED, help="questions to these")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
