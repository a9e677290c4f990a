"""What words add to vectors: nDCG@10 on labelled questions, beside Qdrant's own fusion.

On Qdrant Edge, over collections in the BEIR layout: exact search by vectors, BM25 alone, the
engine's own reciprocal rank fusion with its own IDF, and ours by rank and by score. Peers and we
get the same vectors, the same tokeniser and as many candidates of each side. The defaults were
chosen while looking at these questions. The last line of stdout is one JSON object.

    python -m bench.hybrid [FOLDER ...] [--max-tokens N] [--cache FOLDER] [--depths N ...]
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import qdrant_edge as edge
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.adaptor import COLLECTIONS, encode, read_lines
from bench.report import cpu
from services.router.hybrid.hybrid import Hybrid, HybridSearcher
from services.router.hybrid.idf import Rarity
from services.router.hybrid.text_index import TextIndex
from services.router.plan import exact_plan
from services.router.recall.evaluate import Scores, score
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.edge import EdgeStore
from services.router.storage.store import Collection, Point
from services.shared.folder import BASE_MODEL, locate
from services.shared.model import TextModel
from services.shared.vectors import Array, normalize

LIMIT = 10
WEIGHTS = (0.5, 0.6, 0.7, 0.8, 0.9)
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Labelled:
    """A collection with questions whose answers are known."""

    name: str
    ids: list[str]
    texts: list[str]
    vectors_ND: Array
    questions: list[str]
    questions_QD: Array
    relevant: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to search, on all questions."""

    what: str
    ndcg: float
    recall: float
    p50_ms: float
    """With all that it takes beside the engine, except encoding the question."""


Ask = Callable[[int], Awaitable[list[str]]]


def read(folder: Path, model: TextModel, cache: Path | None) -> Labelled:
    documents, questions = read_lines(folder, "corpus.jsonl"), read_lines(folder, "queries.jsonl")
    relevant: dict[str, dict[str, float]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        question, document, grade = line.split("\t")
        if float(grade) > 0:
            relevant.setdefault(question, {})[document] = float(grade)
    asked = [question for question in questions if question["id"] in relevant]
    texts = [document["text"] for document in documents]
    words = [question["text"] for question in asked]
    known = list(dict.fromkeys((*texts, *words)))
    rows = {text: row for row, text in enumerate(known)}
    vectors = normalize(encode(model, known, cache))
    return Labelled(
        folder.name,
        [document["id"] for document in documents],
        texts,
        vectors[[rows[text] for text in texts]],
        words,
        vectors[[rows[text] for text in words]],
        [relevant[question["id"]] for question in asked],
    )


async def ask_all(data: Labelled, what: str, ask: Ask) -> Row:
    scores: list[Scores] = []
    seconds: list[float] = []
    for place in track(
        range(len(data.questions)), f"{data.name}: {what}", console=Console(stderr=True)
    ):
        start = time.perf_counter()
        found = await ask(place)
        seconds.append(time.perf_counter() - start)
        scores.append(score(found, data.relevant[place], LIMIT))
    return Row(
        what,
        float(np.mean([one.ndcg for one in scores])),
        float(np.mean([one.recall for one in scores])),
        1000 * float(np.median(seconds)),
    )


async def ours(data: Labelled, folder: Path, depth: int) -> list[Row]:
    """By vectors alone, by words alone, and fused."""
    store = EdgeStore(folder)
    await store.open()
    full = data.vectors_ND.shape[1]
    sizes = resolve_sizes([SizeRequest(full)], full)
    collection = Collection("bench", "bench", "bench", sizes, text_index=TextIndex())
    await store.create(collection)
    for begin in range(0, len(data.ids), _BATCH):
        some = slice(begin, begin + _BATCH)
        pairs = zip(data.ids[some], data.texts[some], strict=True)
        points = [Point(id_, text, {}) for id_, text in pairs]
        await store.upsert("bench", points, data.vectors_ND[some])
    await store.settle("bench")
    searcher = HybridSearcher(store, Rarity(store))
    near = exact_plan(sizes, depth)

    def fused(hybrid: Hybrid) -> Ask:
        async def ask(place: int) -> list[str]:
            query_D = data.questions_QD[place]
            found, text = await asyncio.gather(
                store.search(collection, near, query_D),
                searcher.search_text(collection, data.questions[place], depth, None, None),
            )
            both = await searcher.fuse(collection, near, query_D, found, text, hybrid, LIMIT)
            return [hit.point.id for hit in both.hits]

        return ask

    async def by_vectors(place: int) -> list[str]:
        plan = exact_plan(sizes, LIMIT)
        found = await store.search(collection, plan, data.questions_QD[place])
        return [hit.point.id for hit in found.hits]

    async def by_words(place: int) -> list[str]:
        text = await searcher.search_text(collection, data.questions[place], LIMIT, None, None)
        return [hit.point.id for hit in text.answer.hits]

    rows = [
        await ask_all(data, "vectors, exact", by_vectors),
        await ask_all(data, "words (BM25)", by_words),
        await ask_all(data, "ours, by rank", fused(Hybrid(fusion="rank"))),
    ]
    for weight in WEIGHTS:
        ask = fused(Hybrid(weight=weight))
        rows.append(await ask_all(data, f"ours, by score, weight {weight:g}", ask))
    await store.close()
    return rows


async def theirs(data: Labelled, folder: str, depth: int) -> list[Row]:
    """The engine's own fusion of both sides, with its own IDF."""
    full = data.vectors_ND.shape[1]
    cosine = edge.EdgeVectorParams(
        size=full,
        distance=edge.Distance.Cosine,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
    )
    words = edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)
    shard = edge.EdgeShard.create(
        folder, edge.EdgeConfig(vectors={"full": cosine}, sparse_vectors={"bm25": words})
    )
    bm25 = edge.Bm25()
    for begin in range(0, len(data.ids), _BATCH):
        shard.update(
            edge.UpdateOperation.upsert_points(
                [
                    edge.Point(
                        row,
                        {
                            "full": data.vectors_ND[row].tolist(),
                            "bm25": bm25.embed_document(data.texts[row]),
                        },
                        {},
                    )
                    for row in range(begin, min(begin + _BATCH, len(data.ids)))
                ]
            )
        )
    shard.optimize()

    def ask_with(fusion: edge.Fusion) -> Ask:
        async def ask(place: int) -> list[str]:
            near = edge.Query.Nearest(data.questions_QD[place].tolist(), using="full")
            worded = edge.Query.Nearest(bm25.embed_query(data.questions[place]), using="bm25")
            request = edge.QueryRequest(
                limit=LIMIT,
                query=fusion,
                prefetches=[
                    edge.Prefetch(limit=depth, query=near, params=edge.SearchParams(exact=True)),
                    edge.Prefetch(limit=depth, query=worded),
                ],
            )
            return [data.ids[int(hit.id)] for hit in shard.query(request)]

        return ask

    rows = [
        await ask_all(data, "Qdrant's RRF, k=2", ask_with(edge.Fusion.Rrf(k=2))),
        await ask_all(data, "Qdrant's RRF, k=60", ask_with(edge.Fusion.Rrf(k=60))),
        await ask_all(data, "Qdrant's DBSF", ask_with(edge.Fusion.Dbsf())),
    ]
    shard.close()
    return rows


def show(console: Console, data: Labelled, depth: int, rows: Sequence[Row]) -> None:
    title = (
        f"{data.name}: {len(data.ids):,} documents, {len(data.questions):,} questions, "
        f"{depth} candidates of each side"
    )
    table = Table("what", title=title, title_justify="left")
    for column in ("nDCG@10", "recall@10", "p50 ms"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.ndcg:.4f}", f"{row.recall:.4f}", f"{row.p50_ms:.2f}")
    console.print(table)


async def run(arguments: argparse.Namespace) -> None:
    console = Console(width=100)
    model = TextModel(locate(BASE_MODEL))
    model.max_tokens = arguments.max_tokens
    console.print(
        f"{cpu()}; {BASE_MODEL}, {model.engine}, texts cut at {arguments.max_tokens} tokens for "
        "vectors, whole for words"
    )
    told: dict[str, object] = {}
    for folder in arguments.folders:
        if not folder.exists():
            console.print(f"{folder.name}: skipped, the folder is not there")
            continue
        data = read(folder, model, arguments.cache)
        for depth in arguments.depths:
            with tempfile.TemporaryDirectory() as temporary:
                rows = await ours(data, Path(temporary) / "ours", depth)
            with tempfile.TemporaryDirectory() as temporary:
                rows += await theirs(data, temporary, depth)
            show(console, data, depth, rows)
            told[f"{data.name}/{depth}"] = {
                row.what: {
                    "ndcg": round(row.ndcg, 4),
                    "recall": round(row.recall, 4),
                    "p50_ms": round(row.p50_ms, 2),
                }
                for row in rows
            }
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=list(COLLECTIONS))
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 50])
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
