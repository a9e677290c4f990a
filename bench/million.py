"""A million points on one machine: built, nested, opened and searched on Qdrant Edge.

No real collection of that size lies here, so points are made of real ones: each is a docstring's
vector moved by half the difference of two others, so that their spectrum and their crowds stay;
questions likewise, of questions. The collection keeps nested sizes in codes of four bits with
graphs, and the full numbers on the disk. A calibration chooses the plans; other questions are
timed, the plans and exact full-width search in turns. The last line of stdout is one JSON object.

    python -m bench.million [--points N] [--sizes M,M] [--cache FOLDER]
"""

import argparse
import asyncio
import contextlib
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.progress import Progress

from bench.nest import learn_rotation, read_docstrings
from bench.report import cpu
from bench.router import load, words
from services.router.plan import exact_plan, recall, scores_are_cosines
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.queries import Queries, QuerySource
from services.router.recall.recent import Recent
from services.router.rotation import Rotation
from services.router.sizes import Size, SizeRequest, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection, Point
from services.shared.errors import NotFound
from services.shared.folder import DEFAULT_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize

TARGETS = (0.90, 0.95, 0.99)
LIMIT = 10
_BATCH = 2048
_KNOWN, _TIMED = 1200, 200
_MAX_CANDIDATES = 2000
_MOVED = 0.5
_LEARNED_FROM = 100_000


def more_of(real_ND: Array, count: int, seed: int) -> Array:
    """Make vectors of real ones: one, moved along the difference of two others."""
    random = np.random.default_rng(seed)
    made = np.empty((count, real_ND.shape[1]), dtype=np.float32)
    for begin in range(0, count, 50_000):
        rows = random.integers(len(real_ND), size=(3, min(50_000, count - begin)))
        one, other, third = (real_ND[some] for some in rows)
        made[begin : begin + len(one)] = normalize(one + _MOVED * (other - third))
    return made


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


async def resize(
    store: EdgeStore,
    collection: Collection,
    sizes: tuple[Size, ...],
    rotation: Rotation,
    query_D: Array,
) -> tuple[float, float]:
    """Add sizes; return the seconds that takes, and the longest search meanwhile."""
    plan = exact_plan(collection.sizes, LIMIT)
    longest_s, begin_s = 0.0, time.perf_counter()
    work = store.resize(collection.name, sizes, rotation, lambda *_: None)
    building = asyncio.create_task(work)
    while not building.done():
        start_s = time.perf_counter()
        with contextlib.suppress(NotFound):  # the sizes have just changed
            await store.search(collection, plan, query_D, with_points=False)
        longest_s = max(longest_s, time.perf_counter() - start_s)
        await asyncio.sleep(0.2)
    await building
    return time.perf_counter() - begin_s, longest_s


async def run(points: int, dims: list[int], cache: Path | None) -> None:
    model = TextModel(locate(DEFAULT_MODEL), "bfloat16")
    model.max_tokens = 128
    real = load(read_docstrings(), model, cache)
    full = real.documents_ND.shape[1]
    print(
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, Qdrant Edge, "
        f"{points:,} points of {full} numbers made of {len(real.documents_ND):,} real ones, one "
        "search at a time"
    )
    documents_ND = more_of(real.documents_ND, points, 0)
    known_QD = more_of(real.known_QD, _KNOWN, 1)
    timed_QD = more_of(real.timed_QD, _TIMED, 2)
    plain = [SizeRequest(full, hnsw_m=0, placement="cold")]
    collection = Collection("million", "bench", "bench", resolve_sizes(plain, full))
    del model
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        store = EdgeStore(Path(folder))
        await store.open()
        await store.create(collection)
        write_s = await fill(store, collection.name, documents_ND, progress)
        begin_s = time.perf_counter()
        sample = documents_ND[:_LEARNED_FROM]
        rotation = learn_rotation(sample, known_QD, dims)
        learn_s = time.perf_counter() - begin_s
        nested = [SizeRequest(dim, "turbo4", is_nested=True) for dim in dims]
        sizes = resolve_sizes([*plain, *nested], full, nesting=rotation.id)
        build_s, blocked_s = await resize(store, collection, sizes, rotation, timed_QD[0])
        collection = await store.find(collection.name)
        builders_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        await store.close()
        begin_s = time.perf_counter()
        await store.open()
        exact = exact_plan(collection.sizes, LIMIT)
        await store.count(collection.name)
        open_s = time.perf_counter() - begin_s
        print(
            f"written in {write_s:.0f} s ({points / write_s:,.0f} points/s); a rotation learned in "
            f"{learn_s:.0f} s; nested sizes {dims} built and indexed in {build_s:.0f} s while "
            f"exact searches took {blocked_s * 1000:.0f} ms at most; opened in {open_s:.1f} s; a "
            f"process of the build had {builders_gib:.1f} GiB at most"
        )
        task = progress.add_task("calibrate", total=None)
        recent = Recent(store, 0, 1, 60.0)
        queries = Queries(store, None, recent, _KNOWN, 1_000_000)  # type: ignore[arg-type]  # asks no encoder
        calibrator = Calibrator(store, queries, 10**7, _MAX_CANDIDATES, 1000)
        begin_s = time.perf_counter()
        calibration = await calibrator.run(
            Calibrate(
                collection.name, LIMIT, TARGETS[-1],
                queries=QuerySource(vectors_QD=known_QD, space_id="bench"),
            ),
            lambda step, done, total: progress.update(
                task, description=step, completed=done, total=total
            ),
        )  # fmt: skip
        progress.remove_task(task)
        print(f"calibrated in {time.perf_counter() - begin_s:.0f} s")
        plans = [calibration.choose(target).row.plan(LIMIT) for target in TARGETS]
        seconds = np.zeros((len(plans) + 1, _TIMED))
        recalls = np.zeros((len(plans), _TIMED))
        for query, query_D in enumerate(timed_QD):
            truth = await store.search(collection, exact, query_D, with_points=False)
            seconds[-1, query] = truth.seconds
            best = [(hit.key, hit.score) for hit in truth.hits]
            for number, plan in enumerate(plans):
                answer = await store.search(collection, plan, query_D, with_points=False)
                seconds[number, query] = answer.seconds
                is_cosine = scores_are_cosines(plan, collection.sizes[-1])
                found = [(hit.key, hit.score) for hit in answer.hits]
                recalls[number, query] = recall(found, best, is_cosine)
        worker = store._collections[collection.name].worker
        assert worker is not None
        result: dict[str, object] = {
            "points": points, "dim": full, "write_points_per_s": round(points / write_s),
            "learn_s": round(learn_s), "build_s": round(build_s),
            "longest_exact_search_meanwhile_ms": round(blocked_s * 1000),
            "open_s": round(open_s, 1), "worker_own_gib": round(own_gib(worker.pid), 2),
            "worker_peak_gib": round(peak_gib(worker.pid), 2),
            "exact_p50_ms": round(float(np.median(seconds[-1])) * 1000, 1),
        }  # fmt: skip
        print("\n| target | plan | recall | p50 ms | p99 ms | queries/s over exact search |")
        print("|---|---|---|---|---|---|")
        for number, target in enumerate(TARGETS):
            mine_s = seconds[number]
            ratio = seconds[-1].mean() / mine_s.mean()
            print(
                f"| {target:g} | {words(plans[number])} | {recalls[number].mean():.4f} "
                f"| {np.median(mine_s) * 1000:.2f} | {np.quantile(mine_s, 0.99) * 1000:.2f} "
                f"| {ratio:.0f} |"
            )
            result[str(target)] = {
                "recall": round(float(recalls[number].mean()), 4),
                "qps_vs_exact": round(float(ratio), 1),
                "memory_bytes": calibration.choose(target).row.memory_bytes,
                "plan": words(plans[number]),
            }
        result["qps_vs_exact_1m"] = result[str(TARGETS[-1])]["qps_vs_exact"]  # type: ignore[index]
        await store.close()
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--sizes", default="64,128", help="nested sizes, ascending")
    parser.add_argument("--cache", type=Path, help="folder to keep vectors of texts in")
    arguments = parser.parse_args()
    dims = [int(dim) for dim in arguments.sizes.split(",")]
    asyncio.run(run(arguments.points, dims, arguments.cache))


if __name__ == "__main__":
    main()
