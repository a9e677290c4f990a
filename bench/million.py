"""A million points on one machine: written, indexed, nested, opened and searched on Qdrant Edge.

No real collection of that size lies here, so points are made of real ones (`made.py`), questions
likewise of real questions. At first the collection keeps a plain short size and the full one;
they are indexed, and then it gets the sizes that it is measured with: nested ones in codes of
four bits, and the full one in such codes with a graph, its originals on the disk. Searches go on
all that time, by the short size and exactly, and the longest are shown, and how long one was held
up. Then a calibration chooses the plans; other questions are timed, the plans and exact
full-width search in turns. The last line of stdout is one JSON object.

    python -m bench.million [--points N] [--sizes M,M] [--full CODES] [--cache FOLDER]
"""

import argparse
import asyncio
import contextlib
import json
import platform
import resource
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.progress import Progress

from bench.made import more_of
from bench.nest import learn_rotation, read_docstrings
from bench.report import cpu
from bench.router import load
from bench.timed import LIMIT, Measured, Vectors, measure, of_plan, words
from services.router.plan import default_plan, exact_plan
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.calibration import Calibration
from services.router.recall.queries import Queries, QuerySource
from services.router.recall.ranks import Neighbours
from services.router.recall.recent import Recent
from services.router.sizes import Quantization, SizeRequest, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection, Point
from services.shared.errors import NotFound
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array

TARGETS = (0.90, 0.95, 0.99)
SHORT = 64
_BATCH = 2048
_KNOWN, _TIMED = 1200, 200
_MAX_CANDIDATES = 2000
_LEARNED_FROM = 100_000
_PAUSE_S = 0.05


def peak_gib(pid: int) -> float:
    """Return the most memory a process has had, its mapped files included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def own_gib(pid: int) -> float:
    """Return the memory that is a process's own, without files that the system may let go."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**20


async def fill(store: EdgeStore, name: str, vectors_ND: Array, progress: Progress) -> float:
    """Write all points; return the seconds that takes."""
    task = progress.add_task("write", total=len(vectors_ND))
    begin_s = time.perf_counter()
    for begin in range(0, len(vectors_ND), _BATCH):
        rows = vectors_ND[begin : begin + _BATCH]
        await store.upsert(name, [Point(str(begin + n), "", {}) for n in range(len(rows))], rows)
        progress.update(task, completed=begin + len(rows))
    progress.remove_task(task)
    return time.perf_counter() - begin_s


async def search_on(
    store: EdgeStore, name: str, work: Coroutine[Any, Any, object], queries_QD: Array
) -> dict[str, object]:
    """Search, a short size and exactly in turns, until some work on the collection has ended.

    Returns:
        What took how long: the work, the longest search of each kind, and the longest that one
        was held up, which is what it took beyond the engine's time in it; ms, but for the work.
    """
    took: dict[str, list[tuple[float, float]]] = {"short": [], "exact": []}
    begin_s = time.perf_counter()
    working = asyncio.create_task(work)
    while not working.done():
        collection = await store.find(name)
        number = len(took["short"]) + len(took["exact"])
        kind = ("short", "exact")[number % 2]
        plan = exact_plan(collection.sizes, LIMIT)
        if kind == "short":
            plan = default_plan(collection.sizes, LIMIT, _MAX_CANDIDATES)
        start_s = time.perf_counter()
        with contextlib.suppress(NotFound):  # the sizes have just changed
            answer = await store.search(
                collection, plan, queries_QD[number % len(queries_QD)], with_points=False
            )
            took[kind].append((time.perf_counter() - start_s, answer.seconds))
        await asyncio.sleep(_PAUSE_S)
    await working
    result: dict[str, object] = {"seconds": round(time.perf_counter() - begin_s)}
    for kind, pairs in took.items():
        whole_s, engine_s = np.array(pairs).T
        result[kind] = {
            "searches": len(pairs),
            "p50_ms": round(float(np.median(whole_s)) * 1000, 1),
            "longest_ms": round(float(whole_s.max()) * 1000),
            "longest_held_up_ms": round(float((whole_s - engine_s).max()) * 1000),
        }
    return result


async def calibrate(
    store: EdgeStore, name: str, known_QD: Array, progress: Progress
) -> Calibration:
    task = progress.add_task("calibrate", total=None)
    recent = Recent(store, 0, 1, 60.0)
    queries = Queries(store, None, recent, _KNOWN, 1)  # type: ignore[arg-type]  # asks no encoder
    calibrator = Calibrator(store, queries, 10**7, _MAX_CANDIDATES, 1000)
    source = QuerySource(vectors_QD=known_QD, space_id="bench")
    made = await calibrator.run(
        Calibrate(name, LIMIT, TARGETS[-1], queries=source),
        lambda step, done, total: progress.update(
            task, description=step, completed=done, total=total
        ),
    )
    progress.remove_task(task)
    return made


async def truth_of(store: EdgeStore, collection: Collection, queries_QD: Array) -> Neighbours:
    keys, scores = [], []
    plan = exact_plan(collection.sizes, LIMIT)
    for query_D in queries_QD:
        hits = (await store.search(collection, plan, query_D, with_points=False)).hits
        keys.append([hit.key for hit in hits])
        scores.append([hit.score for hit in hits])
    return Neighbours(keys, scores, {})


async def make(
    store: EdgeStore, data: Vectors, dims: list[int], codes: Quantization, progress: Progress
) -> dict[str, object]:
    """Write, index and resize the collection; return what that took."""
    points, full = data.documents_ND.shape
    plain = [SizeRequest(SHORT, "turbo4"), SizeRequest(full, hnsw_m=0, placement="cold")]
    await store.create(Collection(data.name, "bench", "bench", resolve_sizes(plain, full)))
    write_s = await fill(store, data.name, data.documents_ND, progress)
    task = progress.add_task("index", total=None)
    indexed = await search_on(store, data.name, store.settle(data.name), data.timed_QD)
    progress.update(task, description="learn a rotation")
    begin_s = time.perf_counter()
    rotation = learn_rotation(data.documents_ND[:_LEARNED_FROM], data.known_QD, dims)
    learn_s = time.perf_counter() - begin_s
    progress.update(task, description="build other sizes")
    wanted = [SizeRequest(dim, "turbo4", is_nested=True) for dim in dims]
    wanted.append(SizeRequest(full, codes, 16, "cold"))
    sizes = resolve_sizes(wanted, full, nesting=rotation.id)
    resizing = store.resize(data.name, sizes, rotation, lambda *_: None)
    resized = await search_on(store, data.name, resizing, data.timed_QD)
    progress.remove_task(task)
    builders_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"written in {write_s:.0f} s ({points / write_s:,.0f} points/s); a rotation learned in "
        f"{learn_s:.0f} s; a process of the build had {builders_gib:.1f} GiB at most\n\n"
        "| meanwhile | took s | searches | searches | p50 ms | longest ms | longest held up ms |\n"
        "|---|---|---|---|---|---|---|"
    )
    building = f"{full} with a graph over {codes}, nested {dims}"
    for what, seen in ((f"{SHORT} indexed", indexed), (f"{building} built, indexed", resized)):
        for kind in ("short", "exact"):
            row = " | ".join(map(str, seen[kind].values()))  # type: ignore[attr-defined]
            print(f"| {what} | {seen['seconds']} | {kind} | {row} |")
    return {
        "points": points, "dim": full, "write_points_per_s": round(points / write_s),
        "learn_s": round(learn_s), "index": indexed, "build": resized,
    }  # fmt: skip


async def search(store: EdgeStore, data: Vectors, progress: Progress) -> dict[str, object]:
    """Calibrate, and time the plans beside exact search."""
    begin_s = time.perf_counter()
    collection = await store.find(data.name)
    await store.count(data.name)
    open_s = time.perf_counter() - begin_s
    begin_s = time.perf_counter()
    calibration = await calibrate(store, data.name, data.known_QD, progress)
    print(
        f"\nopened in {open_s:.1f} s; calibrated in {time.perf_counter() - begin_s:.0f} s\n\n"
        "| target | plan | recall | p50 ms | p99 ms | bytes/point | queries/s over exact search |\n"
        "|---|---|---|---|---|---|---|"
    )
    rows = [calibration.choose(target).row for target in TARGETS]
    plans = [exact_plan(collection.sizes, LIMIT), *(row.plan(LIMIT) for row in rows)]
    bytes_ = [4 * collection.full, *(row.memory_bytes for row in rows)]
    settings = [
        of_plan(store, collection, plan, words(plan), memory_bytes)
        for plan, memory_bytes in zip(plans, bytes_, strict=True)
    ]
    truth = await truth_of(store, collection, data.timed_QD)
    exact, *found = await measure(settings, data.timed_QD, truth)
    worker = store._collections[data.name].worker
    assert worker is not None
    result: dict[str, object] = {
        "open_s": round(open_s, 1), "worker_own_gib": round(own_gib(worker.pid), 2),
        "worker_peak_gib": round(peak_gib(worker.pid), 2), "exact_p50_ms": round(exact.p50_ms, 1),
    }  # fmt: skip
    for target, mine in zip(TARGETS, found, strict=True):
        show(target, mine, exact)
        result[str(target)] = {
            "recall": round(mine.recall, 4),
            "qps_vs_exact": round(mine.qps / exact.qps, 1),
            "memory_bytes": mine.memory_bytes,
            "plan": mine.what,
        }
    result["qps_vs_exact_1m"] = round(found[-1].qps / exact.qps, 1)
    return result


def show(target: float, mine: Measured, exact: Measured) -> None:
    print(
        f"| {target:g} | {mine.what} | {mine.recall:.4f} | {mine.p50_ms:.2f} | {mine.p99_ms:.2f} "
        f"| {mine.memory_bytes:.0f} | {mine.qps / exact.qps:.0f} |"
    )


async def run(points: int, dims: list[int], codes: Quantization, cache: Path | None) -> None:
    model = TextModel(locate(BASE_MODEL), "bfloat16")
    model.max_tokens = 128
    real = load(read_docstrings(), model, cache)
    del model
    data = Vectors(
        "million",
        more_of(real.documents_ND, points, 0),
        more_of(real.known_QD, _KNOWN, 1),
        more_of(real.timed_QD, _TIMED, 2),
    )
    print(
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, Qdrant Edge, "
        f"{points:,} points of {data.documents_ND.shape[1]} numbers made of "
        f"{len(real.documents_ND):,} real ones, one search at a time"
    )
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        store = EdgeStore(Path(folder))
        await store.open()
        result = await make(store, data, dims, codes, progress)
        await store.close()
        await store.open()
        result |= await search(store, data, progress)
        await store.close()
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--sizes", default="128", help="nested sizes, ascending")
    parser.add_argument(
        "--full", default="turbo4", choices=get_args(Quantization), help="codes of the full size"
    )
    parser.add_argument("--cache", type=Path, help="folder to keep vectors of texts in")
    arguments = parser.parse_args()
    dims = [int(dim) for dim in arguments.sizes.split(",")]
    asyncio.run(run(arguments.points, dims, arguments.full, arguments.cache))


if __name__ == "__main__":
    main()
