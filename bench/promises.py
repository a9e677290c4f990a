"""How often a promise of recall holds: many calibrations, each judged by questions left out."""

from dataclasses import replace

import numpy as np
from rich.progress import Progress

from bench.timed import LIMIT, Vectors, read_truth
from services.router.plan import exact_plan, recall, scores_are_cosines
from services.router.recall.candidates import candidate_plans
from services.router.recall.trials import (
    OBJECTIVES,
    ROUNDS,
    Trial,
    bytes_needed,
    front,
    plan_rows,
    screen,
    thin,
)
from services.router.storage.edge import EdgeStore

TARGETS = (0.90, 0.95, 0.99)
MAX_CANDIDATES = 5000
_CHOOSING = 600


async def promises(
    store: EdgeStore, data: Vectors, pool: int, number: int, progress: Progress
) -> dict[str, float]:
    """Calibrate often on random choices of questions; judge by those that were left out."""
    collection = await store.find(data.name)
    num_points = len(data.documents_ND)
    rng = np.random.default_rng(0)
    questions_QD = data.known_QD[rng.permutation(len(data.known_QD))[:pool]]
    sizes = collection.sizes
    ranks = await read_truth(store, collection, questions_QD[:400], sizes, MAX_CANDIDATES)
    truth = await read_truth(store, collection, questions_QD, sizes[-1:], LIMIT)
    plans = candidate_plans(collection.sizes, ranks, num_points, LIMIT, MAX_CANDIDATES)
    exact, *trials = (
        Trial(plan, bytes_needed(plan, sizes, num_points), [], [])
        for plan in [exact_plan(sizes, LIMIT), *plans]
    )
    task = progress.add_task(f"{data.name}: promises", total=len(questions_QD))
    for query, query_D in enumerate(questions_QD):
        best = list(zip(truth.keys[query], truth.scores[query], strict=True))
        for trial in [exact, *trials]:
            answer = await store.search(collection, trial.plan, query_D, with_points=False)
            is_cosine = scores_are_cosines(trial.plan, sizes[-1])
            found = [(hit.key, hit.score) for hit in answer.hits]
            trial.recalls.append(recall(found, best, is_cosine))
            trial.seconds.append(answer.seconds)
        if margin := ROUNDS.get(query + 1):  # most are of no use, as in a calibration
            trials = screen(trials, exact, margin)
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
            chosen, cost = min(sure, key=lambda one: one[1])
            really = 1.0 if chosen is None else chosen.recall_chosen
            cheapest = min([t.p50 for t in mine if t.recall_chosen >= target] + [exact.p50])
            held.append(really >= target)
            costs.append(cost / cheapest)
    return {
        "held": float(np.mean(held)),
        "cost": float(np.mean(costs)),
        "questions": size,
        "calibrations": number,
    }
