"""The product's whole promise on real text: encode, index, search in stages, train, swap.

Three real services in three processes; this script is only their client. Reads top to bottom.
"""

import asyncio
import contextlib
import json
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from rich.markup import escape

from services.cli.corpus import CorpusError, Document, read_corpus
from services.cli.processes import ServiceProcess, three_services
from services.cli.screen import Screen
from services.shared.pb import encoder_pb2, encoder_pb2_grpc, router_pb2_grpc, trainer_pb2_grpc
from services.shared.pb import router_pb2 as rt
from services.shared.pb import trainer_pb2 as tr
from services.shared.server import channel_options

ALIAS = "docs"
QUESTIONS = (
    "How do I read rows from a CSV file?",
    "run a function in another thread and wait for the result",
    "parse command line arguments",
    "make a temporary directory that is deleted afterwards",
    "compute the eigenvalues of a symmetric matrix",
    "send an HTTP request and read the response",
    "copy a file with its permissions",
    "shortest path between two nodes of a graph",
    "split data into training and test sets",
    "draw a histogram",
)
_NUM_RECALL_QUERIES = 200
_MAX_HELD_OUT = 500
_MIN_DOCUMENTS = 100
_MIN_QUERIES = 30  # the gate's own; a small corpus holds fewer out
_BATCH_POINTS = 256
_UPLOAD_CHUNK = 1 << 20
_MAX_MESSAGE_BYTES = 64 * 2**20

# Short sizes hold one byte a number; the full one stays exact and is read only to rerank.
SIZES = (
    rt.Size(dim=64, quantization=rt.QUANTIZATION_INT8),
    rt.Size(dim=128, quantization=rt.QUANTIZATION_INT8),
)


def plans(full: int) -> dict[str, rt.Plan]:
    """Name the plans that are compared; the last one is the truth that recall is against."""

    def plan(*stages: tuple[int, int]) -> rt.Plan:
        return rt.Plan(stages=[rt.Stage(dim=dim, candidates=k) for dim, k in stages])

    return {
        "64": plan((64, 0)),
        f"64 x50 -> {full}": plan((64, 50), (full, 0)),
        f"64 x200 -> {full}": plan((64, 200), (full, 0)),
        f"128 x100 -> {full}": plan((128, 100), (full, 0)),
        f"64 x200 -> 128 x50 -> {full}": plan((64, 200), (128, 50), (full, 0)),
        f"exact {full}": rt.Plan(stages=[rt.Stage(dim=full, exact=True)]),
    }


@dataclass
class Stubs:
    """Clients of the three services."""

    encoder: Any
    router: Any
    trainer: Any


@dataclass
class Demo:
    """One run: what it talks to, and what it found."""

    stubs: Stubs
    screen: Screen
    documents: list[Document]
    output: Path
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Asked in recall and quality measurements, and therefore never trained on.
        num_held_out = min(_MAX_HELD_OUT, len(self.documents) // 10)
        shuffled = random.Random(0).sample(self.documents, len(self.documents))
        self.held_out = shuffled[:num_held_out]
        self.trained_on = shuffled[num_held_out:]

    async def run(self) -> None:
        """Play all steps; `figures` then holds every number that was shown."""
        self.screen.title(f"1. Index {len(self.documents):,} documents at three sizes")
        model = (await self.stubs.encoder.GetModel(encoder_pb2.GetModelRequest())).model
        self.screen.say(
            f"{model.id}: {model.dim} dimensions, {model.engine}, space {model.space_id[:8]}"
        )
        await self.stubs.router.CreateCollection(
            rt.CreateCollectionRequest(name="docs-1", model=model.id, sizes=SIZES)
        )
        await self.index("docs-1")
        await self.point_alias("docs-1")
        await self.show_memory()

        self.screen.title("2. Search in two stages")
        await self.ask_questions()
        self.figures["recall_at_10"] = await self.compare_plans(model.dim)

        self.screen.title("3. Train an adaptor on the documents' own titles")
        job = await self.train()

        self.screen.title("4. Promote the model while searches go on")
        await self.swap(job)

        self.screen.title("5. The same questions again")
        self.screen.say("scores stay as they were at full size: a rotation moves the short ones")
        await self.ask_questions()
        self.figures["recall_at_10_after"] = await self.compare_plans(model.dim)

    # 1. Index.

    async def index(self, collection: str) -> None:
        with self.screen.progress("encode and index", len(self.documents)) as advance:
            async for answer in self.stubs.router.Upsert(self.batches(collection)):
                advance(answer.total_points)

    async def batches(self, collection: str) -> AsyncIterator[rt.UpsertRequest]:
        for start in range(0, len(self.documents), _BATCH_POINTS):
            yield rt.UpsertRequest(
                collection=collection,
                points=[
                    rt.Point(
                        id=document.id,
                        text=document.text,
                        attributes={
                            "package": rt.AttributeValue(string_value=document.id.split(".")[0])
                        },
                    )
                    for document in self.documents[start : start + _BATCH_POINTS]
                ],
            )

    async def point_alias(self, collection: str) -> None:
        await self.stubs.router.SetCollectionAlias(
            rt.SetCollectionAliasRequest(alias=ALIAS, collection=collection)
        )

    async def show_memory(self) -> None:
        answer = await self.stubs.router.GetCollection(rt.GetCollectionRequest(name=ALIAS))
        memory = answer.collection.memory
        self.screen.memory(memory)
        self.figures["dims"] = [size.dim for size in memory]
        self.figures["bytes_per_vector"] = {
            size.dim: size.vector_bytes + size.graph_bytes for size in memory
        }

    # 2. Search.

    async def ask_questions(self) -> None:
        for question in self.questions()[:3]:
            answer = await self.search(question, explain=True, measure_recall=True, limit=10)
            self.screen.answer(question, answer)

    def questions(self) -> Sequence[str]:
        """Questions of a Python user, or, for another corpus, some of its own titles."""
        if any(document.id.startswith("json") for document in self.documents):
            return QUESTIONS
        return [document.title for document in self.held_out[:3]]

    async def search(self, text: str, **options: Any) -> Any:  # noqa: ANN401 (untyped stub)
        return await self.stubs.router.Search(
            rt.SearchRequest(collection=ALIAS, text=text, **options)
        )

    async def compare_plans(self, full: int) -> dict[str, float]:
        """Measure recall@10 of each plan on titles that no training sees.

        Each title is encoded once and searched by vector, so that the plans alone are compared.
        """
        collection = await self.stubs.router.GetCollection(rt.GetCollectionRequest(name=ALIAS))
        titles = [document.title for document in self.held_out[:_NUM_RECALL_QUERIES]]
        embedded = await self.stubs.encoder.Embed(
            encoder_pb2.EmbedRequest(
                model=collection.collection.model,
                texts=titles,
                role=encoder_pb2.ROLE_QUERY,
                truncation=encoder_pb2.TRUNCATION_END,
            )
        )
        data, width = embedded.vectors[0].data, 4 * embedded.vectors[0].dim
        named = plans(full)
        answers: dict[str, list[rt.SearchResponse]] = {name: [] for name in named}
        with self.screen.progress("measure plans", len(named) * len(titles)) as advance:
            for number in range(len(titles)):
                vector = data[number * width : (number + 1) * width]
                for name, plan in named.items():
                    answer = await self.stubs.router.Search(
                        rt.SearchRequest(
                            collection=ALIAS,
                            vector=vector,
                            space_id=embedded.space_id,
                            plan=plan,
                            measure_recall=True,
                        )
                    )
                    answers[name].append(answer)
                advance((number + 1) * len(named))
        self.screen.plans(answers)
        return {
            name: round(statistics.mean(a.recall for a in found), 4)
            for name, found in answers.items()
        }

    # 3. Train.

    async def train(self) -> tr.Job:
        upload = self.stubs.trainer.UploadFile
        training = await upload(_pairs("training.jsonl", self.trained_on))
        validation = await upload(_pairs("validation.jsonl", self.held_out))
        created = await self.stubs.trainer.CreateJob(
            tr.CreateJobRequest(
                training_file=training.file_id, validation_file=validation.file_id, suffix="docs"
            )
        )
        job_id = created.job.id
        with self.screen.progress("", 1) as advance:
            async for answer in self.stubs.trainer.WatchJob(tr.WatchJobRequest(id=job_id)):
                event = answer.event
                if event.total_steps:
                    loss = statistics.mean(event.loss.values()) if event.loss else None
                    note = f"{event.phase}" + (f", loss {loss:.3f}" if loss else "")
                    advance(event.step, event.total_steps, note)
        job: tr.Job = (await self.stubs.trainer.GetJob(tr.GetJobRequest(id=job_id))).job
        if job.status != tr.JOB_STATUS_SUCCEEDED:
            raise RuntimeError(f"the training job did not succeed: {job.error}")
        self.show_quality(job)
        return job

    def show_quality(self, job: tr.Job) -> None:
        self.screen.quality(job.quality)
        self.figures["ndcg10_before"] = {q.dim: round(q.before.ndcg10, 4) for q in job.quality}
        self.figures["ndcg10_after"] = {q.dim: round(q.after.ndcg10, 4) for q in job.quality}
        plot = self.output / "quality.png"
        plot.write_bytes(job.plot_png)
        self.screen.say(f"the picture of it: {plot}")

    # 4. Swap.

    async def swap(self, job: tr.Job) -> None:
        stop = asyncio.Event()
        searching = asyncio.create_task(self.keep_searching(stop))
        try:
            await self.promote(job.model_id)
            await asyncio.sleep(1)  # some searches on the new side, too
        finally:
            stop.set()
            searched, failed, spaces = await searching
        self.figures |= {"queries_during_swap": searched, "failed_queries": failed}
        self.screen.say(
            f"{searched} searches during the swap, {failed} failed; "
            f"answered by {' then '.join(spaces)}"
        )

    async def promote(self, version: str) -> None:
        """Let the trainer judge the model, and have it loaded, filled and switched to."""
        min_queries = min(_MIN_QUERIES, len(self.held_out))
        promotion = await self.ask_to_promote(version, tr.Gate(min_queries=min_queries))
        if promotion.state == tr.PROMOTION_STATE_REFUSED:
            self.screen.say(f"the gate refused it: {escape('; '.join(promotion.reasons))}")
            self.screen.say("so nothing was touched; to show the switch, it is told to allow it")
            gate = tr.Gate(max_drop=1.0, min_queries=1)
            promotion = await self.ask_to_promote(version, gate)
        if promotion.state != tr.PROMOTION_STATE_DONE:
            raise RuntimeError(f"the model was not promoted: {promotion.error}")
        together = promotion.judged[0]
        worst = min(together.dims, key=lambda row: row.change)
        self.screen.say(
            f"the gate let it pass: on {together.num_queries} held-out titles nDCG@10 moved least "
            f"favourably at {worst.dim} dimensions, by {worst.change:+.3f}"
        )

    async def ask_to_promote(self, version: str, gate: tr.Gate) -> tr.Promotion:
        request = tr.PromoteRequest(
            version=version, encoder_alias="default", collections=[ALIAS], gate=gate
        )
        promotion = tr.Promotion()
        with self.screen.progress("judge, then index anew", len(self.documents)) as advance:
            async for answer in self.stubs.trainer.Promote(request):
                promotion = answer.promotion
                is_done = promotion.state == tr.PROMOTION_STATE_DONE
                advance(len(self.documents) if is_done else promotion.done)
        return promotion

    async def keep_searching(self, stop: asyncio.Event) -> tuple[int, int, list[str]]:
        """Search by the alias until told to stop; count, and note which collections answered."""
        searched = failed = 0
        answered_by: list[str] = []
        while not stop.is_set():
            searched += 1
            try:
                answer = await self.search(QUESTIONS[searched % len(QUESTIONS)])
                failed += not answer.hits
                if answer.collection not in answered_by:
                    answered_by.append(answer.collection)
            except grpc.aio.AioRpcError as error:
                failed += 1
                self.screen.say(f"[red]a search failed: {error.details()}[/red]")
            await asyncio.sleep(0.02)
        return searched, failed, answered_by


async def _pairs(filename: str, documents: list[Document]) -> AsyncIterator[tr.UploadFileRequest]:
    """A file of training pairs: the title asks, the body answers."""
    yield tr.UploadFileRequest(filename=filename)
    lines = "".join(
        json.dumps({"anchor": document.title, "positive": document.body}) + "\n"
        for document in documents
    ).encode()
    for start in range(0, len(lines), _UPLOAD_CHUNK):
        yield tr.UploadFileRequest(data=lines[start : start + _UPLOAD_CHUNK])
    yield tr.UploadFileRequest(num_bytes=len(lines))


def run_demo(corpus: Path | None, num_documents: int, output: Path, then_exit: bool) -> None:
    """Play the demo; see `matryoshka demo --help`.

    Raises:
        CorpusError: the user's corpus cannot be read, or is too small.
        ServiceDied: a service did not get ready.
    """
    # SIGTERM must end the services too, so it unwinds as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    screen = Screen()
    begin = time.monotonic()
    with screen.waiting("reading the corpus"):
        documents = read_corpus(corpus, num_documents)
    if len(documents) < _MIN_DOCUMENTS:
        raise CorpusError(
            f"{corpus} holds {len(documents)} documents; the demo needs at least {_MIN_DOCUMENTS}, "
            "of which a tenth is held out as questions"
        )
    shutil.rmtree(output / "data", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as running:
        with screen.waiting("starting encoder, router and trainer"):
            processes = running.enter_context(three_services(output))
        figures = asyncio.run(_play(screen, documents, output, processes))
        figures["documents"] = len(documents)
        figures["seconds"] = round(time.monotonic() - begin, 1)
        (output / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
        if not then_exit:
            screen.how_to_call(processes["encoder"].http, processes["router"].grpc)
            screen.say("serving until Ctrl-C ...")
        print(json.dumps(figures), flush=True)
        if not then_exit:
            _serve_on(processes)


async def _play(
    screen: Screen,
    documents: list[Document],
    output: Path,
    processes: dict[str, ServiceProcess],
) -> dict[str, Any]:
    def channel(name: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            processes[name].grpc, options=channel_options(_MAX_MESSAGE_BYTES)
        )

    async with (
        channel("encoder") as encoder,
        channel("router") as router,
        channel("trainer") as trainer,
    ):
        stubs = Stubs(
            encoder_pb2_grpc.EncoderServiceStub(encoder),
            router_pb2_grpc.RouterServiceStub(router),
            trainer_pb2_grpc.TrainerServiceStub(trainer),
        )
        demo = Demo(stubs, screen, documents, output)
        await demo.run()
        return demo.figures


def _serve_on(processes: dict[str, ServiceProcess]) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while all(process.popen.poll() is None for process in processes.values()):
            time.sleep(0.5)
